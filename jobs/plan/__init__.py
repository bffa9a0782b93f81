"""Plans a study: reads and validates its file, and makes the list of its jobs."""
