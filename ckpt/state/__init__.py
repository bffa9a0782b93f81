"""What a state is: named tensors, their layout, dtypes and ties, and how ranks share them. Torch is imported lazily."""
