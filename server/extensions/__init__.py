"""Optional parts of a round: codec, layer choice, teacher, zeroth order, central noise."""
