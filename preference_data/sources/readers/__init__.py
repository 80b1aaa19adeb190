"""A module for each published format and each annotation tool: rows to records."""
