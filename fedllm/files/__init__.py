"""Files and texts that hold whatever happens: atomic writes, private modes, bounded JSON."""
