"""Defines the error for results that can't be analysed."""


class ResultsError(Exception):
    """Some results are missing, can't be read, or contradict one another; the message says which."""
