"""Commands that account for privacy. Numbers come from :mod:`privacy`; here options are checked and results printed."""
