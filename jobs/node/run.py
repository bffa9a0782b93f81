"""One job, start to end, on the node: build the state, run the trials, leave a timing log.

`run_job(results, job_id)` is what submitit calls; `python -m jobs job RESULTS JOB_ID` does the same by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt import strategy
from ckpt.errors import MissingLibraryError
from ckpt.process_group.store_group import StoreGroup
from ckpt.strategy import Strategy
from ckpt.workload.spec import layout_of
from jobs import timing_log
from jobs.errors import StudyError, TimingLogError
from jobs.node import provenance, received, targets
from jobs.node.clock import Clock, agree
from jobs.node.crew import Crew, Place, assemble, parts_of, place_of
from jobs.node.interrupt import Interrupted, interruptible
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.plan import Job
from jobs.plan.study import Study
from jobs.timing_log import COMPLETE, FAILED, GOOD, INTERRUPTED, RUNNING, SKIPPED, Header, Rank, TimingLog, progress

if TYPE_CHECKING:
    from jobs.node.trial import Subject

_NEVER_MET = re.compile(r"rank 0 (left no address|can't be reached|\(.*\) is gone or hangs)")
"""How a rank that never met the first one says so."""


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
    place = place_of(job, os.environ)
    log, clock = _open_log(paths, planned.study, job, place)
    if log.header.status == COMPLETE:
        _say(job, "complete already")
        return COMPLETE
    log.header.status, log.header.error = RUNNING, ""
    if place.number == 0:
        log.write(paths.log(job.id))

    def note_interruption(reason: str) -> None:
        log.header.status, log.header.error = INTERRUPTED, reason

    crew: Crew | None = None
    try:
        with interruptible(note_interruption):
            target = planned.study.targets[job.target]
            limit_s = planned.study.trials.rank_timeout_s
            crew = assemble(job, paths, place, node_local=target.on_each_node, timeout_s=limit_s)
            _measure(planned.study, job, log, clock, paths, crew, submitted_version)
        log.header.status = COMPLETE
    except MissingLibraryError as error:
        log.header.status = SKIPPED if error.optional else FAILED
        log.header.error = str(error)
    except Interrupted as interruption:
        note_interruption(str(interruption))
    except Exception as error:  # noqa: BLE001  # whatever it was: the log names it, and analysis shows it
        log.header.status, log.header.error = FAILED, f"{type(error).__name__}: {error}"
    _end(job, paths, log, place, crew)
    return log.header.status


def _end(job: Job, paths: StudyPaths, log: TimingLog, place: Place, crew: Crew | None) -> None:
    """Tell how the job ended: the log, the journal, the other ranks."""
    if crew and log.header.status != COMPLETE:
        crew.world.fail(log.header.error)
    if place.number == 0:
        log.write(paths.log(job.id))
    lost = crew.first_is_lost if crew else ""
    if lost and log.header.status == COMPLETE and _has_ended(paths.log(job.id)):
        lost = ""  # it wrote the log, waited a while for this rank's farewell, and left
    if lost and lost not in log.header.error:  # a library said something else, or srun ends the others already
        log.header.status, log.header.error = FAILED, f"{lost}; {log.header.error}"
    if place.number and (lost or _NEVER_MET.search(log.header.error)):
        _note_loss_of_the_first(paths, job, place, log.header.error)
    if place.number == 0 or log.header.status not in GOOD:
        who = f"rank {place.number}: " if place.count > 1 else ""
        _say(job, f"{who}{log.header.status} {log.header.error}".rstrip())
    if crew:
        crew.leave()


def _has_ended(path: Path) -> bool:
    """Whether the first rank wrote a log's end."""
    try:
        return timing_log.read(path).header.status != RUNNING
    except TimingLogError:
        return False


def _note_loss_of_the_first(paths: StudyPaths, job: Job, place: Place, error: str) -> None:
    """The log's writer is gone: one of those that are left, whichever comes first, says so in its place."""
    path, turn = paths.log(job.id), paths.slurm / f"{job.id}.{place.launch}.lost"
    try:
        turn.touch(exist_ok=False)
    except OSError:  # another one does
        return
    try:
        with contextlib.suppress(TimingLogError):  # it left none
            left = timing_log.read(path)
            if left.header.status == RUNNING:
                left.header.status, left.header.error = FAILED, error
                left.write(path)
    finally:
        turn.unlink(missing_ok=True)


def _open_log(paths: StudyPaths, study: Study, job: Job, place: Place) -> tuple[TimingLog, Clock]:
    """A new log, or the job's earlier one with the trials that it holds; that is the first rank's to write.

    Other ranks keep their rows in one of their own until the first one has them.
    """
    path = paths.log(job.id)
    try:
        log = timing_log.read(path)
    except TimingLogError as error:
        if place.number == 0 and path.exists():  # damaged, or foreign: not ours to overwrite
            aside = path.with_suffix(f".unreadable-{time.time_ns()}")
            path.rename(aside)
            _say(job, f"{error}; moved to {aside}, starting anew")
    else:
        if place.number == 0 or log.header.status == COMPLETE:
            return log, Clock(log.header.clock_zero_unix_s)
    clock = Clock()
    return _new_log(study, job, clock), clock


