"""The trial loop: the ceiling, then trials, then the ceiling again; on every process of a job alike."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ckpt.disk import direct_io, page_cache
from ckpt.errors import LostRankError
from ckpt.process_group.store_group import StoreGroup
from jobs.node import received
from jobs.node.trial import WRONG_ANSWERS, Subject, Trial, TrialError
from jobs.plan.study import Trials
from jobs.timing_log import Ceiling, Sample, TimingLog

_MOST_TRIALS = 10_000
"""Where `min_time_s` asks for more, something else is wrong."""

_LAST_WORDS_S = 10
"""How long the first process waits for the others' samples when a trial has failed: some may be lost."""


def run_trials(
    subject: Subject,
    scratch: Path,
    trials: Trials,
    log: TimingLog,
    *,
    save_log: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Run a job's trials between two measurements of the ceiling; every process of the job calls it.

    The first process's log gets everybody's rows after each trial, and there `save_log` is called then. A log that
    holds trials already (of an earlier run of the same job) is continued: warm-ups come again, since this process is a
    new one, and then the trials that are missing.

    Raises:
        TrialError: if the strategy failed; the trial's samples are in the log, marked.
    """
    world = subject.crew.world

    def more() -> bool:
        return bool(world.broadcast(int(_more(log, trials)), received.count))

    if not more():
        return
    first = number = world.broadcast(max((sample.trial for sample in log.samples), default=-1) + 1, received.count)
    if trials.ceiling:
        measure_ceiling("before", subject, scratch, log, clock)
        save_log()
    while number < first + trials.warmups or more():
        trial = Trial(number, subject, log, clock, warmup=number < first + trials.warmups)
        _run_trial(trial, subject, scratch / f"trial-{number}", trials, log, save_log)
        number += 1
    if trials.ceiling:
        measure_ceiling("after", subject, scratch, log, clock)


def _run_trial(
    trial: Trial, subject: Subject, final: Path, trials: Trials, log: TimingLog, save_log: Callable[[], None]
) -> None:
    """One trial on this process; then everybody's samples are in the first one's log, and what was written is gone."""
    world = subject.crew.world
    known = len(log.samples)
    lost = ""
    failed = True
    try:
        trial.save(final)
        if trials.cold:
            trial.load(final, cold=True)
        if trials.warm_load:
            trial.load(final, cold=False)
        rows = world.gather([asdict(sample) for sample in log.samples[known:]])
        world.barrier()  # nobody reads any more
        log.samples += itertools.chain(*world.read(rows, received.rows(Sample))[1:])
        failed = False
    except LostRankError as error:
        lost = str(error)
        raise TrialError(lost) from None
    finally:
        if failed and isinstance(world, StoreGroup):
            _note_failure(world, log, known, lost)
        save_log()
        if subject.crew.leads:
            for leftover in final.parent.iterdir():  # the checkpoint, or what a failed save left of it
                shutil.rmtree(leftover, ignore_errors=failed)  # others may be at work still


def _note_failure(world: StoreGroup, log: TimingLog, known: int, lost: str) -> None:
    """Take the samples of the processes that are left; where one failed or is lost, mark all of the trial."""
    own = [asdict(sample) for sample in log.samples[known:]]
    left = world.gather_survivors("samples", own, _LAST_WORDS_S)
    rows: list[Sample] = []
    for rank, sent in sorted(left.items()):
        if rank:
            with suppress(ValueError, TypeError):  # the job fails already, and says why
                rows += received.rows(Sample)(sent)
    samples = [*log.samples[known:], *rows]
    reason = lost or next((sample.reason for sample in samples if sample.reason), "")
    if reason:  # none, where the job was interrupted
        samples = [replace(each, valid=False, reason=each.reason or reason) for each in samples]
    log.samples[known:] = samples


def _more(log: TimingLog, trials: Trials) -> bool:
    """Whether the study asks for another measured trial."""
    done = finished_trials(log, trials)
    time_s = sum(s.duration_s for s in log.samples if s.trial in done and s.phase == "total" and s.rank == 0)
    return len(done) < trials.repeats or (time_s < trials.min_time_s and len(done) < _MOST_TRIALS)


def finished_trials(log: TimingLog, trials: Trials) -> set[int]:
    """The measured trials whose samples are all there; a wrong answer counts, a failed strategy does not."""
    failed = {s.trial for s in log.samples if not s.valid and not s.reason.startswith(WRONG_ANSWERS)}
    loads = Counter(s.trial for s in log.samples if s.operation == "load" and not s.warmup and s.rank == 0)
    return {trial for trial, count in loads.items() if count == trials.cold + trials.warm_load} - failed


def measure_ceiling(when: str, subject: Subject, scratch: Path, log: TimingLog, clock: Callable[[], float]) -> None:
    """Write and read as many bytes as the state has, on the same target, as fast as the storage takes them.

    First past the page cache, then through it, where that isn't the same: the faster one is the ceiling, and on some
    filesystems it is the second by far. All processes that save do so at the same time, each the bytes of its share. A
    copy of as many bytes in memory goes with it. No strategy can be faster than these for long. Where the target
    refuses, the log's provenance says why, and the trials go on.
    """
    crew = subject.crew
    size_bytes = direct_io.round_up(subject.saved_bytes)
    path = scratch / f"ceiling-{crew.place.number}"
    rows: list[Ceiling] = []
    problem = ""
    refused = False
    resident = math.nan
    for buffered, operation in _CEILING:
        crew.world.barrier()
        if problem or not subject.parts.saves or (buffered and refused):
            continue
        try:
            start = clock()
            # A rank may have no share.
            direct = _move(operation, path, size_bytes, direct=not buffered) if size_bytes else True
            end = clock()
            row = Ceiling(
                when=when,
                operation=operation,
                size_bytes=size_bytes,
                start_s=start,
                duration_s=end - start,
                direct=direct,
                rank=crew.place.number,
                buffered=buffered,
            )
            if operation == "read":
                row = replace(row, resident_fraction=resident)
                path.unlink(missing_ok=True)
            elif path.exists():
                page_cache.evict_file(path)
                resident = page_cache.resident_fraction_of(path)
            rows.append(row)
            refused |= not (direct or buffered)
        except OSError as error:
            problem = f"unknown ({type(error).__name__}: {error})"
    path.unlink(missing_ok=True)
    sent = crew.world.gather((problem, [asdict(row) for row in rows]))
    for told, found in crew.world.read(sent, received.pair(received.text, received.rows(Ceiling))):
        log.ceiling += found
        if told:
            log.provenance[f"ceiling_{when}"] = told


_CEILING = ((False, "write"), (False, "read"), (True, "write"), (True, "read"), (False, "copy"))
"""What is measured of a ceiling, in this order: through the page cache or not, and what."""


def _move(operation: str, path: Path, size_bytes: int, *, direct: bool) -> bool:
    """Do what a ceiling is measured of; returns whether it went past the page cache."""
    if operation == "write":
        return direct_io.write_sequentially(path, size_bytes, direct=direct)
    return (
        direct_io.read_sequentially(path, direct=direct) if operation == "read" else direct_io.copy_memory(size_bytes)
    )


def describe_clock() -> dict[str, Any]:
    """The clock that durations are taken with."""
    info = time.get_clock_info("perf_counter")
    return {"clock": info.implementation, "clock_resolution_s": info.resolution}
