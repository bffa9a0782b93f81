"""Compares timing logs. Needs neither torch nor submitit, so that it runs where the results are read."""

from analysis.logs.frames import Results
from analysis.logs.load import load, load_results

__all__ = ["Results", "load", "load_results"]
