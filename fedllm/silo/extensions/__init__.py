"""Optional parts of a run at a silo; each has its counterpart on the server."""
