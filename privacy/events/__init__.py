"""Privacy events: constructed, counted, written as JSON, and seen by each adversary."""
