"""A silo's share of a sum over silos, of which the server learns the sum alone."""
