"""Draws figures of the measurements."""
