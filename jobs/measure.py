"""The trial loop: save, sync, commit, evict, load, verify, clean. The only place with a clock.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt import commit, storage
from ckpt.state import State, first_difference, poison
from jobs.study import Trials
from jobs.timing_log import NOT_APPLICABLE, DiskUse, Sample, TimingLog

if TYPE_CHECKING:
    from ckpt.strategy import Strategy

COLD_BELOW = 0.01
"""A load counts as cold if less than this share of the checkpoint's pages was cached before it."""


@dataclass(slots=True)
class Cost:
    """What an operation cost beside time; filled in when it has ended."""

    cpu_s: float = math.nan
    peak_rss_bytes: int = -1


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
        self._sample("save", "total", times[0], times[-1], durability="committed", cost=cost, problem=problem)
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
        cache = ("cold" if resident < COLD_BELOW else "cold-unproven") if cold else "warm"
        problem, loaded = "", {}
        gc.collect()
        with collect() as cost:
            start = self._clock()
            try:
                loaded = self._strategy.load(final)
            except Exception as error:  # noqa: BLE001  # as above
                problem = f"{type(error).__name__}: {error}"
            end = self._clock()
        mismatch = None if problem else self._verify(loaded)
        self._sample(
            "load",
            "total",
            start,
            end,
            cache=cache,
            resident=resident,
            cost=cost,
            problem=problem or (f"loaded state differs: {mismatch}" if mismatch else ""),
        )
        if problem:
            raise TrialError(problem)

    def _verify(self, loaded: State) -> str | None:
        """Where a loaded state differs from the saved one, if it does; then poison it."""
        try:
            if _storages(self._state) & _storages(loaded):
                return "it is the saved one itself, and nothing was read"
            mismatch = first_difference(self._state, loaded)
            poison(loaded)
        except Exception as error:  # noqa: BLE001  # a strategy may return anything
            return f"it is no dict of tensors ({type(error).__name__}: {error})"
        return mismatch

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
        problem: str = "",
    ) -> None:
        cost = cost or Cost()
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
                cpu_s=cost.cpu_s,
                peak_rss_bytes=cost.peak_rss_bytes,
                valid=not problem,
                reason=problem,
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
    """Run a job's trials; `save_log` is called after each.

    A log that holds trials already (of an earlier run of the same job) is continued: warm-ups come again, since
    this process is a new one, and then the trials that are missing.

    Raises:
        TrialError: if the strategy failed; the trial's samples are in the log, marked.
    """
    missing = max(0, trials.repeats - len(finished_trials(log, trials)))
    first = max((sample.trial for sample in log.samples), default=-1) + 1
    for number in range(first, first + trials.warmups + missing) if missing else ():
        trial = Trial(number, strategy, state, log, clock, warmup=number < first + trials.warmups)
        final = scratch / f"trial-{number}"
        try:
            trial.save(final)
            trial.load(final, cold=True)
            if trials.warm_load:
                trial.load(final, cold=False)
        finally:
            save_log()
            for leftover in scratch.iterdir():  # the checkpoint, or what a failed save left of it
                shutil.rmtree(leftover)


def finished_trials(log: TimingLog, trials: Trials) -> set[int]:
    """The measured trials whose samples are all there; a wrong answer counts, a failed strategy does not."""
    failed = {s.trial for s in log.samples if not s.valid and not s.reason.startswith("loaded state differs")}
    loads = Counter(s.trial for s in log.samples if s.operation == "load" and not s.warmup)
    return {trial for trial, count in loads.items() if count == 1 + trials.warm_load} - failed


def _storages(state: State) -> set[int]:
    """The addresses of the memory that a state's tensors lie in."""
    return {tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}


@contextmanager
def collect() -> Iterator[Cost]:
    """Collect what the work inside costs: CPU time and the largest resident set."""
    cost = Cost()
    resettable = _reset_peak_rss()
    cpu = time.process_time()
    try:
        yield cost
    finally:
        cost.cpu_s = time.process_time() - cpu
        cost.peak_rss_bytes = _peak_rss_bytes() if resettable else -1


def _reset_peak_rss() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the high-water mark
    except OSError:
        return False
    return True


def _peak_rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return -1


def describe_clock() -> dict[str, Any]:
    """The clock that durations are taken with."""
    info = time.get_clock_info("perf_counter")
    return {"clock": info.implementation, "clock_resolution_s": info.resolution}
