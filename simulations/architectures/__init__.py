"""Try every adapter on a tiny random model of each family of architectures."""
