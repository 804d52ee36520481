"""A server that sends a silo whatever it likes, and what the silo does."""
