"""Timing logs to frames: reading, merging, and many ranks' samples to one operation."""
