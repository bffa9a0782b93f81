"""A nested state — dicts, lists, numbers, tensors — as named tensors and JSON, and back."""
