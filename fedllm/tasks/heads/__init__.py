"""Tasks of a linear head on an encoder, apart from one class for each text."""
