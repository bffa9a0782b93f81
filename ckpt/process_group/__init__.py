"""The ranks that act together: who waits for whom, and how a lost rank is noticed."""
