"""What a process knows of its job before it measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ckpt.strategy import Strategy
from jobs.node.clock import Clock
from jobs.node.groups import ProcessGroups
from jobs.node.proof import Proof
from jobs.paths import StudyPaths
from jobs.plan.plan import Job
from jobs.plan.study import Study, Target

_SHARE_OF_TIMEOUT = 0.9
"""Of `rank_timeout_s`."""


@dataclass(frozen=True, slots=True)
class JobContext:
    """One job, as one of its processes sees it.

    Attributes:
        study, job: what is asked for.
        method: the job's strategy with its options.
        paths: where the results go.
        groups: this process, and the groups that it is in.
        clock: seconds since the job's zero, the same on all ranks.
        proof: what this node can prove of the target.
        shared: the job's directory on the target to which its own drains; None if it doesn't.
    """

    study: Study
    job: Job
    method: Strategy
    paths: StudyPaths
    groups: ProcessGroups
    clock: Clock
    proof: Proof = field(default_factory=Proof)
    shared: Path | None = None

    @property
    def target(self) -> Target:
        """Where it writes to."""
        return self.study.targets[self.job.target]

    @property
    def patience_s(self) -> float:
        """How long one process may work while the others wait for it; later they take it for lost."""
        return _SHARE_OF_TIMEOUT * self.study.trials.rank_timeout_s

    @property
    def is_first(self) -> bool:
        """Whether this process writes the job's log and journal."""
        return self.groups.process.rank == 0
