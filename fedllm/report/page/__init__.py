"""The report as a page: template, style and figures."""
