"""The settings of an experiment: sections, checks across them, and reading them."""
