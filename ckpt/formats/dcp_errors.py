"""DCP's errors, as errors of this package."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt.errors import CheckpointError


@contextmanager
def converted(what: str) -> Iterator[None]:
    """Convert DCP's errors, which are no `Exception`s, and ignore its warning that there is a single process."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            for cause in causes:
                if not isinstance(cause, Exception):  # an interrupt, say
                    raise cause from None
            messages = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
            raise CheckpointError(f"{what}: {messages}") from error


def of_a_thread(directory: Path) -> CheckpointError:
    """The error to raise if DCP ignored an error of one of its threads."""
    return CheckpointError(f"can't save to {directory}: a thread of DCP failed; its error is on stderr")
