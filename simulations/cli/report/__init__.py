"""Commands for a run's report: make it, sign it, verify it, and make the keys."""
