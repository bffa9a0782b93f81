"""What a job records: its samples and the facts around them, written as its timing log; and its journal on stdout.

Nothing that measures reads a log: an earlier run's is read once, before the first trial, as `Progress`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckpt.cli import unwritten
from jobs.errors import ResultsError
from jobs.node.provenance import Steal
from jobs.plan.loop import Loop
from jobs.plan.study import Trials
from jobs.timing_log import (
    Block,
    Ceiling,
    DiskUse,
    Hook,
    LoopSave,
    Metadata,
    Rank,
    Sample,
    Step,
    TimingLog,
    blocks_of_runs,
)

DIFFERS = "loaded state differs"
NOT_DURABLE = "not durable"
NOT_OWNED = "not in memory of its own"
WRONG_ANSWERS = (DIFFERS, NOT_DURABLE, NOT_OWNED)
"""How the reasons of invalid samples begin where a strategy did something wrong without failing."""


class Recorder:
    """Takes what a job measures and knows, and writes it as the job's timing log.

    Args:
        log: what the log holds so far.
        path: of the file; None in the processes that don't write it, whose rows the first one gets.
    """

    def __init__(self, log: TimingLog, path: Path | None) -> None:
        self._log, self._path = log, path
        self._steal: Steal | None = None

    def status(self, status: str, error: str = "") -> None:
        """Take the job's status, and what went wrong."""
        self._log.header.status, self._log.header.error = status, error

    def start(self, provenance: Mapping[str, Any]) -> None:
        """Take what the job runs on; from now on the CPU time that a hypervisor gives to others is counted."""
        self._log.provenance = dict(provenance)
        self._steal = Steal()

    def storage(self, facts: Mapping[str, Any]) -> None:
        """Take facts about what the target lies on, beside those that are there."""
        self._log.storage |= facts

    def knows_of_storage(self, fact: str) -> bool:
        """Whether the log has that fact about what the target lies on."""
        return fact in self._log.storage

    def provenance(self, **facts: Any) -> None:
        """Take further facts about the machine."""
        self._log.provenance |= facts

    def state(self, facts: Mapping[str, Any]) -> None:
        """Take the description of what is saved."""
        self._log.state = dict(facts)

    def ranks(self, rows: Sequence[Rank]) -> None:
        """Take the job's processes."""
        self._log.ranks = list(rows)

    def samples(self, rows: Iterable[Sample]) -> None:
        """Take the samples of a trial."""
        self._log.samples += rows

    def disk_use(self, row: DiskUse) -> None:
        """Take what a trial's checkpoint took on disk."""
        self._log.disk.append(row)

    def ceiling(self, rows: Iterable[Ceiling]) -> None:
        """Take measurements of what the target can do by itself."""
        self._log.ceiling += rows

    def metadata(self, rows: Iterable[Metadata]) -> None:
        """Take what ranks did with small files."""
        self._log.metadata += rows

    def hooks(self, rows: Iterable[Hook]) -> None:
        """Take commands of the study that have run."""
        self._log.hooks += rows

    def loop_rows(self, blocks: Iterable[Block], steps: Iterable[Step], saves: Iterable[LoopSave]) -> None:
        """Take a block of a training loop, as one rank measured it."""
        self._log.blocks += blocks
        self._log.steps += steps
        self._log.saves += saves

    def flush(self) -> None:
        """Write the log, if this process does that.

        Raises:
            ResultsError: if it can't be written; the file before is untouched then.
        """
        if self._path is None:
            return
        if self._steal is not None:
            self._log.provenance["steal_share"] = self._steal.share()
        try:
            self._log.write(self._path)
        except OSError as error:
            raise ResultsError(unwritten(error, self._path)) from error


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, by the trials that it has finished."""

    next_trial: int = 0
    finished: int = 0
    """Measured trials whose samples are all there."""
    measured_s: float = 0.0
    """How long the operations of these trials took."""
    digest: str | None = None
    """Of the state that an earlier run saved; None if there was none."""
    next_block: int = 0
    blocks_done: int = 0
    """Blocks of a training loop in passes over all kinds that one run finished, without those of a first save.

    Other blocks come again: a process calibrates its steps, and so needs blocks without checkpoints of its own.
    """

    @classmethod
    def of(cls, log: TimingLog, trials: Trials, loop: Loop | None = None) -> Progress:
        """The progress of earlier runs of the job."""
        kinds = 1 + len(loop.every) if loop else 1
        begun = cls(
            digest=log.state.get("digest"),
            next_block=max((row.block + 1 for row in log.blocks), default=0),
            blocks_done=sum(count - count % kinds for count in blocks_of_runs(log.blocks)),
        )
        return begun.after(log.samples, trials)

    def after(self, samples: Sequence[Sample], trials: Trials) -> Progress:
        """The progress once these samples of further trials are there."""
        finished = finished_trials(samples, trials)
        durations = [s.duration_s for s in samples if s.trial in finished and s.phase == "total" and s.rank == 0]
        return replace(
            self,
            next_trial=max((sample.trial + 1 for sample in samples), default=self.next_trial),
            finished=self.finished + len(finished),
            measured_s=self.measured_s + sum(durations),
        )


def finished_trials(samples: Sequence[Sample], trials: Trials) -> set[int]:
    """The measured trials whose samples are all there; a wrong answer counts, a failed strategy does not."""
    failed = {s.trial for s in samples if not s.valid and not s.reason.startswith(WRONG_ANSWERS)}
    loads = Counter(s.trial for s in samples if s.operation == "load" and not s.warmup and s.rank == 0)
    return {trial for trial, count in loads.items() if count == trials.loads_per_trial} - failed


def journal(job_id: str, message: str) -> None:
    """Print a line about a job, with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {job_id}: {message}", flush=True)


def describe_trial(number: int, samples: Sequence[Sample]) -> str:
    """One line about a trial, for the job's journal."""
    if not samples:  # interrupted before anything was measured
        return f"trial {number}: nothing is measured"
    totals = [sample for sample in samples if sample.phase == "total" and sample.rank == 0]
    parts = [f"{s.operation}{'' if s.operation == 'save' else ' ' + s.cache} {s.duration_s:.2f} s" for s in totals]
    problems = "; ".join(sorted({sample.reason for sample in samples if sample.reason}))
    warmup = " (warm-up)" if samples[0].warmup else ""
    return f"trial {number}{warmup}: {', '.join(parts)}{' — ' + problems if problems else ''}"
