"""The ceiling that a job measures: what the target does by itself, and how files are written there."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import io_plan, mounts, page_cache
from jobs.node import ceiling
from support.bench import MIB, Bench


def test_the_ceiling_is_measured_before_and_after(bench: Bench) -> None:
    """As many bytes as the state has, written and read past the page cache and through it, and copied; none is left."""
    bench.run(ceiling=True, repeats=2)

    if not all(each.direct for each in bench.log.ceiling if not each.buffered and each.operation != "copy"):
        pytest.skip("this filesystem takes no direct I/O")
    measured = [(each.when, each.operation, each.buffered, each.direct, each.size_bytes) for each in bench.log.ceiling]
    kinds = [("write", False), ("read", False), ("write", True), ("read", True), ("copy", False)]
    assert measured == [
        (when, operation, buffered, not buffered and operation != "copy", 2 * MIB)
        for when in ("before", "after")
        for operation, buffered in kinds
    ]
    assert list(bench.scratch.iterdir()) == []


@pytest.mark.usefixtures("on_disk")
def test_a_ceiling_is_synced_and_cold_as_trials_are(bench: Bench) -> None:
    """A write's clock ends when no page is dirty; before a read its pages are evicted, and what stayed is logged."""
    seen: list[tuple[int | None, float]] = []

    def clock() -> float:
        bench.clock.now_s += 1
        file = bench.scratch / "ceiling-0" / "0"
        if file.exists():
            seen.append((page_cache.dirty_pages_of([file], bench.proof.sight), page_cache.resident_fraction_of(file)))
        return bench.clock.now_s

    log = bench.log
    bench.measure_ceiling(clock)

    assert {dirty for dirty, _ in seen} <= {0, None}
    reads = [each for each in log.ceiling if each.operation == "read"]
    assert {True} == {each.resident_fraction < 0.01 for each in reads}
    assert {True} == {math.isnan(each.resident_fraction) for each in log.ceiling if each.operation != "read"}
    # Buffered I/O fills the page cache, so that the write's end, and the read's, see the file in it: all of it, where
    # nobody else needs the memory.
    written, evicted, read = (resident for _, resident in seen[-3:])
    assert evicted < 0.01
    assert min(written, read) > 0.5


@pytest.mark.parametrize(("type_", "count"), [("xfs", 1), ("tmpfs", 1), ("lustre", 4), ("overlay", 4)])
def test_files_on_servers_are_several(type_: str, count: int, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files may lie on different servers or disks, they do so in the ceiling; no page of any two is the same."""
    monkeypatch.setattr(mounts, "mount_of", lambda _: mounts.Mount(type_, "source", "rw", "/"))
    pages: list[list[bytes]] = []

    def clock() -> float:
        files = sorted((bench.scratch / "ceiling-0").glob("*"))
        content = b"".join(file.read_bytes() for file in files)
        pages.append([content[start : start + 4096] for start in range(0, len(content), 4096)])
        assert len(files) in {0, count}
        bench.clock.now_s += 1
        return bench.clock.now_s

    bench.measure_ceiling(clock)

    moved = [(each.files, each.size_bytes) for each in bench.log.ceiling if each.operation != "copy"]
    assert moved == [(count, 2 * MIB)] * 4
    assert {len(seen) for seen in pages} == {0, 512}
    assert {len(set(seen)) for seen in pages} == {0, 512}


def test_how_files_are_written_is_found_out_before_the_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown filesystem is tried before anything is measured, and the log has what came of it."""
    monkeypatch.setattr(io_plan, "_plans", {})
    monkeypatch.setattr(mounts, "mount_of", lambda _: mounts.Mount("fuse.unheard", "source", "rw", "/"))
    tried = io_plan._of_trial

    def noted(directory: Path, filesystem: str) -> io_plan.IoPlan:
        bench.events.append("tried")
        return tried(directory, filesystem)

    monkeypatch.setattr(io_plan, "_of_trial", noted)
    bench.run(ceiling=True)

    assert bench.events.count("tried") == 1
    assert bench.events.index("tried") < bench.events.index("clock")
    assert "fuse.unheard" in bench.log.provenance["io_plan"]


def test_where_direct_io_is_refused_no_ceiling_is_called_direct(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went through the page cache both times, and the log says so."""
    opened = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    bench.measure_ceiling()

    found = [(each.operation, each.buffered, each.direct) for each in bench.log.ceiling]
    moves = [("write", False, False), ("read", False, False), ("write", True, False), ("read", True, False)]
    assert found == [*moves, ("copy", False, False)]


def test_a_target_that_refuses_the_ceiling_costs_no_trial(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says why there is none, and the trials are measured all the same."""

    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(27, "File too large")

    monkeypatch.setattr(ceiling.sequential, "write_sequentially", refuse)
    bench.run(ceiling=True)

    assert bench.log.ceiling == []
    assert "File too large" in bench.log.provenance["ceiling_before"]
    assert {True} == {sample.valid for sample in bench.log.samples}
