"""Asynchronous saves by a strategy's library, of a state that changes as soon as it may."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt.background.async_saver import AsyncSaver
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state.compare import poison
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import RankShards
from support.ranks import Save, share_of

WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("torch_dcp", "library-thread", {}),
    ("torch_dcp", "library-process", {}),
    ("torch_dcp", "library-thread", {"thread_count": 3}),
    ("torch_dcp", "library-process", {"thread_count": 2, "single_file_per_rank": False}),
    ("torch_dcp", "library-thread", {"serialization": "safetensors"}),
    ("torch_dcp", "library-process", {"serialization": "safetensors"}),
    ("torch_dcp_direct", "library-thread", {"files": 2}),
    ("torch_dcp_direct", "library-process", {}),
    ("orbax", "library", {}),
    ("orbax", "library", {"ocdbt": False}),
    ("torch_checkpointing", "library", {}),
]
"""Strategy, way to save, and options: everything that writes otherwise."""


def children() -> set[int]:
    """The processes that this one has started, and that haven't been waited for."""
    pids: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            pids.update(map(int, (thread / "children").read_text().split()))
    return pids


def start(saver: AsyncSaver, state: State, directory: Path) -> None:
    """Start a single process's save in a new directory."""
    directory.mkdir()
    saver.start(state, directory, RankShards.single(layout_of_state(state)), SingleProcess())


@dataclass(frozen=True)
class AsyncSave(Save):
    """What each rank does to save its part of a partition three times; every save's values are gone before it ends."""

    way: str = ""

    def __call__(self, ranks: ProcessGroup) -> list[str]:
        """Save, and tell the files of the last save."""
        part = RankShards(self.partition, ranks.rank)
        share = share_of(self.partition, part.owned)
        copies = {id(tensor): tensor.clone() for tensor in share.values()}
        state = {name: copies[id(tensor)] for name, tensor in share.items()}
        with self.strategy.async_saver(self.way) as saver:
            for number in range(3):
                for name, tensor in share.items():
                    state[name].copy_(tensor)
                directory = self.directory / f"save {number}"
                directory.mkdir(exist_ok=True)
                saver.start(state, directory, part, ranks)
                saver.before_update()
                poison(state)
                files = saver.finish()
        return [str(file.relative_to(directory)) for file in files]
