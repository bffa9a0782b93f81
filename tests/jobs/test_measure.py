"""The trial loop: what the clock encloses and what not, and what becomes of strategies that fail or lie."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.disk import commit, durable, io_plan, listing, mounts, page_cache, writeback
from ckpt.state.layout import State, TensorLayout
from ckpt.strategy import Capabilities, Syncs
from jobs.node import ceiling, trial, usage
from jobs.node.ceiling import measure_ceiling
from jobs.node.context import JobContext
from jobs.node.groups import ProcessGroups
from jobs.node.measure import run_trials
from jobs.node.proof import PROVEN, examine
from jobs.node.recorder import Progress, Recorder, finished_trials
from jobs.node.subject import Subject
from jobs.node.topology import assign
from jobs.node.trial import TrialError
from jobs.paths import StudyPaths
from jobs.plan.plan import make_plan
from jobs.plan.study import Trials
from jobs.plan.study_file import parse
from jobs.timing_log import Sample, TimingLog
from support.logs import header_of, job

MIB = 2**20


class FakeClock:
    """A clock that stands still until someone takes time."""

    def __init__(self, events: list[str]) -> None:
        self.now_s, self._events = 100.0, events

    def __call__(self) -> float:
        """The time, in seconds."""
        self._events.append("clock")
        return self.now_s


class FakeStrategy:
    """One file per tensor, written and read with plain file operations; tells `events` what it is asked for."""

    capabilities = Capabilities()

    def __init__(self, clock: FakeClock, events: list[str]) -> None:
        self._clock, self._events = clock, events

    def write(self, state: State, directory: Path, *_: Any) -> list[Path]:
        """Save: the tests' state has one shard."""
        return self.save(state, directory)

    def read(self, directory: Path, *_: Any) -> State:
        """Load: the tests' state has one shard."""
        return self.load(directory)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write the files; takes 3 s."""
        self._events.append("save")
        self._clock.now_s += 3
        for name, tensor in state.items():
            (directory / name).write_bytes(tensor.numpy().tobytes())
        return [directory / name for name in state]

    def load(self, directory: Path) -> State:
        """Read them into new memory; takes 5 s."""
        self._events.append("load")
        self._clock.now_s += 5
        return {
            file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32)
            for file in directory.iterdir()
        }


class EventRecorder(Recorder):
    """Tells `events` when the log would be written."""

    def __init__(self, log: TimingLog, events: list[str]) -> None:
        super().__init__(log, None)
        self._events = events

    def flush(self) -> None:
        """Write nothing."""
        self._events.append("log")


@dataclass
class Bench:
    """What a trial loop needs, and the loop."""

    target: Path
    scratch: Path
    state: State
    log: TimingLog
    events: list[str] = field(default_factory=list)
    trials: Trials = field(default_factory=lambda: Trials(ceiling=False, metadata=False, repeats=1, warmups=0))

    def __post_init__(self) -> None:
        self.clock = FakeClock(self.events)
        self.strategy: Any = FakeStrategy(self.clock, self.events)
        self.recorder = EventRecorder(self.log, self.events)
        # As on a local disk, whatever the tests run on, with what this kernel shows.
        examined = examine(self.target, ProcessGroups.alone(), shifted=False)
        self.proof = replace(examined, durability=PROVEN, cold=PROVEN)

    def run(self, **trials: Any) -> None:
        """Run the trials that are missing."""
        self.trials = self.trials.model_copy(update=trials)
        progress = Progress.of(self.log, self.trials)
        run_trials(self.subject(), self.scratch, self.context(), self.recorder, progress)

    def measure_ceiling(self, clock: Any = None) -> None:
        """Measure the ceiling once."""
        context = replace(self.context(), clock=clock or self.clock)
        measure_ceiling("before", self.subject(), self.scratch, context, self.recorder)

    def context(self) -> JobContext:
        """What the process knows of its job."""
        content = {
            "name": "s",
            "strategies": ["torch_save"],
            "state": {"model": "llama-15m"},
            "targets": {"t": {"path": str(self.target)}},
        }
        study = parse(content, "study.toml").model_copy(update={"trials": self.trials})
        clock: Any = self.clock
        job, paths = make_plan(study).jobs[0], StudyPaths(self.target)
        return JobContext(study, job, self.strategy, paths, ProcessGroups.alone(), clock, self.proof)

    def subject(self) -> Subject:
        """What is saved and loaded, by this process alone."""
        layout = tuple(TensorLayout(name, tuple(each.shape), "float32") for name, each in self.state.items())
        groups = ProcessGroups.alone()
        assignment = assign(groups.scale, groups.process, layout, "dim0", 0, node_local=False)
        return Subject(self.strategy, groups, assignment, self.state, self.state)

    def samples(self, operation: str = "", phase: str = "") -> list[Sample]:
        """The samples of an operation and a phase."""
        return [s for s in self.log.samples if operation in {"", s.operation} and phase in {"", s.phase}]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench with a state of 2 MiB, which is on a disk where tmp_path is."""
    target = tmp_path / "target"
    scratch = target / "scratch"
    scratch.mkdir(parents=True)
    state = {"a": torch.arange(MIB / 4, dtype=torch.float32), "b": torch.ones(MIB // 4)}
    header = header_of(job("fake", "t"), study="s", trials_planned=1, status="running")
    return Bench(target, scratch, state, TimingLog(header=header, state={"state_bytes": 2 * MIB}))


@pytest.fixture
def on_disk(bench: Bench) -> None:
    """Only where pages can be evicted."""
    if mounts.mount_of(bench.target).in_memory:
        pytest.skip("temporary files lie in memory here, which has no page cache to evict from")


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


@pytest.mark.usefixtures("on_disk")
def test_cold_by_proof(bench: Bench) -> None:
    """After eviction a load is cold, with the proof; the next one is warm, with all pages in the cache."""
    bench.run(repeats=3)

    cold, warm = bench.samples("load")[::2], bench.samples("load")[1::2]
    assert [s.cache for s in cold] == ["cold"] * 3
    assert all(0 <= s.resident_fraction < 0.01 for s in cold)
    assert [s.cache for s in warm] == ["warm"] * 3
    assert [s.resident_fraction for s in warm] == [1.0] * 3
    assert [s.load_number for s in cold + warm] == [0] * 3 + [1] * 3
    assert {s.load_number for s in bench.samples("save")} == {-1}
    assert all(math.isnan(s.resident_fraction) for s in bench.samples("save"))


@pytest.mark.parametrize("fraction", [0.01, 1.0, math.nan])
def test_not_proven_cold(fraction: float, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages stay in the cache, or nobody knows, the sample says that it isn't proven to be cold."""
    monkeypatch.setattr(page_cache, "residency", lambda *_: (1, fraction))
    bench.run()

    assert [s.cache for s in bench.samples("load")] == ["cold-unproven", "warm"]


def test_without_eviction_nothing_is_cold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction that has no effect is noticed by what is resident, not assumed."""
    monkeypatch.setattr(page_cache, "evict", lambda *_: None)
    bench.run(warm_load=False)

    (load,) = bench.samples("load")
    assert (load.cache, load.resident_fraction, load.valid) == ("cold-unproven", 1.0, True)


@pytest.mark.parametrize(
    ("fails", "phases"),
    [
        ("save", [("save", "call"), ("save", "total")]),
        ("flush", [("save", "call"), ("save", "sync"), ("save", "total")]),
        ("publish", [("save", "call"), ("save", "sync"), ("save", "commit"), ("save", "total")]),
        ("load", [("load", "total")]),
    ],
)
def test_failure(fails: str, phases: Sequence[tuple[str, str]], bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the second of three trials ends the job; its samples stay, marked with the reason.

    The log is written, the scratch directory is empty, and a later run does the trials that are missing.
    """
    owner = {"flush": durable, "publish": commit.Staging}.get(fails, bench.strategy)
    real, calls = getattr(owner, fails), [0]

    def fail(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, fails, fail)
    with pytest.raises(TrialError, match="No space left on device"):
        bench.run(repeats=3, warm_load=False)

    invalid = [s for s in bench.log.samples if not s.valid]
    assert phases == [(s.operation, s.phase) for s in invalid]
    assert {(1, "OSError: [Errno 28] No space left on device")} == {(s.trial, s.reason) for s in invalid}
    assert bench.events[-1] == "log"
    assert list(bench.scratch.iterdir()) == []
    assert {0} == finished_trials(bench.log.samples, bench.trials)

    bench.run()
    assert {0, 2, 3} == finished_trials(bench.log.samples, bench.trials)


def test_a_full_disk_that_a_library_does_not_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample has the reason all the same, since the filesystem takes no more."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.strategy, "save", fail)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrialError, match=r"^No space left on device, .* free: RuntimeError: .*unexpected pos"):
        bench.run(repeats=1)
    assert all(s.reason.startswith("No space left on device") for s in bench.log.samples if not s.valid)
    assert not any(s.valid for s in bench.log.samples)


def _one_bit_wrong(state: State) -> Any:
    state["b"].view(torch.int32)[-1] ^= 1
    return state


WRONG = {
    "one bit": (_one_bit_wrong, "b: 1 of 1048576 bytes differ"),
    "a tensor missing": (lambda state: {"a": state["a"]}, "missing ['b']"),
    "a tensor too many": (lambda state: state | {"c": state["a"]}, "not expected ['c']"),
    "another dtype": (lambda state: {name: each.double() for name, each in state.items()}, "found torch.float64"),
    "another shape": (
        lambda state: {name: each.reshape(2, -1) for name, each in state.items()},
        "found torch.float32 [2,",
    ),
    "nothing": (lambda state: None if state else state, "no dict of tensors"),
    "numpy arrays": (lambda state: {name: each.numpy() for name, each in state.items()}, "no dict of tensors"),
}


@pytest.mark.parametrize(("spoil", "told"), WRONG.values(), ids=WRONG)
def test_wrong_answer(spoil: Callable[[State], Any], told: str, bench: Bench) -> None:
    """A load that isn't the saved state, bit for bit, is an invalid sample that says where; measuring goes on."""
    right = bench.strategy.load
    bench.strategy.load = lambda directory: spoil(right(directory))
    bench.run(repeats=2)

    assert [s.valid for s in bench.samples("load")] == [False] * 4
    assert all(s.reason.startswith("loaded state differs: ") and told in s.reason for s in bench.samples("load"))
    assert all(s.valid for s in bench.samples("save"))
    assert {0, 1} == finished_trials(bench.log.samples, bench.trials)


def test_recycled_memory_is_no_load(bench: Bench) -> None:
    """A strategy that reads once and hands out the same memory again is found out: that memory was poisoned."""
    read, kept = bench.strategy.load, []

    def lazy(directory: Path) -> State:
        kept[:] = kept or [read(directory)]
        return dict(kept[0])

    bench.strategy.load = lazy
    bench.run()

    assert [s.valid for s in bench.samples("load")] == [True, False]
    assert bench.samples("load")[1].reason.startswith("loaded state differs: a: ")


def test_the_saved_state_itself_is_no_load(bench: Bench) -> None:
    """A strategy that hands out the very tensors that were saved is found out, and the state stays as it was."""
    before = {name: tensor.clone() for name, tensor in bench.state.items()}
    bench.strategy.load = lambda _: {name: tensor[:] for name, tensor in bench.state.items()}
    bench.run(repeats=2)

    assert [s.valid for s in bench.samples("load")] == [False] * 4
    assert {"loaded state differs: it is the saved one itself, and nothing was read"} == {
        s.reason for s in bench.samples("load")
    }
    assert all(torch.equal(before[name], bench.state[name]) for name in before)


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
        file = bench.scratch / "ceiling-0"
        if file.exists():
            seen.append((page_cache.dirty_pages_of([file], bench.proof.sight), page_cache.resident_fraction_of(file)))
        return bench.clock.now_s

    log = bench.log
    bench.measure_ceiling(clock)

    assert {dirty for dirty, _ in seen} <= {0, None}
    reads = [each for each in log.ceiling if each.operation == "read"]
    assert {True} == {each.resident_fraction < 0.01 for each in reads}
    assert {True} == {math.isnan(each.resident_fraction) for each in log.ceiling if each.operation != "read"}
    # Buffered I/O fills the page cache, so that the write's end, and the read's, see all of the file in it.
    assert [resident for _, resident in seen][-3:] == pytest.approx([1, 0, 1])


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


def test_a_study_may_leave_out_cold_loads(bench: Bench) -> None:
    """Then nothing is evicted, and the only loads are warm."""
    bench.run(cold=False, repeats=2)

    assert [sample.cache for sample in bench.samples("load")] == ["warm", "warm"]


def test_a_least_time_adds_trials(bench: Bench) -> None:
    """`min_time_s` goes beyond `repeats`: a trial takes 3 s of saving and twice 5 s of loading."""
    bench.run(repeats=1, min_time_s=30)

    assert len(bench.samples("save", "total")) == 3


def test_a_write_error_that_reaches_no_file_makes_a_save_invalid(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the filesystem remembers of a failed write counts, too. (The kernel's error is played here.)"""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writeback, "raise_errors", fail)
    bench.run()

    (total,) = bench.samples("save", "total")
    assert total.reason.startswith("not durable: ")
    assert "Input/output error" in total.reason
    assert not total.valid


def test_files_that_are_not_on_storage_make_a_save_invalid(bench: Bench) -> None:
    """A strategy that says that it has synced its files, and has not."""
    bench.strategy.capabilities = Capabilities(syncs=Syncs.ALL_FILES)
    bench.run()

    (total,) = bench.samples("save", "total")
    if total.dirty_pages == -1:
        pytest.skip("this kernel has no cachestat: it can't be known")
    assert total.dirty_pages > 0
    assert not total.valid
    assert total.reason.startswith("not durable: ")


def test_a_mapped_file_is_not_a_load(bench: Bench) -> None:
    """Memory that is mapped from the checkpoint has not been read, and is invalid."""

    def lazy(directory: Path) -> State:
        return {
            file.name: torch.from_file(str(file), size=file.stat().st_size // 4, dtype=torch.float32)
            for file in sorted(directory.iterdir())
        }

    bench.strategy.load = lazy
    bench.run()

    assert {False} == {sample.valid for sample in bench.samples("load")}
    assert all(sample.reason.startswith("not in memory of its own: ") for sample in bench.samples("load"))


def test_a_cache_that_nobody_can_look_into_proves_nothing(bench: Bench) -> None:
    """On Lustre and its like no load is called proven cold."""
    bench.proof = replace(bench.proof, cold="servers have caches")
    bench.run()

    assert bench.samples("load")[0].cache == "cold-unproven"


def test_what_another_client_wrote_is_not_in_this_nodes_cache(bench: Bench) -> None:
    """A load of what another node wrote is cold as far as this node goes, and only that far."""
    bench.proof = replace(bench.proof, cold="servers have caches", beyond=True)
    bench.run()

    assert bench.samples("load")[0].cache == "client-cold"


def test_another_clients_data_that_are_in_this_nodes_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page cache that holds the checkpoint all the same makes the load unproven."""
    bench.proof = replace(bench.proof, cold="servers have caches", beyond=True)
    monkeypatch.setattr(page_cache, "evict", lambda *_: None)
    bench.run()

    assert bench.samples("load")[0].cache == "cold-unproven"


def test_durability_that_nobody_can_see(bench: Bench) -> None:
    """Where the kernel counts no dirty pages a save is committed, but not called durable; nor are 0 pages logged."""
    bench.proof = replace(bench.proof, dirty_seen=False, durability="the kernel counts no dirty pages")
    bench.run()

    assert [s.durability for s in bench.samples("save")] == [
        "returned", "synced", "committed-unproven", "committed-unproven",
    ]  # fmt: skip
    assert {-1} == {s.dirty_pages for s in bench.samples("save")}
    assert {True} == {s.valid for s in bench.samples("save")}


def test_servers_may_hold_what_this_kernel_has_sent(bench: Bench) -> None:
    """Where this kernel's dirty pages are seen, but not the servers', they are counted, and prove nothing."""
    bench.proof = replace(bench.proof, durability="servers have memory")
    bench.run()

    (total,) = bench.samples("save", "total")
    dirty_pages = 0 if bench.proof.dirty_seen else -1
    assert (total.durability, total.dirty_pages, total.valid) == ("committed-unproven", dirty_pages, True)


def test_residency_that_nobody_can_see_is_unknown(bench: Bench) -> None:
    """Where the kernel counts no cached pages, none counted is not none cached."""
    bench.proof = replace(bench.proof, resident_seen="")
    bench.run()

    cold, warm = bench.samples("load")
    assert (cold.cache, warm.cache) == ("cold-unproven", "warm")
    assert math.isnan(cold.resident_fraction)
    assert math.isnan(warm.resident_fraction)


@pytest.mark.parametrize("counted", [True, False])
def test_bytes_that_the_kernel_does_not_count_are_unknown(bench: Bench, *, counted: bool) -> None:
    """On FUSE a process fetches nothing from storage by its counter: its number is not known, rather than 0."""
    bench.proof = replace(bench.proof, reads_counted=counted)
    bench.run()

    assert (bench.samples("load")[0].device_read_bytes >= 0) is counted


def test_a_target_that_refuses_the_ceiling_costs_no_trial(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says why there is none, and the trials are measured all the same."""

    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(27, "File too large")

    monkeypatch.setattr(ceiling.sequential, "write_sequentially", refuse)
    bench.run(ceiling=True)

    assert bench.log.ceiling == []
    assert "File too large" in bench.log.provenance["ceiling_before"]
    assert {True} == {sample.valid for sample in bench.log.samples}
