"""Nested states: a training loop's containers, tensors and plain values to named tensors and JSON, and back."""
