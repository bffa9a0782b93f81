"""The errors of this package. Their messages are written for the person who reads them."""

from collections.abc import Iterator
from contextlib import contextmanager


class CheckpointError(Exception):
    """Raised if a state can't be built, or a checkpoint can't be written or read."""


class CheckpointWarning(UserWarning):
    """Warns that a load left something out; the message names it."""


class MissingLibraryError(CheckpointError):
    """Raised if a strategy's library can't be imported; `optional` if a study continues without the strategy."""

    def __init__(self, message: str, *, optional: bool) -> None:
        super().__init__(message)
        self.optional = optional


class UnknownStrategyError(CheckpointError):
    """Raised if a strategy, or one of its options, does not exist."""


class ContradictionError(UnknownStrategyError):
    """Raised if options of a strategy contradict each other."""


class LostRankError(Exception):
    """Raised if a rank that others wait for failed or did not answer; the message names it."""


@contextmanager
def wrapped(message: str) -> Iterator[None]:
    """Raise whatever a library raises as a CheckpointError that begins with this message."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{message}: {type(error).__name__}: {error}") from error
