"""The report's sentences: assumptions, glossary, how to reproduce it."""
