"""What can be wrong with results, told in one message."""


class ResultsError(Exception):
    """Results that aren't there, can't be read, or contradict each other."""
