"""What a checkpoint survives: faults while a method saves, and what a restart has afterwards."""
