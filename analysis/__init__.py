"""Timing logs -> comparisons. Needs neither torch nor submitit: it runs where the results are read."""

from analysis.logs.load import Results, load, load_results

__all__ = ["Results", "load", "load_results"]
