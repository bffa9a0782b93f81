"""What can go wrong with a state or a checkpoint, told in one message for the person who reads it."""


class CheckpointError(Exception):
    """A state that can't be built, or a checkpoint that can't be written or read."""


class CheckpointWarning(UserWarning):
    """A checkpoint was loaded, and something beside it or in it was not; the message names it."""


class MissingLibraryError(CheckpointError):
    """A strategy's library can't be imported; `optional` where a study goes on without the strategy."""

    def __init__(self, message: str, *, optional: bool) -> None:
        super().__init__(message)
        self.optional = optional


class UnknownStrategyError(CheckpointError):
    """A strategy, or one of its options, that does not exist."""


class ContradictionError(UnknownStrategyError):
    """Options of a strategy that each exist, and make no sense together."""


class LostRankError(Exception):
    """A rank that did not come to where the others wait, or failed; its message names it."""
