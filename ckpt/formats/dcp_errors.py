"""DCP's errors, as errors of this package."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt.errors import CheckpointError


@contextmanager
def converted(what: str, *, of_ranks: bool = False) -> Iterator[None]:
    """Convert DCP's errors, which are no `Exception`s, and ignore its warning that there is a single process.

    Args:
        what: begins the message.
        of_ranks: name the ranks that failed.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            causes = {rank: cause for rank, (cause, _) in error.failures.items()}
            for cause in causes.values():
                if not isinstance(cause, Exception):  # an interrupt, say
                    raise cause from None
            messages = "; ".join(
                f"{f'rank {rank}: ' if of_ranks else ''}{type(cause).__name__}: {cause}"
                for rank, cause in causes.items()
            )
            raise CheckpointError(f"{what}: {messages}") from error


def of_a_thread(directory: Path) -> CheckpointError:
    """The error to raise if DCP ignored an error of one of its threads."""
    return CheckpointError(f"can't save to {directory}: a thread of DCP failed; its error is on stderr")
