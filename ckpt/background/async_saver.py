"""A library's own asynchronous save, as a training loop calls it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from ckpt.process_group.group import ProcessGroup
from ckpt.state.layout import State
from ckpt.state.sharding import RankShards


class AsyncSaver(ABC):
    """Saves by a library's asynchronous save, one at a time; the library neither syncs nor commits.

    saver.start(state, directory, shards, group)    # returns when the library's call does
    saver.before_update()                           # waits until the state may change
    files = saver.finish()                          # from any thread: waits until everything is written
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> None:
        """Call the library's save; as `Strategy.write`, but it returns before everything is written."""

    def before_update(self) -> None:
        """Wait until the library has copied what it needs of the state, if `start` returns before that."""
        return  # most have by then

    @abstractmethod
    def finish(self) -> list[Path]:
        """Wait until everything is written; returns the files that this rank wrote.

        Raises:
            CheckpointError: if the save failed.
        """

    @property
    def helpers(self) -> list[int]:
        """The numbers of the processes that save."""
        return []

    @abstractmethod
    def close(self) -> None:
        """End the library's threads and processes."""


def computed(state: State) -> State:
    """The state without views that torch computes when they are read: the libraries' copies take them for their base.

    As PyTorch 2.13's DCP and torch_checkpointing 0.1.1 do with a conjugate. Any other tensor is the same one.
    """
    return {name: tensor.resolve_conj().resolve_neg() for name, tensor in state.items()}
