"""One job, start to end, on the node: build the state, run the trials, leave a timing log.

submitit calls `run_submitted`; `python -m jobs job RESULTS JOB_ID` runs the same job by hand.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt import registry
from ckpt.errors import MissingLibraryError
from ckpt.process_group.store_group import StoreGroup
from ckpt.strategy import Strategy
from ckpt.workload.spec import layout_of
from jobs import timing_log
from jobs.errors import ResultsError, StudyError, TimingLogError
from jobs.node import provenance, received, targets
from jobs.node.answer import await_target
from jobs.node.clock import Clock, agree, describe_clock
from jobs.node.context import JobContext
from jobs.node.groups import ProcessGroups, connect
from jobs.node.interrupt import Interrupted, interruptible
from jobs.node.proof import examine, storage_facts
from jobs.node.recorder import Progress, Recorder, journal
from jobs.node.requeue import requeue_if_preempted
from jobs.node.second_level import second_level
from jobs.node.storage import facts
from jobs.node.topology import ProcessInfo, assign, process_info
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.plan import Job
from jobs.plan.study import Study
from jobs.timing_log import COMPLETE, FAILED, GOOD, INTERRUPTED, RUNNING, SKIPPED, Header, Rank, TimingLog
from jobs.timing_log.progress import version_changed

if TYPE_CHECKING:
    from jobs.node.subject import Subject

_NEVER_MET = re.compile(r"rank 0 (left no address|can't be reached|\(.*\) is gone or hangs)")
"""The error of a rank that never met the first one."""


def run_submitted(results: str, job_id: str, submitted_version: str) -> None:
    """Run one job for a scheduler: the process ends with 1 if the log isn't complete, and the job wasn't skipped.

    Raises:
        SystemExit: with that code.
    """
    try:
        status = run_job(results, job_id, submitted_version)
    except ResultsError as error:  # the log can't have the reason
        journal(job_id, str(error))
        print(error, file=sys.stderr)  # whose last line `status` shows for a job whose log has no end
        sys.exit(1)
    if status not in GOOD:
        sys.exit(1)


def run_job(results: str, job_id: str, submitted_version: str = "") -> str:
    """Run one job of the study in `results`; returns the status that its log ends with.

    A failure is recorded in the log, and not raised: the log is the result. `submitted_version` is the version of the
    code when the job was submitted, since jobs wait and code moves on.

    Raises:
        ResultsError: if the log itself can't be written, or an earlier run's can't be read.
    """
    paths = StudyPaths(Path(results))
    planned = plan.from_json(paths.plan_json.read_text(), str(paths.plan_json))
    study, job = planned.study, planned.job(job_id)
    process = process_info(job, os.environ)
    method = registry.create(job.strategy, job.options)
    log, clock = _open_log(paths, study, job, method, process)
    if log.header.status == COMPLETE:
        journal(job.id, "complete already")
        return COMPLETE
    progress = Progress.of(log, study.trials, study.loop)
    recorder = Recorder(log, paths.log(job.id) if process.rank == 0 else None)
    recorder.status(RUNNING)
    recorder.flush()
    groups: ProcessGroups | None = None
    try:
        with interruptible(lambda reason: recorder.status(INTERRUPTED, reason)):
            node_local = study.targets[job.target].on_each_node
            limit_s = study.trials.rank_timeout_s
            groups = connect(job, paths, process, node_local=node_local, timeout_s=limit_s)
            _measure(JobContext(study, job, method, paths, groups, clock), recorder, progress, submitted_version)
        ending = _Ending(COMPLETE)
    except MissingLibraryError as error:
        ending = _Ending(SKIPPED if error.optional else FAILED, str(error))
    except Interrupted as interruption:
        ending = _Ending(INTERRUPTED, str(interruption))
    except Exception as error:  # noqa: BLE001  # whatever it was: the log names it, and analysis shows it
        ending = _Ending(FAILED, f"{type(error).__name__}: {error}")
    recorder.status(ending.status, ending.error)
    if groups and ending.status != COMPLETE:
        groups.world.fail(ending.error)
    recorder.flush()
    return _end(job, paths, process, groups, ending)


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a job ended, and what went wrong."""

    status: str
    error: str = ""


def _end(job: Job, paths: StudyPaths, process: ProcessInfo, groups: ProcessGroups | None, ending: _Ending) -> str:
    """Tell the journal and the other ranks how the job ended; returns its status as this rank knows it."""
    lost = groups.first_is_lost if groups else ""
    if lost and ending.status == COMPLETE and _has_ended(paths.log(job.id)):
        lost = ""  # it wrote the log, waited a while for this rank's farewell, and left
    if lost and lost not in ending.error:  # a library failed in other words, or srun ends the others already
        ending = _Ending(FAILED, f"{lost}; {ending.error}")
    if process.rank and (lost or _NEVER_MET.search(ending.error)):
        _record_loss_of_the_first(paths, job, process, ending.error)
    if process.rank == 0 or ending.status not in GOOD:
        rank = f"rank {process.rank}: " if process.size > 1 else ""
        journal(job.id, f"{rank}{ending.status} {ending.error}".rstrip())
    if groups:
        groups.leave()
    if process.rank == 0 and ending.status == INTERRUPTED:
        requeue_if_preempted(job.id, os.environ)
    return ending.status


def _has_ended(path: Path) -> bool:
    """Whether the first rank wrote a log's end."""
    try:
        return timing_log.read(path).header.status != RUNNING
    except TimingLogError:
        return False


