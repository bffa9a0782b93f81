"""fastsafetensors on the CPU: a safetensors file, read by a pool of threads.

Its own saver writes through a mapping of a sparse file, where a full disk or quota kills the process, so it isn't used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ckpt.process_group.group import ProcessGroup
from ckpt.state import memory
from ckpt.state.sharding import Partition
from ckpt.strategies.safetensors_file import SafetensorsFile
from ckpt.strategy import Capabilities, Description, Wanted

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State


@dataclass(frozen=True)
class Fastsafetensors(SafetensorsFile):
    """Writes the file of `safetensors_file`; loads into one buffer, from which all tensors are copied.

    Attributes:
        thread_count: threads that read.
    """

    thread_count: Annotated[int, Field(ge=1)] = 16

    name: ClassVar[str] = "fastsafetensors"

    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors.torch", "fastsafetensors")

    extra: ClassVar[str] = "peers"

    as_pairs: ClassVar[tuple[str, ...]] = ("complex64", "complex128")

    @property
    def capabilities(self) -> Capabilities:
        """The reader reads whole tensors, no rows."""
        return replace(super().capabilities, can_reshard=False)

    def describe(self) -> Description:
        """Describe the file, and the threads that read it."""
        return replace(
            super().describe(),
            concurrency=f"one thread on save, {self.thread_count} on load",
            dtype_on_disk="as in the state; complex as pairs",
            best_for="Loading weights onto GPUs",
        )

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Read the files that have the wanted tensors."""
        if stored is not None and stored.sharding != "replicated":
            self.refuse_resharding(stored, group)
        return super().read(directory, wanted, stored, group)

    def read_file(self, path: Path, keys: list[str]) -> dict[str, torch.Tensor]:
        """Read the tensors of these keys from one file, and skip those between them."""
        from fastsafetensors import SafeTensorsFileLoader

        path.open("rb").close()  # the library reports an unreadable file as missing
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
