"""The core of fedllm: settings, models, prefixes, tasks, data, training. No Flower, no Ray."""

__version__ = "0.1.0"
