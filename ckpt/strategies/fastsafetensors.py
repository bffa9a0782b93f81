"""fastsafetensors on the CPU: safetensors' own file, read by a pool of threads.

Its own saver writes through a mapping of a sparse file, where a full disk or quota kills the process, so it isn't used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ckpt.process_group.group import ProcessGroup
from ckpt.state import memory
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategies.safetensors_file import SafetensorsFile
from ckpt.strategy import Facts

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State


@dataclass(frozen=True)
class Fastsafetensors(SafetensorsFile):
    """The file of `safetensors_file`, and a load into one buffer, out of which all tensors are copied.

    Attributes:
        thread_count: of the threads that read.
    """

    thread_count: Annotated[int, Field(ge=1)] = 16

    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors.torch", "fastsafetensors")

    extra: ClassVar[str] = "peers"

    as_pairs: ClassVar[tuple[str, ...]] = ("complex64", "complex128")

    @property
    def facts(self) -> Facts:
        """Those of the file, but for the threads that read it."""
        return replace(
            super().facts,
            concurrency=f"one thread on save, {self.thread_count} on load",
            dtype_on_disk="as in the state; complex as pairs",
            best_for="Loading weights onto GPUs",
            resharding="as many ranks as saved",
        )

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:
        """Read the files that have what is wanted: the reader reads whole tensors, and no rows."""
        if saved.sharding != "replicated":
            self.refuse_resharding(part, saved)
        return super().load_together(directory, part, saved, ranks)

    def read(self, path: Path, keys: list[str]) -> dict[str, torch.Tensor]:
        """The tensors of these keys of one file; the others are left out where they lie between."""
        from fastsafetensors import SafeTensorsFileLoader

        path.open("rb").close()  # it says "No such file" of one that may not be read
        loader = SafeTensorsFileLoader(None, "cpu", nogds=True, set_numa=False, max_threads=self.thread_count)
        try:
            wanted = set(keys)
            loader.set_tensor_filter(wanted.__contains__)
            loader.add_filenames({0: [str(path)]})
            buffer = loader.copy_files_to_device()
            try:
                return {key: memory.own(buffer.get_tensor(key)) for key in keys}
            finally:
                buffer.close()
        finally:
            loader.close()
