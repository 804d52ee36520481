"""The client: a thin Flower ClientApp over the core."""
