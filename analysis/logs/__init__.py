"""Reads timing logs into frames, merges them, and folds the samples of many ranks into operations."""
