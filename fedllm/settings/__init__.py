"""Settings of an experiment: sections, checks across them, reading and writing."""
