"""Advice: checkpoint intervals, a recommended strategy, and projections to other sizes."""
