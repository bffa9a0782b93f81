"""What to do about it: checkpoint intervals, a recommendation, a projection to other sizes."""
