"""HDF5 files as a checkpoint needs them: a full disk is an error, and so is whatever can't be read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.errors import CheckpointError
from ckpt.state import dtypes, memory
from ckpt.state.layout import TensorLayout
from ckpt.threads import is_ending

if TYPE_CHECKING:
    import h5py
    import torch


class _AtTheEnd:
    """Calls a function when the interpreter clears its modules."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def __del__(self) -> None:
        self._function()


_late: list[_AtTheEnd] = []


def import_late() -> None:
    """Import h5py so that it works even as the interpreter ends, and is not used after that.

    It asks `atexit` to unregister its converters, which may have been done by now, or, where `atexit` is at work
    already, may never be; HDF5 would then call them as it closes, when the interpreter is gone.
    """
    import h5py

    if is_ending():
        h5py._conv.unregister_converters()  # noqa: SLF001  # as its own atexit function does; to register twice fails
        h5py._conv.register_converters()  # noqa: SLF001  # as h5py does when it is imported
        if not _late:
            _late.append(_AtTheEnd(h5py._conv.unregister_converters))  # noqa: SLF001  # as above


@contextmanager
def create(path: Path, names: list[str]) -> Iterator[h5py.File]:
    """Create a file, in a format whose metadata have checksums, for tensors of these names."""
    import h5py

    with _DeferredErrorFile(path, "w+") as raw:
        with h5py.File(raw, "w", libver=("v110", "v110"), track_order=True) as file:
            yield file
            file.attrs["names"] = np.void(json.dumps(names).encode() + b"\n")
        if raw.error:
            raise raw.error


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an existing file.

    Raises:
        CheckpointError: if it is missing or damaged, or what is done with it fails in HDF5.
    """
    import h5py

    if not path.exists():
        raise CheckpointError(f"{path.parent} is no complete checkpoint: it has no {path.name}")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:  # h5py raises one of many kinds
        raise CheckpointError(f"can't read {path}: {type(error).__name__}: {error}") from error


def read_dataset(dataset: h5py.Dataset, rows: slice | tuple[()] = ()) -> torch.Tensor:
    """Read a dataset, or some of its rows, into a new tensor."""
    shape = dataset.shape
    if rows != ():
        assert isinstance(rows, slice)
        shape = (rows.stop - rows.start, *shape[1:])
    tensor = memory.empty(TensorLayout("", shape, dataset.attrs["dtype"]))
    if tensor.numel():
        array = dtypes.to_numpy(tensor).view(dataset.dtype)
        if not shape:
            array[()] = dataset[()]
        elif rows == ():
            dataset.read_direct(array)
        else:
            dataset.read_direct(array, np.s_[rows])
    return tensor


class _DeferredErrorFile(io.FileIO):
    """A file that keeps its first error for later: HDF5 has no way back from a failed write, and may crash."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it, or remember why not."""
        view = memoryview(data).cast("B")
        while view and not self.error:
            try:
                view = view[super().write(view) :]  # Linux writes 2 GiB at most
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size, or remember why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0
