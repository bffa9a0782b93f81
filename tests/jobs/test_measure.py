"""The trial loop: what the clock encloses and what not, and which trials there are."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.disk import commit, durable, listing, page_cache
from ckpt.state.layout import State
from ckpt.strategy import Capabilities, Syncs
from jobs.node import trial, usage
from jobs.node.recorder import finished_trials
from support.bench import MIB, Bench


@pytest.fixture
def watched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench on which everything around the strategy tells when it is called, and takes time."""

    def watch(module: Any, function: str, event: str, seconds: float) -> None:
        real: Callable[..., Any] = getattr(module, function)

        def told(*arguments: Any, **named: Any) -> Any:
            bench.events.append(event)
            bench.clock.now_s += seconds
            return real(*arguments, **named)

        monkeypatch.setattr(module, function, told)

    watch(commit, "begin", "begin", 1000)
    watch(durable, "flush", "flush", 2)
    watch(commit.Staging, "publish", "publish", 1)
    watch(listing, "inventory", "inventory", 1000)
    watch(page_cache, "evict", "evict", 1000)
    watch(page_cache, "residency", "resident", 1000)
    watch(trial, "first_difference", "verify", 1000)
    watch(trial, "poison", "poison", 1000)
    watch(usage, "_reset_peak", "collect", 1000)
    watch(usage, "_io", "io", 1000)
    watch(shutil, "rmtree", "clean", 1000)
    return bench


def test_order_of_events(watched: Bench) -> None:
    """The clock is innermost: collectors start, clock, work, clock, collectors stop; all else lies outside."""
    watched.run()

    save = "begin io collect clock save clock flush clock publish clock io inventory"
    cold = "evict resident io collect clock load clock io verify poison"
    warm = "resident io collect clock load clock io verify poison"
    assert f"{save} {cold} {warm} log clean".split() == watched.events


def test_durations(watched: Bench) -> None:
    """A duration is that of the work and of nothing around it, and a save's phases follow one another."""
    watched.run()

    assert [(s.operation, s.phase, s.durability, s.cache, s.duration_s) for s in watched.log.samples] == [
        ("save", "call", "returned", "n/a", 3),
        ("save", "sync", "synced", "n/a", 2),
        ("save", "commit", "committed", "n/a", 1),
        ("save", "total", "committed", "n/a", 6),
        ("load", "total", "n/a", watched.samples("load")[0].cache, 5),
        ("load", "total", "n/a", "warm", 5),
    ]
    call, sync, publish, total = watched.samples("save")
    assert total.start_s == call.start_s
    assert call.start_s + call.duration_s == sync.start_s
    assert sync.start_s + sync.duration_s == publish.start_s


def test_a_strategy_that_syncs_its_files_is_not_synced_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are synced always, files only where the strategy has not done it."""
    synced: list[bool] = []
    real = durable.flush
    monkeypatch.setattr(durable, "flush", lambda path, *, files: (synced.append(files), real(path, files=files)))
    bench.run()
    bench.strategy.capabilities = Capabilities(syncs=Syncs.ALL_FILES)
    bench.run(repeats=2)

    assert synced == [True, False]


def test_warmups_come_first_and_stay(bench: Bench) -> None:
    """Warm-ups are trials as the others are, before them, marked; each trial's disk use is kept."""
    bench.run(warmups=2, repeats=3, warm_load=False)

    assert [s.warmup for s in bench.samples("load")] == [True, True, False, False, False]
    assert [s.trial for s in bench.samples("load")] == [0, 1, 2, 3, 4]
    assert [(use.trial, use.file_count, use.apparent_bytes) for use in bench.log.disk] == [
        (trial, 2, 2 * MIB) for trial in range(5)
    ]
    assert all(s.valid and not s.reason and s.state_bytes == 2 * MIB for s in bench.log.samples)
    assert finished_trials(bench.log.samples, bench.trials) == {2, 3, 4}


def test_a_log_is_continued(bench: Bench) -> None:
    """A log with finished trials gets warm-ups again, for the new process, and the trials that are missing."""
    bench.run(warmups=1, repeats=2, warm_load=False)
    bench.run(repeats=5)

    trials = {s.trial: s.warmup for s in bench.log.samples}
    assert trials == {0: True, 1: False, 2: False, 3: True, 4: False, 5: False, 6: False}
    assert [use.trial for use in bench.log.disk] == list(trials)

    bench.events.clear()
    bench.run()
    bench.run(repeats=3, warmups=9)
    assert bench.events == [], "nothing was missing"


def test_an_interrupted_trial_is_not_finished(bench: Bench) -> None:
    """A trial that was cut off between its two loads is kept as far as it came, and done again as another."""
    read, calls = bench.strategy.load, [0]

    def interrupted(directory: Path) -> State:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return read(directory)

    bench.strategy.load = interrupted
    with pytest.raises(KeyboardInterrupt):
        bench.run(repeats=2)

    assert bench.events[-1] == "log"
    assert list(bench.scratch.iterdir()) == []
    assert {0} == finished_trials(bench.log.samples, bench.trials)
    bench.run()
    assert {0, 2} == finished_trials(bench.log.samples, bench.trials)


def test_one_checkpoint_at_a_time(bench: Bench) -> None:
    """Each trial begins in an empty scratch directory and leaves one, and nothing beside it is touched."""
    (bench.target / "precious").write_text("mine")
    (bench.target / "trial-0").mkdir()
    found: list[int] = []
    save = bench.strategy.save
    bench.strategy.save = lambda state, directory: (
        found.append(len(list(bench.scratch.iterdir()))),
        save(state, directory),
    )
    bench.run(repeats=3)

    assert found == [1, 1, 1]  # the directory to write into
    assert list(bench.scratch.iterdir()) == []
    assert {"precious", "scratch", "trial-0"} == {path.name for path in bench.target.iterdir()}


def test_cost_of_an_operation(bench: Bench) -> None:
    """CPU time and the largest resident set are those of one operation: a costly save doesn't show in a load."""
    save = bench.strategy.save

    def costly(state: State, directory: Path) -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        torch.ones(64 * MIB)  # 256 MiB, gone when the load begins
        save(state, directory)

    bench.strategy.save = costly
    bench.run(warm_load=False)

    (total,), (load,) = bench.samples("save", "total"), bench.samples("load")
    assert 0.2 <= total.cpu_s < 60
    assert 0 <= load.cpu_s < total.cpu_s
    if not usage._reset_peak():
        assert {total.peak_rss_bytes, load.peak_rss_bytes} == {-1}
        return
    assert total.peak_rss_bytes > 256 * MIB
    assert 2 * MIB < load.peak_rss_bytes < total.peak_rss_bytes - 200 * MIB
    assert {-1} == {s.peak_rss_bytes for s in bench.samples("save") if s.phase != "total"}
    assert all(math.isnan(s.cpu_s) for s in bench.samples("save") if s.phase != "total")


def test_a_study_may_leave_out_cold_loads(bench: Bench) -> None:
    """Then nothing is evicted, and the only loads are warm."""
    bench.run(cold=False, repeats=2)

    assert [sample.cache for sample in bench.samples("load")] == ["warm", "warm"]


def test_a_least_time_adds_trials(bench: Bench) -> None:
    """`min_time_s` goes beyond `repeats`: a trial takes 3 s of saving and twice 5 s of loading."""
    bench.run(repeats=1, min_time_s=30)

    assert len(bench.samples("save", "total")) == 3
