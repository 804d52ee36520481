"""Accounting commands: check options, print results. The numbers come from :mod:`privacy`."""
