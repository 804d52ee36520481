"""Privacy events: construct, count, serialise, and view as each adversary."""
