"""Safe files and texts: atomic writes, private modes, bounded JSON, printable errors."""
