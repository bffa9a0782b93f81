"""Tasks for savers behind a program: functions of a module that another process can import."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

import ckpt
from ckpt.disk import io_plan
from ckpt.disk.io_plan import IoPlan
from ckpt.errors import CheckpointError
from ckpt.state.layout import State
from ckpt.strategy import Strategy
from ckpt.testing.states import Exact, exact
from support.waiting import until


def wait_for(path: Path) -> None:
    """Wait until a file exists."""
    until(path.exists, path)


def bits(state: State) -> Exact:
    """All that is known of the tensors."""
    return exact(state)


def save_once(gate: Path, strategy: Strategy, directory: Path, state: State) -> list[Path]:
    """Wait until a file exists; then save."""
    wait_for(gate)
    return strategy.save(state, directory)


def hold(started: Path, gate: Path, state: State) -> int:
    """Make one file, and wait for another; returns how many tensors there are."""
    started.touch()
    wait_for(gate)
    return len(state)


def plan_of(directory: Path, _: State) -> IoPlan:
    """How this process writes and reads files there."""
    return io_plan.plan_for(directory)


def own_process(_: State) -> int:
    """The number of the process."""
    return os.getpid()


def descriptors_and_mappings(_: State) -> tuple[int, int]:
    """How many files this process has open, and how often it has the snapshot mapped."""
    return open_here()


def open_here() -> tuple[int, int]:
    """The same, without a state."""
    mapped = Path("/proc/self/maps").read_text().count("checkpoint-snapshot")
    return len(os.listdir("/proc/self/fd")), mapped  # noqa: PTH208  # names are enough


def addresses(state: State) -> list[int]:
    """Where the tensors lie."""
    return [tensor.data_ptr() for tensor in state.values()]


class OddError(Exception):
    """An error that pickle can't make again: it takes two arguments, and keeps one text."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


class LossyError(Exception):
    """An error that pickle makes again with another text."""

    def __init__(self, text: str = "another text") -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> Any:
        return LossyError, ()


def fail(kind: str, _: State) -> None:
    """Raise an error of some kind."""
    errors: dict[str, BaseException] = {
        "os": OSError(28, "No space left on device"),
        "own": CheckpointError("the disk is full of eels"),
        "odd": OddError("one", "other"),
        "lossy": LossyError("the text"),
        "memory": MemoryError("no memory"),
        "exit": SystemExit(3),
    }
    raise errors[kind]


def unpicklable(_: State) -> threading.Lock:
    """Return what can't be sent to another process."""
    return threading.Lock()


def speak(text: str, _: State) -> None:
    """Print to both streams."""
    print(f"{text} on stdout")
    print(f"{text} on stderr", file=sys.stderr)


def preparation() -> None:
    """Leave a trace in the process."""
    os.environ["PREPARED"] = "yes"


def failing_preparation() -> None:
    """Fail before the first task."""
    raise RuntimeError("there is no library here")


def prepared(_: State) -> str:
    """Whether the preparation was called."""
    return os.environ.get("PREPARED", "no")


def has_torch(_: State) -> bool:
    """Whether torch works here."""
    return bool(torch.ones(2).sum() == 2)


def hold_and_save(place: Path, state: State) -> None:
    """Make the file `started`, wait for `gate`, and save as `latest`."""
    hold(place / "started", place / "gate", state)
    ckpt.save(state, place / "latest")
