"""The libraries' own asynchronous saves: what they write is the state at the call, and no error is lost."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
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


_changes: list[str] = []
"""Where the main thread changed the environment."""


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    """Collect changes of the environment from now on; an audit hook can't be removed."""
    sys.addaudithook(_audit)


def _audit(event: str, _: tuple[object, ...]) -> None:
    # torch_checkpointing itself changes it, in a thread of its own
    if event in {"os.putenv", "os.unsetenv"} and threading.current_thread() is threading.main_thread():
        _changes.append("".join(traceback.format_stack()))


def test_what_it_writes(
    case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every dtype, ties and odd tensors come back as from the strategy's own save; the files are told; a second and a
    third save, of other values and of another state, are as good as the first. A save sets no variable: a process that
    a thread starts at the same instant would end with exit code 255.
    """
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    strategy, _ = case
    first, other = every_dtype(), {"other": torch.randn(300, 7), "empty": torch.empty(0)}
    for number, state in enumerate([first, first, other, first]):
        for tensor in state.values():
            if tensor.is_floating_point() and tensor.itemsize > 1:
                tensor.neg_()
        expected, directory = exact(state), tmp_path / str(number)
        _changes.clear()
        start(saver, state, directory)
        saver.before_update()
        files = saver.finish()
        assert not _changes, _changes[0]
        assert exact(strategy.load(directory)) == expected
        assert sorted(files) == sorted(path for path in directory.rglob("*") if path.is_file())


def test_a_state_that_changes(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """A checkpoint has the values at the call, though every tensor changes as soon as `before_update` returns, and goes
    on changing until the library has written everything: the first save, which starts processes, and later ones. So
    have a conjugate, a parameter, and a slice of a larger tensor, which torch computes when they are read.
    """
    strategy, _ = case
    state = every_dtype() | {"large": torch.randn(1 << 20)}
    state["conjugate"] = torch.randn(6, dtype=torch.complex64).conj()
    state["parameter"] = torch.nn.Parameter(torch.randn(3))
    state["slice"] = torch.arange(100.0)[10:20]
    values = {name: tensor.detach().resolve_conj().clone() for name, tensor in state.items()}
    for number in range(3):
        expected, ended = exact({name: tensor.resolve_conj() for name, tensor in state.items()}), threading.Event()
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
            state[name].detach().copy_(tensor)


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


def test_an_error_arrives(case: tuple[Strategy, str], saver: AsyncSaver, tmp_path: Path) -> None:
    """A directory that can't be written to is an error, in `finish` at the latest, and so is a killed process of the
    library's; the next save works.
    """
    strategy, _ = case
    state = {"w": torch.randn(1000), "x": torch.randn(7)}

    def works(name: str) -> None:
        start(saver, state, tmp_path / name)
        saver.finish()
        assert exact(strategy.load(tmp_path / name)) == exact(state)

    works("first")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match=f"^can't save to {file}"):
        save(saver, state, file)
    works("second")
    for pid in saver.helpers:
        os.kill(pid, signal.SIGSTOP)
        start(saver, state, tmp_path / "third")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CheckpointError):
            saver.finish()
        works("fourth")


def save(saver: AsyncSaver, state: State, directory: Path) -> None:
    """Save a single process's state."""
    saver.start(state, directory, RankShards.single(layout_of_state(state)), SingleProcess())
    saver.before_update()
    saver.finish()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", disk], check=False).returncode:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # threads of DCP's end with it
def test_a_full_disk(case: tuple[Strategy, str], small_disk: Path, saver: AsyncSaver) -> None:
    """It is an error that names it, in `finish` at the latest; the next save, with room, works."""
    strategy, _ = case
    small, large = ({f"w{i}": torch.randn(3 << 19) for i in range(count)} for count in (1, 3))
    directory = small_disk / "checkpoint"

    def works() -> None:
        directory.mkdir()
        save(saver, small, directory)
        assert exact(strategy.load(directory)) == exact(small)
        shutil.rmtree(directory)

    works()
    directory.mkdir()
    with pytest.raises(CheckpointError, match=r"No space left on device|unexpected pos|a thread of DCP failed"):
        save(saver, large, directory)
    shutil.rmtree(directory)
    works()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Processes]:
    """Processes that are ranks of one test after the other."""
    with Processes() as started:
        yield started


@pytest.mark.parametrize(
    ("name", "way", "sharding"),
    [
        *sorted({(name, way, "dim0") for name, way, _ in WAYS}),
        ("torch_dcp", "library-thread", "tensors"),
        ("torch_dcp", "library-process", "replicated"),
    ],
)
def test_several_ranks(
    name: str, way: str, sharding: Any, ranks: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks save together, three times, while each changes its state; three load what was there at the call."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    strategy = usable(name)
    partition = Partition.of(TENSORS, sharding, 3)
    files = ranks(AsyncSave(strategy, tmp_path, partition, way), 3)
    directory = tmp_path / "save 2"
    assert sorted(path for part in files for path in part) == sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )
    load = Load(strategy, directory, partition, partition)
    assert ranks(load, 3) == load.expected()


@pytest.mark.parametrize("name", names())
def test_ways_that_there_are_not(name: str) -> None:
    """Another way's name is refused by a message with those that there are."""
    strategy = create(name)
    known = ", ".join(strategy.async_ways)
    text = f"'thread' of its library: {f'it has {known}' if known else 'its library has none'}"
    with pytest.raises(CheckpointError, match=f"^strategy {name} has no asynchronous save {text}$"):
        strategy.async_saver("thread")
    assert set(strategy.async_ways) == {way for other, way, _ in WAYS if other == name}
