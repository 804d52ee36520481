"""The error of a model that cannot be used."""


class ModelError(ValueError):
    """A model cannot be found or cannot be used here."""
