"""A strategy of known cost, or with a known fault, for `python -m jobs selftest`; it isn't listed among the others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ckpt import threads
from ckpt.background.async_saver import AsyncSaver
from ckpt.process_group.group import ProcessGroup
from ckpt.single_process import SingleProcessStrategy
from ckpt.state.layout import Layout
from ckpt.state.sharding import RankShards
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Capabilities, Description, Footprint, Syncs

if TYPE_CHECKING:
    from ckpt.state.layout import State


_SPIN = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    pass
"""


@dataclass(frozen=True)
class Selftest(SingleProcessStrategy):
    """`torch.save` and `torch.load`, slowed down, or with a fault that a measurement must detect.

    Attributes:
        behaviour: `honest`; `wrong_data` flips a bit of what it loads; `lazy` maps the file instead of reading it;
            `unsynced` declares that its files are on storage when they aren't; `torn` copies half of the tensors only
            after they were changed, in an asynchronous save; `swallows` loses that save's error.
        sleep_s: seconds that every save and every load sleeps in addition.
        bytes_per_s: sleep as long as the state's bytes take at that rate; 0 for not at all.
        blocks_s: seconds for which the call of an asynchronous save sleeps.
        spins_s: seconds for which every save keeps a process busy on every core that it may use.
    """

    behaviour: Literal["honest", "wrong_data", "lazy", "unsynced", "torn", "swallows"] = "honest"
    sleep_s: float = 0
    bytes_per_s: float = 0
    blocks_s: float = 0
    spins_s: float = 0

    name: ClassVar[str] = "_selftest"

    async_ways: ClassVar[tuple[str, ...]] = ("library",)

    @property
    def capabilities(self) -> Capabilities:
        """Those of `torch_save`, except for the false claim to sync."""
        syncs = Syncs.ALL_FILES if self.behaviour == "unsynced" else Syncs.NOTHING
        return replace(TorchSave().capabilities, syncs=syncs)

    def describe(self) -> Description:
        """Describe `torch_save`."""
        return TorchSave().describe()

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count as `torch_save` does."""
        return TorchSave().rank_footprint(layout)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Sleep, and keep the cores busy, as long as the options demand, and save."""
        self._sleep(state)
        self._spin()
        return TorchSave().write_rank(state, path / TorchSave.rank_file)

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Load, with the fault if there is one, and sleep as long as the options demand."""
        import torch

        if self.behaviour == "lazy":
            (file,) = path.iterdir()
            state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            return state
        state = TorchSave().read_rank(path / TorchSave.rank_file, names)
        self._sleep(state)
        if self.behaviour == "wrong_data":
            first = next(iter(state.values()))
            first.view(torch.uint8).view(-1)[0] ^= 1
        return state

    def async_saver(self, way: str) -> AsyncSaver:  # noqa: ARG002  # there is one
        """Save in a thread, with the fault if there is one."""
        return _SelftestSaver(self)

    def _spin(self) -> None:
        if self.spins_s:
            command = [sys.executable, "-I", "-S", "-c", _SPIN]
            cores = [[*command, str(core), str(self.spins_s)] for core in sorted(os.sched_getaffinity(0))]
            for process in [subprocess.Popen(arguments) for arguments in cores]:
                process.wait()

    def _sleep(self, state: State) -> None:
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        time.sleep(self.sleep_s + (size_bytes / self.bytes_per_s if self.bytes_per_s else 0))


class _SelftestSaver(AsyncSaver):
    """Copies the state in the call, and saves the copy in a thread."""

    def __init__(self, strategy: Selftest) -> None:
        self._strategy = strategy
        self._written: Future[list[Path]] | None = None
        self._steps = 0
        self._is_changed = threading.Event()

    def start(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> None:
        """Copy the state, or half of it; sleep as long as the options demand."""
        names = list(state)
        at_once = names[: len(names) // 2] if self._strategy.behaviour == "torn" else names
        copied = {name: state[name].clone() for name in at_once}
        self._steps = 0
        self._is_changed.clear()

        def write() -> list[Path]:
            if len(copied) < len(names):
                self._is_changed.wait()
                copied.update({name: state[name].clone() for name in names if name not in copied})
            if self._strategy.behaviour == "swallows":
                with suppress(OSError):
                    (directory / "missing" / TorchSave.rank_file).touch()
                return []
            return self._strategy.write(copied, directory, shards, group)

        time.sleep(self._strategy.blocks_s)
        self._written = threads.start(write, "selftest-saver")

    def before_update(self) -> None:
        """Note that the state has changed since the call: before the second update it has."""
        self._steps += 1
        if self._steps > 1:
            self._is_changed.set()

    def finish(self) -> list[Path]:
        """Wait for the thread."""
        assert self._written is not None  # the caller has started a save
        return self._written.result()

    def close(self) -> None:
        """Wait for the thread, if there is one."""
        self._is_changed.set()
        if self._written is not None:
            self._written.exception()
