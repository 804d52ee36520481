"""Commands that reproduce the figures claimed in README and docs."""
