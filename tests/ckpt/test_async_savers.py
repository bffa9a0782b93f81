"""The libraries' own asynchronous saves: what they write is the state at the call, and no error is lost."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.background.async_saver import AsyncSaver
from ckpt.errors import CheckpointError
from ckpt.process_group.group import SingleProcess
from ckpt.registry import create, names
from ckpt.state.compare import as_bytes, poison
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategy import Strategy
from ckpt.testing.states import every_dtype, exact
from support.async_saves import WAYS, AsyncSave, children, start
from support.ranks import TENSORS, Load, Processes
from support.strategies import usable

IDS = ["+".join([name, way, *(f"{key}={value}" for key, value in options.items())]) for name, way, options in WAYS]


@pytest.fixture(params=WAYS, ids=IDS)
def case(request: pytest.FixtureRequest) -> tuple[Strategy, str]:
    """Every strategy whose library has an asynchronous save, and the way to save."""
    name, way, options = request.param
    return usable(name, options), way


@pytest.fixture
def saver(case: tuple[Strategy, str]) -> Iterator[AsyncSaver]:
    """The saver; nothing of it is left afterwards."""
    strategy, way = case
    threads, processes = set(threading.enumerate()), children()
    with strategy.async_saver(way) as found:
        yield found
    assert found.helpers == []
    assert children() - processes - {tracker()} == set()
    end = time.monotonic() + 300
    while left := {thread.name for thread in set(threading.enumerate()) - threads if not thread.daemon}:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def tracker() -> int | None:
    """The process of multiprocessing that lives as long as this one."""
    from multiprocessing import resource_tracker

    return resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]


def test_what_it_writes(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """Every dtype, ties and odd tensors come back as from the strategy's own save; the files are told; a second and a
    third save, of other values and of another state, are as good as the first.
    """
    strategy, _ = case
    first, other = every_dtype(), {"other": torch.randn(300, 7), "empty": torch.empty(0)}
    for number, state in enumerate([first, first, other, first]):
        for tensor in state.values():
            if tensor.is_floating_point() and tensor.itemsize > 1:
                tensor.neg_()
        expected, directory = exact(state), tmp_path / str(number)
        start(saver, state, directory)
        saver.before_update()
        files = saver.finish()
        assert exact(strategy.load(directory)) == expected
        assert sorted(files) == sorted(path for path in directory.rglob("*") if path.is_file())


def test_a_state_that_changes(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """A checkpoint has the values at the call, though every tensor changes as soon as `before_update` returns, and goes
    on changing until the library has written everything: the first save, which starts processes, and later ones.
    """
    strategy, _ = case
    state = every_dtype() | {"large": torch.randn(1 << 20)}
    values = {name: tensor.clone() for name, tensor in state.items()}
    for number in range(3):
        expected, ended = exact(state), threading.Event()
        start(saver, state, tmp_path / str(number))
        saver.before_update()
        poison(state)
        optimizer = threading.Thread(target=change, args=(state, ended))
        optimizer.start()
        try:
            saver.finish()
        finally:
            ended.set()
            optimizer.join()
        assert exact(strategy.load(tmp_path / str(number))) == expected, versions()
        for name, tensor in values.items():
            state[name].copy_(tensor)


def change(state: State, ended: threading.Event) -> None:
    """Change all bits of every tensor, again and again."""
    while not ended.is_set():
        for tensor in state.values():
            as_bytes(tensor.contiguous()).bitwise_not_()
        time.sleep(0.001)


def versions() -> str:
    """The libraries' versions, for the failure of a test."""
    packages = ("torch", "orbax-checkpoint", "torch-checkpointing")
    return "later values were written by " + ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in packages
    )


