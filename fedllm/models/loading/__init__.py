"""Open a model by its name: files, configuration, tokenizer, device and number format."""
