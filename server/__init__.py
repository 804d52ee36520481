"""The server: a thin Flower ServerApp over the core."""
