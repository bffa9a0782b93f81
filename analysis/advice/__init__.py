"""Advises on checkpoint intervals and strategies, and projects to other sizes."""
