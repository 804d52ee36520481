"""The report's sections: each builds its own part of the report."""
