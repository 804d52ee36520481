"""Privacy loss distributions of each kind of mechanism, discretised pessimistically."""
