"""The trial loop: the ceiling, then trials, then the ceiling again; every process of a job runs it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from ckpt.errors import LostRankError
from ckpt.process_group.store_group import StoreGroup
from jobs.node import around, received
from jobs.node.context import JobContext
from jobs.node.hooks import run_hooks
from jobs.node.recorder import Progress, Recorder, describe_trial, journal
from jobs.node.storage.facts import written_layout
from jobs.node.subject import Subject
from jobs.node.trial import Trial, TrialError
from jobs.plan.study import Trials
from jobs.timing_log import Sample

_MOST_TRIALS = 10_000
"""Where `min_time_s` asks for more, something else is wrong."""

_LAST_WORDS_S = 10
"""How long the first process waits for the others' samples when a trial has failed: some may be lost."""


def run_trials(subject: Subject, scratch: Path, context: JobContext, recorder: Recorder, progress: Progress) -> None:
    """Run a job's trials between two measurements of the ceiling; every process of the job calls it.

    The first process's recorder gets the rows of all processes after every trial, and writes the log then. Where an
    earlier run of the same job has made `progress`, warm-ups come again, since this process is a new one, and then the
    trials that are missing.

    Raises:
        TrialError: if the strategy failed; the trial's samples are in the log, marked.
    """
    trials, world = context.study.trials, context.groups.world

    def more() -> bool:
        return bool(world.broadcast(int(_more(progress, trials)), received.count))

    if not more():
        return
    first = number = world.broadcast(progress.next_trial, received.count)
    with around.trials(subject, scratch, context, recorder):
        while number < first + trials.warmups or more():
            trial = Trial(number, subject, context, warmup=number < first + trials.warmups)
            progress = progress.after(_run_trial(trial, scratch / f"trial-{number}", context, recorder), trials)
            number += 1


def _more(progress: Progress, trials: Trials) -> bool:
    """Whether the study asks for another measured trial."""
    done = progress.finished
    return done < trials.repeats or (progress.measured_s < trials.min_time_s and done < _MOST_TRIALS)


def _run_trial(trial: Trial, final: Path, context: JobContext, recorder: Recorder) -> Sequence[Sample]:
    """Run one trial on this process, record it, and remove what it wrote; returns its samples.

    On the first process these are the samples of all processes, on the others their own.
    """
    groups = context.groups
    samples: Sequence[Sample] = trial.samples
    lost = ""
    failed = True
    try:
        trial.save(final)
        run_hooks("between", final.parent, context, recorder, trial.number)
        _load(trial, final, context)
        if context.is_first and not recorder.knows_of_storage("written_layout"):
            recorder.storage({"written_layout": written_layout(final)})
        sent = groups.world.gather([asdict(sample) for sample in trial.samples])
        groups.world.barrier()  # all processes have read
        others = groups.world.read(sent, received.rows(Sample))[1:]
        samples = [*trial.samples, *itertools.chain(*others)]
        failed = False
    except LostRankError as error:
        lost = str(error)
        raise TrialError(lost) from None
    finally:
        if failed and isinstance(groups.world, StoreGroup):
            samples = _after_failure(groups.world, trial.samples, lost)
        recorder.samples(samples)
        if trial.disk_use is not None:
            recorder.disk_use(trial.disk_use)
        recorder.flush()
        if context.is_first:
            journal(context.job.id, describe_trial(trial.number, samples))
        if groups.is_leader:
            _remove(final.parent, trial.number, failed=failed)
    return samples


def _remove(scratch: Path, trial: int, *, failed: bool) -> None:
    """Remove a trial's checkpoint, or what a failed save left of it, and not a file of the study's commands.

    Raises:
        TrialError: if that can't be done; unless the trial `failed`, whose error says more.
    """
    try:
        for leftover in filter(Path.is_dir, scratch.iterdir()):
            shutil.rmtree(leftover, ignore_errors=failed)  # other ranks may be at work still
    except OSError as error:
        if not failed:
            raise TrialError(f"trial {trial}, removal of its checkpoint: {type(error).__name__}: {error}") from error


def _load(trial: Trial, final: Path, context: JobContext) -> None:
    """Load in all ways that the study asks for."""
    trials = context.study.trials
    if trials.cold:
        trial.load(final, cold=True)
    if trials.warm_load:
        trial.load(final, cold=False)
    if trials.load_into and context.method.capabilities.loads_in_place:
        trial.load_into(final)


def _after_failure(world: StoreGroup, measured: Sequence[Sample], lost: str) -> list[Sample]:
    """The samples of the processes that are left; where one failed or is lost, all of the trial are marked."""
    left = world.gather_survivors("samples", [asdict(sample) for sample in measured], _LAST_WORDS_S)
    samples = list(measured)
    for rank, sent in sorted(left.items()):
        if rank:
            with suppress(ValueError, TypeError):  # the job fails already, and its log has the reason
                samples += received.rows(Sample)(sent)
    reason = lost or next((sample.reason for sample in samples if sample.reason), "")
    if reason:  # none, where the job was interrupted
        samples = [replace(sample, valid=False, reason=sample.reason or reason) for sample in samples]
    return samples
