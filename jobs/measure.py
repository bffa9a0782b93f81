"""The trial loop: ceiling, then save, sync, commit, evict, load, verify, clean. The only place with a clock.

    one trial:   save ──────────────────► load, cold ► load, warm ► clean
                 │ call │ sync │ commit │
                 └─────── total ────────┘

The clock is innermost: collectors start, clock, work, clock, collectors stop. Building the state, imports,
eviction, verification and cleaning lie outside.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt import commit, direct_io, storage
from ckpt.state import State, first_difference, mapped_file, poison
from jobs.cost import Cost, collect
from jobs.study import Trials
from jobs.timing_log import NOT_APPLICABLE, Ceiling, DiskUse, Sample, TimingLog

if TYPE_CHECKING:
    from ckpt.strategy import Strategy

COLD_BELOW = 0.01
"""A load counts as cold if less than this share of the checkpoint's pages was cached before it."""

_DIFFERS = "loaded state differs"
_NOT_DURABLE = "not durable"
_NOT_OWNED = "not in memory of its own"
_WRONG_ANSWERS = (_DIFFERS, _NOT_DURABLE, _NOT_OWNED)
"""How the reasons of invalid samples begin that say what a strategy did wrong without failing."""

_MOST_TRIALS = 10_000
"""Where `min_time_s` asks for more, something else is wrong."""


class TrialError(Exception):
    """A strategy failed in a trial; the samples are in the log, marked."""


class Trial:
    """One trial of one strategy: what it measures goes into the log."""

    def __init__(
        self,
        number: int,
        strategy: Strategy,
        state: State,
        log: TimingLog,
        clock: Callable[[], float],
        *,
        warmup: bool,
    ) -> None:
        self._number, self._strategy, self._state = number, strategy, state
        self._log, self._clock, self._warmup = log, clock, warmup

    def save(self, final: Path) -> None:
        """Write a checkpoint until it is durable under its final name.

        Raises:
            TrialError: if the strategy failed.
        """
        staging = commit.begin(final)
        _have_memory(self._log.state["state_bytes"])
        times: list[float] = []
        problem = ""
        with collect() as cost:
            times.append(self._clock())
            try:
                self._strategy.save(self._state, staging)
                times.append(self._clock())
                storage.flush(staging, files=not self._strategy.syncs_files)
                times.append(self._clock())
                commit.publish(staging, final)
            except Exception as error:  # noqa: BLE001  # whatever a library raises, the sample tells it
                problem = f"{type(error).__name__}: {error}"
            times.append(self._clock())
        phases = [("call", "returned"), ("sync", "synced"), ("commit", "committed")]
        for (phase, durability), start, end in zip(phases, times, times[1:], strict=False):
            self._sample("save", phase, start, end, durability=durability, problem=problem)
        dirty = None if problem else storage.dirty_pages(final)
        self._sample(
            "save",
            "total",
            times[0],
            times[-1],
            durability="committed",
            cost=cost,
            dirty=dirty,
            problem=problem
            or (f"{_NOT_DURABLE}: {dirty} pages were not on storage when it had ended" if dirty else ""),
        )
        if problem:
            raise TrialError(problem)
        self._log.disk.append(DiskUse(trial=self._number, **asdict(storage.inventory(final))))

    def load(self, final: Path, *, cold: bool) -> None:
        """Read the checkpoint back, with the page cache emptied or as it is, and compare every bit.

        Raises:
            TrialError: if the strategy failed.
        """
        if cold:
            storage.evict(final)
        resident = storage.resident_fraction(final)
        proven = resident < COLD_BELOW and not self._log.storage.get("cache_caveat")
        cache = ("cold" if proven else "cold-unproven") if cold else "warm"
        problem, loaded = "", {}
        gc.collect()
        _have_memory(self._log.state["state_bytes"])
        with collect() as cost:
            start = self._clock()
            try:
                loaded = self._strategy.load(final)
            except Exception as error:  # noqa: BLE001  # as above
                problem = f"{type(error).__name__}: {error}"
            end = self._clock()
        wrong = "" if problem else self._verify(loaded)
        self._sample(
            "load",
            "total",
            start,
            end,
            cache=cache,
            resident=resident,
            cost=cost,
            problem=problem or wrong,
        )
        if problem:
            raise TrialError(problem)

    def _verify(self, loaded: State) -> str:
        """What is wrong with a loaded state, empty if nothing; then poison it."""
        try:
            if _storages(self._state) & _storages(loaded):
                return f"{_DIFFERS}: it is the saved one itself, and nothing was read"
            file = mapped_file(loaded)
            if file:
                return f"{_NOT_OWNED}: it is mapped from {file}, which is read when somebody looks"
            mismatch = first_difference(self._state, loaded)
            poison(loaded)
        except Exception as error:  # noqa: BLE001  # a strategy may return anything
            return f"{_DIFFERS}: it is no dict of tensors ({type(error).__name__}: {error})"
        return f"{_DIFFERS}: {mismatch}" if mismatch else ""

    def _sample(
        self,
        operation: str,
        phase: str,
        start: float,
        end: float,
        *,
        durability: str = NOT_APPLICABLE,
        cache: str = NOT_APPLICABLE,
        resident: float = math.nan,
        cost: Cost | None = None,
        dirty: int | None = None,
        problem: str = "",
    ) -> None:
        self._log.samples.append(
            Sample(
                trial=self._number,
                warmup=self._warmup,
                rank=0,
                operation=operation,
                phase=phase,
                start_s=start,
                duration_s=end - start,
                state_bytes=self._log.state["state_bytes"],
                durability=durability,
                cache=cache,
                resident_fraction=resident,
                valid=not problem,
                reason=problem,
                dirty_pages=-1 if dirty is None else dirty,
                **asdict(cost or Cost()),
            )
        )


