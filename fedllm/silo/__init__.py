"""One silo's work in a run: open data, check tasks, train, answer."""