def _new_log(study: Study, job: Job, clock: Clock) -> TimingLog:
    chosen = strategy.create(job.strategy, job.options)
    return TimingLog(
        header=Header(
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
            load_ranks=job.load_ranks if job.scale.reshards else 0,
            read_shift=study.trials.read_shift,
        )
    )


def _measure(
    study: Study, job: Job, log: TimingLog, clock: Clock, paths: StudyPaths, crew: Crew, submitted_version: str
) -> None:
    # Here, not above: it imports torch, and `python -m jobs plan` has to start without it.
    from jobs.node import measure

    first = crew.place.number == 0
    target = study.targets[job.target]
    log.provenance = provenance.of_machine(submitted_version, study.model_dump_json()) | measure.describe_clock()
    if first and progress.version_changed(log.provenance):
        _say(job, f"the code is not what was submitted: {progress.version_changed(log.provenance)}")
    log.provenance["node_local"] = target.on_each_node
    log.provenance["dirty_bytes_before"] = provenance.dirty_bytes()
    steal = provenance.Steal()
    directory = targets.resolve(job.target, target, os.environ)
    log.storage = provenance.of_storage(directory)
    targets.check(job.target, target, directory, job.directory_bytes, job.directory_files)
    chosen = strategy.create(job.strategy, job.options)
    chosen.prepare()
    log.ranks = _ranks(crew, clock)
    if first:
        _say(job, f"building the state: {job.state_bytes / 1e9:.2f} GB of {study.state.model}")
    subject = _subject(study, job, crew, chosen, log, paths)

    def save_log() -> None:
        if first:
            log.provenance["steal_share"] = steal.share()
            log.write(paths.log(job.id))
            _say(job, _last_trial(log))

    with crew.led(targets.scratch(directory, job, paths.root, on_each_node=target.on_each_node)) as scratch:
        if first:
            _say(job, f"writing to {scratch}")
        measure.run_trials(subject, scratch, study.trials, log, save_log=save_log, clock=clock)
        crew.world.barrier()


def _ranks(crew: Crew, clock: Clock) -> list[Rank]:
    """Set the clocks, and say who the processes are; on the first one."""
    uncertainty_s = agree(crew.world, clock) if isinstance(crew.world, StoreGroup) else 0.0
    mine = Rank(
        rank=crew.place.number,
        host=platform.node(),
        node=crew.place.node,
        process_id=os.getpid(),
        clock_uncertainty_s=uncertainty_s,
    )
    return crew.world.read(crew.world.gather(asdict(mine)), received.row(Rank))


def _subject(study: Study, job: Job, crew: Crew, chosen: Strategy, log: TimingLog, paths: StudyPaths) -> Subject:
    """Build what this process saves and loads, and describe the whole state."""
    from ckpt.workload import building
    from jobs.node.trial import Subject

    node_local = study.targets[job.target].on_each_node
    parts = parts_of(crew, layout_of(study.state), study.state.sharding, study.trials.read_shift, node_local=node_local)
    state: dict[str, Any] = {}
    if parts.own and crew.savers:
        state = building.build(study.state, parts.own)
        described = building.describe(state, study.state, parts.own, crew.savers)
        if crew.place.number == 0:
            if log.state.get("digest") not in {None, described["digest"]}:
                raise StudyError(
                    f"the log holds trials of another state (digest {log.state['digest']}), so this run can't continue "
                    f"it: move {paths.log(job.id)} away, and submit again"
                )
            log.state = described
    expected = state if parts.loads_its_own or not parts.source else building.build(study.state, parts.source)
    return Subject(chosen, crew, parts, state, expected)


def _last_trial(log: TimingLog) -> str:
    """One line about the last trial, for the job's journal."""
    if not log.samples:  # interrupted before the first measurement
        return "nothing is measured yet"
    number = log.samples[-1].trial
    totals = [s for s in log.samples if s.trial == number and s.phase == "total" and s.rank == 0]
    parts = [f"{s.operation}{'' if s.operation == 'save' else ' ' + s.cache} {s.duration_s:.2f} s" for s in totals]
    problems = "; ".join(sorted({s.reason for s in log.samples if s.trial == number and s.reason}))
    warmup = " (warm-up)" if totals[0].warmup else ""
    return f"trial {number}{warmup}: {', '.join(parts)}{' — ' + problems if problems else ''}"


def _say(job: Job, message: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {job.id}: {message}", flush=True)