def test_views_that_torch_computes(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """A conjugate, a parameter, and a slice of a larger tensor are saved with the values that they show."""
    strategy, _ = case
    spectrum, larger = torch.randn(6, dtype=torch.complex64), torch.arange(100.0)
    state = {"conjugate": spectrum.conj(), "parameter": torch.nn.Parameter(torch.randn(3)), "slice": larger[10:20]}
    expected = exact({name: tensor.resolve_conj() for name, tensor in state.items()})
    start(saver, state, tmp_path / "checkpoint")
    saver.before_update()
    poison({"spectrum": spectrum, "larger": larger})
    saver.finish()
    assert exact(strategy.load(tmp_path / "checkpoint")) == expected


_changes: list[str] | None = None
"""Takes the changes of the environment while it is a list; an audit hook can't be removed."""


def _audit(event: str, _: tuple[object, ...]) -> None:
    # torch_checkpointing itself changes it, in a thread of its own
    ours = threading.current_thread() is threading.main_thread()
    if _changes is not None and ours and event in {"os.putenv", "os.unsetenv"}:
        _changes.append("".join(traceback.format_stack()))


def test_the_environment_stays(saver: AsyncSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save sets no variable: a process that a thread starts at the same instant would end with exit code 255."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    sys.addaudithook(_audit)
    monkeypatch.setattr(sys.modules[__name__], "_changes", changes := [])
    for number in range(2):
        start(saver, {"w": torch.randn(1000)}, tmp_path / str(number))
        saver.finish()
    assert not changes, changes[0]


def test_an_error_arrives(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """A directory that can't be written to is an error, in `finish` at the latest, and the next save works."""
    strategy, _ = case
    state = {"w": torch.randn(1000), "x": torch.randn(7)}
    start(saver, state, tmp_path / "first")
    saver.finish()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match=f"^can't save to {file}"):
        save(saver, state, file)
    start(saver, state, tmp_path / "third")
    saver.finish()
    assert exact(strategy.load(tmp_path / "third")) == exact(state)


def save(saver: AsyncSaver, state: State, directory: Path) -> None:
    """Save a single process's state."""
    saver.start(state, directory, RankShards.single(layout_of_state(state)), SingleProcess())
    saver.before_update()
    saver.finish()


FULL = """
import os, sys
import torch
from ckpt.errors import CheckpointError
from ckpt.process_group.group import SingleProcess
from ckpt.registry import create
from support.async_saves import WAYS, start
from pathlib import Path

def main():
    name, way, options = WAYS[int(sys.argv[2])]
    strategy, disk = create(name, options), Path(sys.argv[1])
    strategy.prepare()
    assert os.system(f"mount -t tmpfs -o size=12m none '{disk}'") == 0
    with strategy.async_saver(way) as saver:
        for number, count in enumerate([1, 3, 1]):
            try:
                start(saver, {f"w{i}": torch.randn(3 << 19) for i in range(count)}, disk / str(number))
                saver.before_update()
                saver.finish()
                print("saved")
            except CheckpointError as error:
                print(type(error).__name__, str(error).replace(chr(10), " "))
            os.system(f"rm -rf '{disk}'/*")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", range(len(WAYS)), ids=IDS)
def test_a_full_disk(number: int, tmp_path: Path) -> None:
    """It is an error that names it, in `finish` at the latest; the next save, with room, works."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    usable(WAYS[number][0])
    script, disk = tmp_path / "script.py", tmp_path / "disk"
    script.write_text(FULL)
    disk.mkdir()
    command = ["unshare", "--mount", sys.executable, str(script), str(disk), str(number)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["saved", "CheckpointError", "saved"], (
        done.stdout + done.stderr
    )
    assert re.search("No space left on device|unexpected pos|a thread of DCP failed", lines[1]), lines[1]


def test_a_killed_process(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """A library's process that is killed is an error, and the next save works."""
    strategy, _ = case
    state = {"w": torch.randn(1000)}
    start(saver, state, tmp_path / "first")
    saver.finish()
    if not saver.helpers:
        pytest.skip("this library has no process")
    (pid,) = saver.helpers
    os.kill(pid, signal.SIGSTOP)
    start(saver, state, tmp_path / "second")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(CheckpointError):
        saver.finish()
    start(saver, state, tmp_path / "third")
    saver.finish()
    assert exact(strategy.load(tmp_path / "third")) == exact(state)


@pytest.mark.parametrize(
    ("name", "way", "sharding"),
    [
        *sorted({(name, way, "dim0") for name, way, _ in WAYS}),
        ("torch_dcp", "library-thread", "tensors"),
        ("torch_dcp", "library-process", "replicated"),
    ],
)
def test_several_ranks(name: str, way: str, sharding: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks save together, three times, while each changes its state; three load what was there at the call."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    strategy = usable(name)
    partition = Partition.of(TENSORS, sharding, 3)
    with Processes() as run:
        files = run(AsyncSave(strategy, tmp_path, partition, way), 3)
        directory = tmp_path / "save 2"
        assert sorted(path for part in files for path in part) == sorted(
            str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
        )
        load = Load(strategy, directory, partition, partition)
        assert run(load, 3) == load.expected()


@pytest.mark.parametrize("name", names())
def test_ways_that_there_are_not(name: str) -> None:
    """Another way's name is refused by a message with those that there are."""
    strategy = create(name)
    known = ", ".join(strategy.async_ways)
    text = f"'thread' of its library: {f'it has {known}' if known else 'its library has none'}"
    with pytest.raises(CheckpointError, match=f"^strategy {name} has no asynchronous save {text}$"):
        strategy.async_saver("thread")
    assert set(strategy.async_ways) == {way for other, way, _ in WAYS if other == name}
