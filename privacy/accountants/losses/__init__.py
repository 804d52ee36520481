"""Privacy loss distributions of each mechanism, discretised pessimistically."""
