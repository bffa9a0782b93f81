"""One job, start to end, on the node: build the state, run the trials, leave a timing log.

`run_job(results, job_id)` is what submitit calls; `python -m jobs job RESULTS JOB_ID` does the same by hand.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ckpt import strategy
from ckpt.errors import MissingLibraryError
from jobs import plan, provenance, targets, timing_log
from jobs.errors import StudyError, TimingLogError
from jobs.interrupt import Interrupted, interruptible
from jobs.paths import StudyPaths
from jobs.plan import Job
from jobs.study import Study
from jobs.timing_log import COMPLETE, FAILED, GOOD, INTERRUPTED, RUNNING, SKIPPED, Header, TimingLog


def run_submitted(results: str, job_id: str, submitted_version: str) -> None:
    """Run one job for a scheduler: the process ends with 1 if the log isn't complete, and the job wasn't skipped.

    Raises:
        SystemExit: as said.
    """
    if run_job(results, job_id, submitted_version) not in GOOD:
        sys.exit(1)


def run_job(results: str, job_id: str, submitted_version: str = "") -> str:
    """Run one job of the study in `results`; returns the status that its log ends with.

    A failure is told by the log, and not raised: the log is the result. `submitted_version` is the version of the
    code when the job was submitted, since jobs wait and code moves on.

    Raises:
        OSError: if the log itself can't be written.
    """
    paths = StudyPaths(Path(results))
    planned = plan.from_json(paths.plan_json.read_text(), str(paths.plan_json))
    job = planned.job(job_id)
    log, clock = _open_log(paths, planned.study, job)
    if log.header.status == COMPLETE:
        _say(job, "complete already")
        return COMPLETE
    log.header.status, log.header.error = RUNNING, ""
    log.write(paths.log(job.id))

    def note_interruption(reason: str) -> None:
        log.header.status, log.header.error = INTERRUPTED, reason

    try:
        with interruptible(note_interruption):
            _measure(planned.study, job, log, clock, paths, submitted_version)
        log.header.status = COMPLETE
    except MissingLibraryError as error:
        log.header.status = SKIPPED if error.optional else FAILED
        log.header.error = str(error)
    except Interrupted as interruption:
        note_interruption(str(interruption))
    except Exception as error:  # noqa: BLE001  # whatever it was: the log names it, and analysis shows it
        log.header.status, log.header.error = FAILED, f"{type(error).__name__}: {error}"
    log.write(paths.log(job.id))
    _say(job, f"{log.header.status} {log.header.error}".rstrip())
    return log.header.status


class Clock:
    """Seconds since a zero whose calendar time is known; monotonic."""

    def __init__(self, zero_unix_s: float | None = None) -> None:
        self._zero = time.perf_counter()
        self.zero_unix_s = time.time()
        if zero_unix_s is not None:  # a log that is continued keeps its zero
            self._zero -= self.zero_unix_s - zero_unix_s
            self.zero_unix_s = zero_unix_s

    def __call__(self) -> float:
        """Seconds since the zero."""
        return time.perf_counter() - self._zero


def _open_log(paths: StudyPaths, study: Study, job: Job) -> tuple[TimingLog, Clock]:
    """A new log, or the job's earlier one with the trials that it holds."""
    path = paths.log(job.id)
    try:
        log = timing_log.read(path)
    except TimingLogError as error:
        if path.exists():  # damaged, or foreign: not ours to overwrite
            aside = path.with_suffix(f".unreadable-{time.time_ns()}")
            path.rename(aside)
            _say(job, f"{error}; moved to {aside}, starting anew")
        chosen = strategy.create(job.strategy, job.options)
        clock = Clock()
        header = Header(
            study=study.name,
            job_id=job.id,
            strategy=job.strategy,
            label=job.label,
            strategy_options=json.dumps(job.options, sort_keys=True),
            strategy_facts=json.dumps(asdict(chosen.facts)),
            target=job.target,
            round=job.round,
            nodes=job.nodes,
            tasks_per_node=job.tasks_per_node,
            trials_planned=study.trials.repeats,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            clock_zero_unix_s=clock.zero_unix_s,
        )
        return TimingLog(header=header), clock
    return log, Clock(log.header.clock_zero_unix_s)


def _measure(study: Study, job: Job, log: TimingLog, clock: Clock, paths: StudyPaths, submitted_version: str) -> None:
    # Here, not above: they import torch, and `python -m jobs plan` has to start without it.
    from ckpt import state as states
    from jobs import measure

    log.provenance = provenance.of_machine(submitted_version, study.model_dump_json()) | measure.describe_clock()
    if provenance.version_changed(log.provenance):
        _say(job, f"the code is not what was submitted: {provenance.version_changed(log.provenance)}")
    target = study.targets[job.target]
    log.provenance["node_local"] = target.node_local or target.path is None
    log.provenance["dirty_bytes_before"] = provenance.dirty_bytes()
    steal = provenance.Steal()
    directory = targets.resolve(job.target, target, os.environ)
    log.storage = provenance.of_storage(directory)
    targets.check(job.target, target, directory, job.checkpoint_bytes, job.checkpoint_files)
    chosen = strategy.create(job.strategy, job.options)
    chosen.prepare()
    _say(job, f"building the state: {job.state_bytes / 1e9:.2f} GB of {study.state.model}")
    state = states.build(study.state)
    described = states.describe(state, study.state)
    if log.state.get("digest") not in {None, described["digest"]}:
        raise StudyError(
            f"the log holds trials of another state (digest {log.state['digest']}), so this run can't continue it: "
            f"move {paths.log(job.id)} away, and submit again"
        )
    log.state = described

    def save_log() -> None:
        log.provenance["steal_share"] = steal.share()
        log.write(paths.log(job.id))
        _say(job, _last_trial(log))

    with targets.scratch(directory, job, paths.root) as scratch:
        _say(job, f"writing to {scratch}")
        measure.run_trials(chosen, state, scratch, study.trials, log, save_log=save_log, clock=clock)


def _last_trial(log: TimingLog) -> str:
    """One line about the last trial, for the job's journal."""
    if not log.samples:  # interrupted before the first measurement
        return "nothing is measured yet"
    number = log.samples[-1].trial
    totals = [s for s in log.samples if s.trial == number and s.phase == "total"]
    parts = [f"{s.operation}{'' if s.operation == 'save' else ' ' + s.cache} {s.duration_s:.2f} s" for s in totals]
    problems = "; ".join(sorted({s.reason for s in totals if s.reason}))
    warmup = " (warm-up)" if totals[0].warmup else ""
    return f"trial {number}{warmup}: {', '.join(parts)}{' — ' + problems if problems else ''}"


def _say(job: Job, message: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {job.id}: {message}", flush=True)
