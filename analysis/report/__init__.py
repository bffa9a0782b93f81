"""The report: one HTML page with all tables and figures, which needs no other file."""
