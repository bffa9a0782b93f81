"""A strategy of a package of its own: one file with a line of JSON, and the tensors' bytes after it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ckpt.errors import CheckpointError
from ckpt.single_process import SingleProcessStrategy
from ckpt.state.dtypes import name_of, to_bytes, torch_dtype
from ckpt.state.layout import Layout, State
from ckpt.strategy import Capabilities, Description, Footprint


@dataclass(frozen=True)
class RawFile(SingleProcessStrategy):
    """Writes the tensors' bytes one after the other; its fields are its options.

    Attributes:
        buffer_kib: size of the buffer between the tensors and the file.
    """

    buffer_kib: int = 1024

    name: ClassVar[str] = "raw_file"
    rank_file: ClassVar[str] = "state.raw"

    @property
    def capabilities(self) -> Capabilities:
        """Nothing is synced or verified, and only the whole can be read."""
        return Capabilities(partial_load=False)

    def describe(self) -> Description:
        """Describe the file, for `python -m ckpt strategies`."""
        return Description(
            files="1",
            format="a line of JSON, raw bytes",
            chunks="none",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state",
            order_of_writes="one tensor after the other",
            other_readers="none",
            best_for="An example",
        )

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count the bytes of the line and of all tensors."""
        header = _header((tensor.name, tensor.dtype, tensor.shape) for tensor in layout)
        return Footprint(file_count=1, size_bytes=len(header) + sum(tensor.size_bytes for tensor in layout))

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write the line, then the tensors."""
        with path.open("wb", buffering=self.buffer_kib * 1024) as file:
            file.write(_header((name, name_of(tensor), tuple(tensor.shape)) for name, tensor in state.items()))
            for tensor in state.values():
                file.write(to_bytes(tensor))
        return [path]

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Read every tensor into memory of its own."""
        import torch

        if names is not None:
            raise CheckpointError(f"{path} can only be read as a whole")
        if not path.exists():
            raise CheckpointError(f"{path.parent} is no complete checkpoint: it has no {path.name}")
        state: State = {}
        with path.open("rb", buffering=self.buffer_kib * 1024) as file:
            try:
                header = json.loads(file.readline())
            except ValueError as error:
                raise CheckpointError(f"{path} is damaged: {error}") from error
            for name, dtype, shape in header:
                state[name] = torch.empty(shape, dtype=torch_dtype(dtype))
                wanted = state[name].view(-1).view(torch.uint8).numpy()
                if file.readinto(wanted) != wanted.nbytes:
                    raise CheckpointError(f"{path} is damaged: it ends within {name!r}")
        return state


def _header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    return json.dumps(list(tensors)).encode() + b"\n"
