"""The state of a model: named tensors, their layout, dtypes and ties, and their partition over ranks."""
