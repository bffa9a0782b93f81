"""Saves behind a running program: a copy of the state is taken at once, and written by a thread or another process."""
