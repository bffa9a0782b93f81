"""Defines the errors for results that can't be analysed."""


class ResultsError(Exception):
    """Some results are missing, can't be read, or contradict one another; the message says which."""


class NoTimingLogsError(ResultsError):
    """Results have no timing log, nor a plan of one; what else they have may still be of use."""
