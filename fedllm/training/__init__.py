"""Private training at a silo: gradients, mechanisms and the releases they make."""
