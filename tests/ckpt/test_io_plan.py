"""How files are written and read, by what a directory lies on; and what a strategy makes of it."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckpt.background.process import ProcessSaver
from ckpt.disk import commit, direct_io, io_plan, io_trial, mounts, sequential
from ckpt.disk.io_plan import IoPlan
from ckpt.strategies.safetensors_tuned import SafetensorsTuned
from ckpt.strategies.tensorstore_tuned import TensorstoreTuned
from support import tasks

CACHED = IoPlan(direct_writes=False, direct_reads=False, preallocate=False, why="a test")


@pytest.fixture(autouse=True)
def _no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_plan, "_plans", {})


def on(filesystem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every directory lie on that filesystem, which doesn't say whether it does direct I/O."""
    mount = mounts.Mount(filesystem, "source", "rw", "/")
    monkeypatch.setattr(mounts, "mount_of", lambda _: mount)
    monkeypatch.setattr(direct_io, "direct_alignment", lambda _: None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ext4", (True, True, True, False)),
        ("btrfs", (False, False, False, False)),
        ("fuse.glusterfs", (False, False, False, True)),
        ("fuse.ceph-fuse", (False, True, False, False)),
    ],
)
def test_what_is_known_decides(
    name: str, expected: tuple[bool, bool, bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried on a filesystem that is known; Btrfs gets no preallocation, which keeps it from compressing."""
    on(name, monkeypatch)
    monkeypatch.setattr(sequential, "write_sequentially", lambda *_, **__: pytest.fail("it was tried"))
    plan = io_plan.plan_for(tmp_path)
    assert (plan.direct_writes, plan.direct_reads, plan.preallocate, plan.several_files) == expected
    assert name in str(plan)


@pytest.mark.parametrize(
    ("write_s", "read_s", "expected"),
    [
        ((0.1, 0.2), (0.2, 0.1), (True, False)),
        ((0.2, 0.1), (0.1, 0.2), (False, True)),
        ((0.12, 0.1), (0.14, 0.1), (True, False)),
    ],
    ids=["writes", "reads", "not clearly"],
)
def test_an_unknown_filesystem_is_tried_once(
    write_s: tuple[float, float],
    read_s: tuple[float, float],
    expected: tuple[bool, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The faster way counts, for writes and reads apart, and direct I/O also where it is a little slower.

    Nothing is left, and a second answer needs no trial.
    """
    on("fuse.unheard", monkeypatch)
    now_s = 0.0
    monkeypatch.setattr(io_trial, "time", SimpleNamespace(perf_counter=lambda: now_s))
    tried: list[str] = []

    def write(path: Path, *_: Any, direct: bool, **__: Any) -> bool:
        nonlocal now_s
        tried.append("write")
        path.write_bytes(b"x")
        now_s += write_s[not direct]
        return direct

    def read(_: Path, *, direct: bool) -> bool:
        nonlocal now_s
        now_s += read_s[not direct]
        return direct

    monkeypatch.setattr(sequential, "write_sequentially", write)
    monkeypatch.setattr(sequential, "read_sequentially", read)
    plan = io_plan.plan_for(tmp_path)
    assert (plan.direct_writes, plan.direct_reads) == expected
    assert "fuse.unheard was tried" in plan.why
    assert not list(tmp_path.iterdir())
    count = len(tried)
    assert io_plan.plan_for(tmp_path) is plan
    assert len(tried) == count


def test_direct_io_that_goes_through_the_cache_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that takes `O_DIRECT` and ignores it gets buffered files, however fast they were."""
    on("fuse.unheard", monkeypatch)
    monkeypatch.setattr(direct_io.page_cache, "is_uncached", lambda *_: False)
    plan = io_plan.plan_for(tmp_path)
    assert (plan.direct_writes, plan.direct_reads, plan.preallocate) == (False, False, False)


def test_a_filesystem_that_says_so_does_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """statx(2) tells of the filesystem below an overlay, too: then nothing needs to be timed."""
    on("overlay", monkeypatch)
    monkeypatch.setattr(direct_io, "direct_alignment", lambda _: 512)
    plan = io_plan.plan_for(tmp_path)
    assert (plan.direct_writes, plan.direct_reads, plan.preallocate) == (True, True, True)


def test_where_nothing_may_be_written_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load leaves a checkpoint's directory alone, and a save there may still try."""
    on("fuse.unheard", monkeypatch)
    before = tmp_path.stat().st_mtime_ns
    assert "nothing is known" in io_plan.plan_for(tmp_path, may_write=False).why
    assert tmp_path.stat().st_mtime_ns == before
    assert "was tried" in io_plan.plan_for(tmp_path).why


def test_a_trial_that_fails_ends_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota may leave no room for the small file, and enough for the checkpoint."""
    on("fuse.unheard", monkeypatch)

    def full(*_: Any, **__: Any) -> bool:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(sequential, "write_sequentially", full)
    assert "Disk quota exceeded" in io_plan.plan_for(tmp_path).why
    assert not list(tmp_path.iterdir())


def test_a_filesystem_that_hangs_holds_up_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is that of a filesystem of which nothing is known, with the reason, and later saves don't wait again."""
    on("fuse.unheard", monkeypatch)
    hung = threading.Event()
    monkeypatch.setattr(sequential, "write_sequentially", lambda *_, **__: hung.wait())
    monkeypatch.setattr(io_trial.try_out, "__defaults__", (0.2,))
    plan = io_plan.plan_for(tmp_path)
    assert "fuse.unheard could not be tried: that was not done within 0.2 s" == plan.why
    assert (plan.direct_writes, plan.direct_reads, plan.preallocate) == (False, True, False)
    assert io_plan.plan_for(tmp_path) is plan
    hung.set()


def test_a_trial_lies_beside_a_checkpoint_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs, and removes its file late, must not change what the checkpoint's manifest lists."""
    on("fuse.unheard", monkeypatch)
    tried: list[Path] = []
    monkeypatch.setattr(io_trial, "try_out", lambda path: tried.append(path) or io_trial.Outcome(problem="a test"))
    with commit.begin(tmp_path / "checkpoint") as staging:
        io_plan.plan_for(staging.path)
    assert tried == [tmp_path]


def test_a_plan_of_another_rank_needs_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that sees a new directory late writes there, and below, as the job agreed; beside it, by its own plan."""
    on("fuse.unheard", monkeypatch)
    monkeypatch.setattr(sequential, "write_sequentially", lambda *_, **__: pytest.fail("it was tried"))
    late = tmp_path / "late"
    io_plan.remember(late, CACHED)
    (late / "trial-1").mkdir(parents=True)
    assert io_plan.plan_for(late / "trial-1") is CACHED
    assert io_plan.plan_for(late / "trial-1", may_write=False) is CACHED
    assert io_plan.plan_for(tmp_path, may_write=False) is not CACHED


@pytest.mark.parametrize("agreed", [True, False], ids=["agreed on", "found here"])
def test_a_process_that_saves_takes_the_program_s_plans(
    agreed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no plan of its own for a filesystem whose plan the program has, from other ranks or from a trial."""
    with ProcessSaver() as saver:
        saver.start(saver.take({}), partial(tasks.plan_of, tmp_path)).result()  # it has a plan already
        on("fuse.unheard", monkeypatch)
        if agreed:
            io_plan.remember(tmp_path, CACHED)
        plan = io_plan.plan_for(tmp_path)
        assert "fuse.unheard was tried" in plan.why or agreed
        assert plan == saver.start(saver.take({}), partial(tasks.plan_of, tmp_path)).result().value


@pytest.mark.parametrize("direct", ["auto", True, False])
@pytest.mark.parametrize("planned", [True, False])
def test_a_strategy_follows_the_plan_unless_told_otherwise(
    direct: Any, planned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are the same either way, and load either way."""
    asked: list[bool] = []
    init = direct_io.DirectFile.__init__

    def note(self: direct_io.DirectFile, path: Path, flags: int, *, direct: bool = True) -> None:
        asked.append(direct)
        init(self, path, flags, direct=direct)

    monkeypatch.setattr(direct_io.DirectFile, "__init__", note)
    io_plan.remember(tmp_path, IoPlan(planned, planned, preallocate=planned, why="a test"))
    state = {"w": torch.arange(3_000_000, dtype=torch.float32), "b": torch.ones(7)}
    strategy = SafetensorsTuned(direct=direct)
    (file,) = strategy.save(state, tmp_path)
    content = file.read_bytes()
    os.sync()
    direct_io.page_cache.evict(tmp_path)
    loaded = strategy.load(tmp_path)
    assert asked == [planned if direct == "auto" else direct] * 2
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    (tmp_path / "other").mkdir()
    (other,) = SafetensorsTuned(direct=False).save(state, tmp_path / "other")
    assert other.read_bytes() == content


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("direct", ["auto", True, False])
def test_tensorstore_follows_the_plan_unless_told_otherwise(
    direct: Any, planned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads past the page cache or through it, and flushes what it has written where direct writes are slower."""
    pytest.importorskip("tensorstore")
    modes: list[bool] = []
    flushed: list[Path] = []
    context = TensorstoreTuned._context

    def noted(self: TensorstoreTuned, *, direct: bool = False) -> Any:
        modes.append(direct)
        return context(self, direct=direct)

    monkeypatch.setattr(TensorstoreTuned, "_context", noted)
    monkeypatch.setattr(direct_io, "start_writeback_of", flushed.append)
    io_plan.remember(tmp_path, IoPlan(planned, planned, preallocate=planned, why="a test"))
    state = {"w": torch.arange(3_000_000, dtype=torch.float32), "b": torch.ones(7)}
    strategy = TensorstoreTuned(direct=direct, chunk_mib=4)
    files = strategy.save(state, tmp_path)
    os.sync()
    direct_io.page_cache.evict(tmp_path)
    loaded = strategy.load(tmp_path)
    expected = planned if direct == "auto" else direct
    assert modes == [False, expected]
    chunks = [] if expected else [file for file in files if file.name.startswith("c")]
    assert sorted(chunks) == sorted(flushed)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_buffered_writes_are_flushed_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of a file is on its way to storage before the save returns, so that fsync finds little to do."""
    started: list[tuple[int, int]] = []
    monkeypatch.setattr(
        direct_io, "start_writeback", lambda _, offset, size_bytes: started.append((offset, size_bytes))
    )
    io_plan.remember(tmp_path, CACHED)
    (file,) = SafetensorsTuned().save({"w": torch.ones(5_000_000)}, tmp_path)
    covered = 0
    for offset, size_bytes in sorted(started):
        assert offset <= covered
        covered = max(covered, offset + size_bytes)
    assert covered >= file.stat().st_size
