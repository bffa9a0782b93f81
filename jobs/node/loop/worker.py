"""What a process that saves behind a loop knows: the job's strategy, and the processes that save with it."""

from __future__ import annotations

from pathlib import Path

from ckpt import registry
from ckpt.state.layout import State
from ckpt.workload.spec import layout_of
from jobs.node.groups import connect
from jobs.node.loop import saving
from jobs.node.loop.saving import Committed
from jobs.node.proof import Proof
from jobs.node.subject import Subject
from jobs.node.topology import ProcessInfo, assign
from jobs.paths import StudyPaths
from jobs.plan import plan

_known: list[tuple[Subject, Proof]] = []
"""Set once, when the process has started."""

PURPOSE = "saves"
"""What the groups of processes, or threads, that save are for; the loop has groups of its own."""


def prepare(results: Path, job_id: str, process: ProcessInfo, proof: Proof) -> None:
    """Import what the strategy needs, and meet the other ranks' processes."""
    paths = StudyPaths(results)
    planned = plan.from_json(paths.plan_json.read_text(), str(paths.plan_json))
    study, job = planned.study, planned.job(job_id)
    method, target = registry.create(job.strategy, job.options), study.targets[job.target]
    method.prepare()
    groups = connect(
        job, paths, process, node_local=target.on_each_node, timeout_s=study.trials.rank_timeout_s, purpose=PURPOSE
    )
    assignment = assign(
        groups.scale, process, layout_of(study.state), study.state.sharding, 0, node_local=target.on_each_node
    )
    subject = Subject(method, groups, assignment, {}, {})
    subject.prepare_groups(groups.writers)
    _known[:] = [(subject, proof)]


def save(final: Path, state: State) -> Committed:
    """Save a snapshot under a name, with the other ranks' processes."""
    subject, proof = _known[0]
    return saving.save(subject, proof, final, state)
