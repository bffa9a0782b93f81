"""What was measured as figures."""
