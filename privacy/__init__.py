"""Differential privacy: mechanisms, the ledger of their events, and the accountants that read it.

Knows tensors and numbers only: no models, no data sets, no federation.
"""
