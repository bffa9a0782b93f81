"""Figures of the measurements."""