def _record_loss_of_the_first(paths: StudyPaths, job: Job, process: ProcessInfo, error: str) -> None:
    """Mark the log of a job whose first rank is gone; of the ranks that are left, the first to get here does it."""
    path, turn = paths.log(job.id), paths.slurm / f"{job.id}.{process.launch}.lost"
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


def _open_log(
    paths: StudyPaths, study: Study, job: Job, method: Strategy, process: ProcessInfo
) -> tuple[TimingLog, Clock]:
    """A new log, or the job's earlier one with the trials that it holds; only the first rank continues that one."""
    path = paths.log(job.id)
    try:
        log = timing_log.read(path)
    except TimingLogError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.EIO, errno.ESTALE}:
            raise ResultsError(f"{error}: when its filesystem works again, submit the study again") from error
        if process.rank == 0 and path.exists():  # damaged, or foreign: not ours to overwrite
            aside = path.with_suffix(f".unreadable-{time.time_ns()}")
            path.rename(aside)
            journal(job.id, f"{error}; moved to {aside}, starting anew")
    else:
        if process.rank == 0 or log.header.status == COMPLETE:
            return log, Clock(log.header.clock_zero_unix_s, log.end_s())
    clock = Clock()
    return _new_log(study, job, method, clock), clock


def _new_log(study: Study, job: Job, method: Strategy, clock: Clock) -> TimingLog:
    return TimingLog(
        header=Header(
            study=study.name,
            job_id=job.id,
            strategy=job.strategy,
            label=job.label,
            strategy_options=json.dumps(job.options, sort_keys=True),
            strategy_facts=json.dumps(method.facts()),
            target=job.target,
            round=job.round,
            nodes=job.nodes,
            tasks_per_node=job.tasks_per_node,
            trials_planned=job.trials if study.loop else study.trials.repeats,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            clock_zero_unix_s=clock.zero_unix_s,
            load_ranks=job.load_ranks if job.scale.reshards else 0,
            read_shift=study.trials.read_shift,
            way=job.way,
            loop=json.dumps(study.loop.setting(job.step), sort_keys=True) if study.loop else "",
        )
    )


def _measure(context: JobContext, recorder: Recorder, progress: Progress, submitted_version: str) -> None:
    # Here, not above: it imports torch, and `python -m jobs plan` has to start without it.
    from jobs.node import measure
    from jobs.node.loop.run import run_loop

    study, job, target = context.study, context.job, context.target
    machine = provenance.of_machine(submitted_version, study.model_dump_json()) | describe_clock()
    machine |= {"node_local": target.on_each_node, "dirty_bytes_before": provenance.dirty_bytes()}
    if context.is_first and version_changed(machine):
        journal(job.id, f"the code is not what was submitted: {version_changed(machine)}")
    recorder.start(machine)
    directory = targets.resolve(job.target, target, os.environ)
    await_target(directory, context)
    storage = facts.of_storage(directory)
    recorder.storage(storage)
    targets.check(job.target, target, directory, job.directory_bytes, job.directory_files)
    if context.is_first:
        recorder.storage(facts.of_servers(directory))
    context.method.prepare()
    recorder.ranks(_ranks(context))
    if context.is_first:
        journal(job.id, f"building the state: {job.state_bytes / 1e9:.2f} GB of {study.state.model}")
    subject = _subject(context, recorder, progress)
    job_directory = targets.scratch(directory, job, context.paths.root, on_each_node=target.on_each_node)
    with context.groups.shared(job_directory) as scratch, second_level(context, recorder) as leveled:
        if context.is_first:
            journal(job.id, f"writing to {scratch}")
        proof = examine(scratch, context.groups, shifted=study.trials.read_shift > 0)
        recorder.storage(storage | storage_facts(scratch, proof))
        body = run_loop if study.loop else measure.run_trials
        body(subject, scratch, replace(leveled, proof=proof), recorder, progress)
        context.groups.world.barrier()


def _ranks(context: JobContext) -> list[Rank]:
    """Set the clocks of all processes by the first one's, and list the processes; empty on all but the first."""
    world, process = context.groups.world, context.groups.process
    uncertainty_s = agree(world, context.clock) if isinstance(world, StoreGroup) else 0.0
    mine = Rank(
        rank=process.rank,
        host=platform.node(),
        node=process.node,
        process_id=os.getpid(),
        clock_uncertainty_s=uncertainty_s,
    )
    return world.read(world.gather(asdict(mine)), received.row(Rank))


def _subject(context: JobContext, recorder: Recorder, progress: Progress) -> Subject:
    """Build what this process saves and loads, and describe the whole state."""
    from ckpt.workload import building
    from jobs.node.subject import Subject

    spec, groups = context.study.state, context.groups
    assignment = assign(
        groups.scale, groups.process, layout_of(spec), spec.sharding, context.study.trials.read_shift,
        node_local=context.target.on_each_node,
    )  # fmt: skip
    state: dict[str, Any] = {}
    if assignment.own and groups.savers:
        state = building.build(spec, assignment.own)
        described = building.describe(state, spec, assignment.own, groups.savers)
        if context.is_first:
            if progress.digest not in {None, described["digest"]}:
                raise StudyError(
                    f"the log holds trials of another state (digest {progress.digest}), so this run can't continue "
                    f"it: move {context.paths.log(context.job.id)} away, and submit again"
                )
            recorder.state(described)
    same = assignment.loads_its_own or not assignment.source
    expected = state if same else building.build(spec, assignment.source)
    return Subject(context.method, groups, assignment, state, expected)
