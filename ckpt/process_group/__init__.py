"""Groups of processes that save and load together, and that notice lost ranks."""
