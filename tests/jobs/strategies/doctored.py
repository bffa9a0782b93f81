"""A strategy for tests that goes wrong in the way that its option names: `torch_save` otherwise."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ckpt.background.async_saver import AsyncSaver
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Capabilities, Syncs

if TYPE_CHECKING:
    from ckpt.process_group.group import ProcessGroup
    from ckpt.state.layout import State
    from ckpt.state.sharding import RankShards


SLOW_S = 3


@dataclass(frozen=True)
class Doctored(TorchSave):
    """`torch_save` whose second save goes wrong.

    Attributes:
        how: `torn` leaves out the end of the file; `swallows` loses its error, and writes nothing; `undurable` claims
            to sync its files; `fails` raises; `killed` ends its process; `later`, with the library's save, writes the
            state as it is later; `slow` takes three seconds on the last rank, each time: with the library's save, to
            copy the state, else to write it. Empty: nothing goes wrong.
    """

    how: str = ""

    name: ClassVar[str] = "doctored"
    async_ways: ClassVar[tuple[str, ...]] = ("library",)
    saves: ClassVar[list[Path]] = []

    @property
    def capabilities(self) -> Capabilities:
        """As it claims."""
        return Capabilities(syncs=Syncs.ALL_FILES if self.how == "undurable" else Syncs.NOTHING)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write the file, or not."""
        self.saves.append(path)
        in_the_call = threading.current_thread() is threading.main_thread()
        if self.how == "slow" and in_the_call and _is_of_last_rank(path):
            time.sleep(SLOW_S)
        if len(self.saves) == 2:
            if self.how == "fails":
                raise OSError(5, "the doctor's error")
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "swallows":
                return []
        files = super().write_rank(state, path)
        if len(self.saves) == 2 and self.how == "torn":
            os.truncate(path, path.stat().st_size // 2)
        return files

    def async_saver(self, way: str) -> AsyncSaver:
        """Its own asynchronous save."""
        assert way in self.async_ways
        return _Saver(self)


def _is_of_last_rank(path: Path) -> bool:
    """Whether a file is the one of the last of several ranks."""
    numbers = re.fullmatch(r".*-(\d+)-of-(\d+)", path.stem)
    return numbers is not None and int(numbers[1]) + 1 == int(numbers[2])


class _Saver(AsyncSaver):
    """Writes a copy of the state, or the state itself once the loop has changed it."""

    def __init__(self, strategy: Doctored) -> None:
        self._strategy = strategy
        self._changed = threading.Event()

    def start(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> None:
        """Take a copy, or keep the tensors."""
        if self._strategy.how == "slow" and group.rank == group.size - 1:
            time.sleep(SLOW_S)
        later = self._strategy.how == "later" and len(self._strategy.saves) == 1
        self._started = (state if later else {name: tensor.clone() for name, tensor in state.items()}), directory
        self._parts = shards, group
        self._looks = 0
        self._changed.clear()
        if not later:
            self._changed.set()

    def before_update(self) -> None:
        """Tell the writer that an update is over, from the second on."""
        self._looks += 1
        if self._looks == 2:
            self._changed.set()

    def finish(self) -> list[Path]:
        """Write everything."""
        self._changed.wait()
        return self._strategy.write(*self._started, *self._parts)

    def close(self) -> None:
        """Nothing is left."""
