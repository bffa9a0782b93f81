"""Reads tensors of a safetensors file, into memory of their own or into tensors that exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.disk import ranges
from ckpt.disk.io_plan import IoPlan
from ckpt.disk.ranges import Range
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.state import dtypes, memory
from ckpt.threads import Beside

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

Check = Callable[[TensorInfo, "torch.Tensor"], None]


class _Checks:
    """Checks of complete tensors, in a thread of their own while others are being read."""

    def __init__(self, check: Check, thread: Beside) -> None:
        self._check, self._thread = check, thread
        self._outcomes: list[Future[None]] = []
        self._failed = False

    def begin(self, info: TensorInfo, tensor: torch.Tensor) -> None:
        """Check a tensor; if an earlier one has failed, raise its error."""
        if self._failed:
            self.finish()
        self._outcomes.append(self._thread.submit(self._run, info, tensor))

    def _run(self, info: TensorInfo, tensor: torch.Tensor) -> None:
        try:
            self._check(info, tensor)
        except BaseException:
            self._failed = True
            raise

    def finish(self) -> None:
        """Wait for all checks, and raise the first error."""
        for outcome in self._outcomes:
            outcome.result()


def read(
    path: Path, tensors: Sequence[TensorInfo], data_start: int, plan: IoPlan, threads: int, check: Check | None = None
) -> State:
    """Read some of a file's tensors into memory of their own.

    Args:
        path: the file.
        tensors: the wanted tensors, in any order.
        data_start: where the file's data begins.
        plan: how to read what isn't in the page cache.
        threads: requests in flight.
        check: called with a tensor as soon as it is complete, from a thread of its own; its errors end the read.

    Raises:
        CheckpointError: if the file ends too early.
    """
    state = {info.layout.name: memory.empty(info.layout) for info in tensors}
    with Beside() as prefaulting:
        prefaulting.submit(
            memory.prefault, [state[info.layout.name] for info in sorted(tensors, key=lambda info: info.start)]
        )
        fill(path, tensors, data_start, plan, threads, state, check)
    return state


def fill(
    path: Path,
    tensors: Sequence[TensorInfo],
    data_start: int,
    plan: IoPlan,
    threads: int,
    targets: Mapping[str, torch.Tensor],
    check: Check | None = None,
) -> None:
    """Read some of a file's tensors into contiguous tensors that exist, by name; see `read`."""
    wanted = {
        Range(path, data_start + info.start, dtypes.to_bytes(targets[info.layout.name])): info for info in tensors
    }
    with Beside() as checking:
        checks = _Checks(check, checking) if check else None

        def finished(item: Range) -> None:
            if checks:
                checks.begin(wanted[item], targets[wanted[item].layout.name])

        ranges.read(wanted, plan, threads, finished)
        if checks:
            checks.finish()