def run_trials(
    strategy: Strategy,
    state: State,
    scratch: Path,
    trials: Trials,
    log: TimingLog,
    *,
    save_log: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Run a job's trials between two measurements of the ceiling; `save_log` is called after each.

    A log that holds trials already (of an earlier run of the same job) is continued: warm-ups come again, since
    this process is a new one, and then the trials that are missing.

    Raises:
        TrialError: if the strategy failed; the trial's samples are in the log, marked.
    """
    if not _more(log, trials):
        return
    first = number = max((sample.trial for sample in log.samples), default=-1) + 1
    if trials.ceiling:
        measure_ceiling("before", scratch, log, clock)
        save_log()
    while number < first + trials.warmups or _more(log, trials):
        trial = Trial(number, strategy, state, log, clock, warmup=number < first + trials.warmups)
        final = scratch / f"trial-{number}"
        try:
            trial.save(final)
            if trials.cold:
                trial.load(final, cold=True)
            if trials.warm_load:
                trial.load(final, cold=False)
        finally:
            save_log()
            for leftover in scratch.iterdir():  # the checkpoint, or what a failed save left of it
                shutil.rmtree(leftover)
        number += 1
    if trials.ceiling:
        measure_ceiling("after", scratch, log, clock)


def _more(log: TimingLog, trials: Trials) -> bool:
    """Whether the study asks for another measured trial."""
    done = finished_trials(log, trials)
    time_s = sum(s.duration_s for s in log.samples if s.trial in done and s.phase == "total")
    return len(done) < trials.repeats or (time_s < trials.min_time_s and len(done) < _MOST_TRIALS)


def finished_trials(log: TimingLog, trials: Trials) -> set[int]:
    """The measured trials whose samples are all there; a wrong answer counts, a failed strategy does not."""
    failed = {s.trial for s in log.samples if not s.valid and not s.reason.startswith(_WRONG_ANSWERS)}
    loads = Counter(s.trial for s in log.samples if s.operation == "load" and not s.warmup)
    return {trial for trial, count in loads.items() if count == trials.cold + trials.warm_load} - failed


def measure_ceiling(when: str, scratch: Path, log: TimingLog, clock: Callable[[], float]) -> None:
    """Write and read as many bytes as the state has, on the same target, as fast as the storage takes them.

    A copy of as many bytes in memory goes with it. No strategy can be faster than these for long. Where the target
    refuses, the log's provenance says why, and the trials go on.
    """
    size_bytes = direct_io.round_up(log.state["state_bytes"])
    path = scratch / "ceiling"

    def note(operation: str, work: Callable[[], bool]) -> None:
        start = clock()
        direct = work()
        end = clock()
        log.ceiling.append(
            Ceiling(
                when=when,
                operation=operation,
                size_bytes=size_bytes,
                start_s=start,
                duration_s=end - start,
                direct=direct,
            )
        )

    try:
        note("write", lambda: direct_io.write_sequentially(path, size_bytes, seed=len(log.ceiling)))
        storage.evict(scratch)  # where the filesystem refused direct I/O, the file lies in the page cache
        note("read", lambda: direct_io.read_sequentially(path))
        note("copy", lambda: direct_io.copy_memory(size_bytes))
    except OSError as error:
        log.provenance[f"ceiling_{when}"] = f"unknown ({type(error).__name__}: {error})"
    finally:
        path.unlink(missing_ok=True)


def _have_memory(size_bytes: int) -> None:
    """Touch as much memory as the operation will want, and give it back.

    A virtual machine's host takes memory back that has been free for a few seconds. To get it again can take longer
    than the disk does, and whether it has to depends on what ran before, and not on the strategy.
    """
    direct_io.populate(direct_io.aligned_buffer(max(1, size_bytes)))


def _storages(state: State) -> set[int]:
    """The addresses of the memory that a state's tensors lie in."""
    return {tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}


def describe_clock() -> dict[str, Any]:
    """The clock that durations are taken with."""
    info = time.get_clock_info("perf_counter")
    return {"clock": info.implementation, "clock_resolution_s": info.resolution}
