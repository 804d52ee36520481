"""Commands for a run's report: build, sign, verify, generate keys."""
