"""Nested states: converts a training loop's state to named tensors and JSON, and back."""
