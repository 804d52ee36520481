"""One silo's work in a run: what it opens, checks, answers and keeps."""
