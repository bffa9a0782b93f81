"""A filesystem of which nothing is known is tried within a bounded time, and nothing is left of the trial."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import direct_io, io_trial, sequential
from support.faults import in_a_traced_child, require_strace
from support.filesystems import Mounts, do_without

MIB = 2**20
BOTH_WAYS = {("write", True), ("write", False), ("read", True), ("read", False)}


@pytest.fixture(autouse=True)
def _says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No filesystem says whether it does direct I/O, unlike ext4 for example."""
    monkeypatch.setattr(direct_io, "direct_alignment", lambda _: None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a file that isn't the trial's."""
    (tmp_path / ".io-trial-of-mine").write_text("mine")
    return tmp_path


def assert_nothing_left(directory: Path) -> None:
    """The trial's thread has ended, and no file but the one before is there."""
    for thread in threading.enumerate():
        if thread.name == "io-trial":
            threading.Thread.join(thread, 60)
    assert [path.name for path in directory.iterdir()] == [".io-trial-of-mine"]


@pytest.mark.every_filesystem
def test_both_ways_are_measured(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files first, and then larger ones of 16 MiB at most, one at a time."""
    sizes: list[int] = []
    write = sequential.write_sequentially

    def noted(path: Path, size_bytes: int, **how: Any) -> bool:
        sizes.append(size_bytes)
        assert {each.name for each in directory.iterdir()} <= {".io-trial-of-mine", path.name}
        return write(path, size_bytes, **how)

    monkeypatch.setattr(sequential, "write_sequentially", noted)
    outcome = io_trial.try_out(directory, limit_s=600)
    assert (outcome.problem, outcome.says_direct, set(outcome.rates)) == ("", False, BOTH_WAYS)
    assert sizes[:2] == [MIB] * 2
    assert set(sizes[2:]) <= {16 * MIB}
    assert outcome.size_bytes == sizes[-1]
    assert outcome.rates["write", False] > 0
    assert_nothing_left(directory)


def test_a_filesystem_that_says_so_is_not_measured(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does direct I/O, and files need not be written."""
    monkeypatch.setattr(direct_io, "direct_alignment", lambda _: 512)
    monkeypatch.setattr(sequential, "write_sequentially", lambda *_, **__: pytest.fail("it was measured"))
    assert io_trial.try_out(directory) == io_trial.Outcome(says_direct=True)
    assert_nothing_left(directory)


def report(directory: Path, limit_s: float = 60) -> None:
    """Raise an error with the size that decided, or with the problem: a traced child answers with an error's text."""
    outcome = io_trial.try_out(directory, limit_s)
    raise ValueError(f"{outcome.problem or outcome.size_bytes}")


def test_a_slow_filesystem_gets_small_files_only(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where a write takes 0.4 s, four files of 16 MiB could take too long: those of 1 MiB decide."""
    require_strace()
    log = tmp_path_factory.mktemp("trace") / "log"
    slow = {"pwrite64": "delay_enter=400000"}
    assert in_a_traced_child(lambda: report(directory), slow, [], log) == f"ValueError: {MIB}"
    assert_nothing_left(directory)


def test_a_request_that_lasts_too_long(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A sync that takes longer than the whole trial may take holds up neither the trial nor the end of the program."""
    require_strace()
    log = tmp_path_factory.mktemp("trace") / "log"
    slow = {"fsync": "delay_enter=5000000"}
    outcome = in_a_traced_child(lambda: report(directory, 0.5), slow, [], log)
    assert outcome == "ValueError: that was not done within 0.5 s"


@pytest.fixture
def hung(mounts: Mounts) -> Iterator[Path]:
    """A directory of a volume that doesn't answer until the test lets its bricks go on."""
    directory = mounts.start("gluster") / "tried"
    directory.mkdir()
    (directory / ".io-trial-of-mine").write_text("mine")
    mounts.signal_bricks(signal.SIGSTOP)
    yield directory
    mounts.signal_bricks(signal.SIGCONT)
    subprocess.run(["rm", "-r", directory], check=True, timeout=600)


@pytest.mark.filesystems
def test_servers_that_hang(hung: Path, mounts: Mounts) -> None:
    """Stopped bricks of GlusterFS hold up no plan; when they go on, only the trial's file is removed."""
    assert io_trial.try_out(hung, limit_s=1).problem == "that was not done within 1 s"
    mounts.signal_bricks(signal.SIGCONT)
    assert_nothing_left(hung)


def test_what_was_measured_before_it_hung_counts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 1 MiB decide where one of 16 MiB is never done; a thread that comes back writes no more."""
    hangs, go_on = threading.Event(), threading.Event()
    write = sequential.write_sequentially
    large: list[Path] = []

    def hanging(path: Path, size_bytes: int, **how: Any) -> bool:
        if size_bytes > MIB:
            large.append(path)
            hangs.set()
            go_on.wait(600)
        return write(path, size_bytes, **how)

    monkeypatch.setattr(sequential, "write_sequentially", hanging)
    monkeypatch.setattr(io_trial, "_LIKELY_S", 600)
    monkeypatch.setattr(io_trial._Trial, "join", lambda *_: hangs.wait(600))  # as if the limit were over then
    outcome = io_trial.try_out(directory)
    assert (outcome.size_bytes, outcome.problem, set(outcome.rates)) == (MIB, "", BOTH_WAYS)
    go_on.set()
    assert_nothing_left(directory)
    assert len(large) == 1


@pytest.fixture
def ramfs(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that refuses direct I/O."""
    if os.geteuid() != 0:
        do_without("mounting needs root")
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True, timeout=600)
    (tmp_path / ".io-trial-of-mine").write_text("mine")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=600)


@pytest.mark.filesystems
def test_direct_io_that_is_refused_has_no_rate(ramfs: Path) -> None:
    """What went through the page cache instead is no measurement of direct I/O."""
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(ramfs / ".io-trial-of-mine", os.O_RDONLY | os.O_DIRECT)
    outcome = io_trial.try_out(ramfs)
    assert (outcome.rates["write", True], outcome.rates["read", True]) == (0, 0)
    assert outcome.rates["write", False] > 0 < outcome.rates["read", False]
    assert_nothing_left(ramfs)


def test_errors_are_the_outcome(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A quota that is reached by the trial, or a directory that is gone, is for the save itself to report."""
    require_strace()
    log = tmp_path_factory.mktemp("trace") / "log"
    full = {"pwrite64": "error=EDQUOT"}
    assert in_a_traced_child(lambda: report(directory), full, [], log) == "ValueError: Disk quota exceeded"
    assert_nothing_left(directory)
    assert io_trial.try_out(directory / "gone").problem == "No such file or directory"


def test_a_program_that_can_start_no_thread_tries_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a program, for example, where saves still work."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert io_trial.try_out(directory).problem == "no thread could be started"
    assert_nothing_left(directory)
