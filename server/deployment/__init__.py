"""Running a federation on real machines: its folder, keys, programs, and the operator's commands.

Everything here starts or talks to Flower's own programs and nginx; nothing of a run's mathematics is
here. What a silo enforces for itself is in :mod:`client`.
"""
