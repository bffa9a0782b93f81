"""A plan on the terminal: every job with what it will take, and what a reader has to know."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs import sharing
from jobs.cluster.arrays import batches
from jobs.plan.plan import Job, Plan
from jobs.terminal import JobId

_MANY_FILES = 100_000
_CREATES_PER_S = 10_000
"""Of a good metadata server; published rates lie between some thousand and some ten thousand."""


def table(planned: Plan) -> RenderableType:
    """The jobs in the order of submission, how they go to Slurm, and the totals."""
    shown = Table(box=None, pad_edge=False)
    rows = [_row(job) for job in planned.jobs]
    one_rank = all(job.scale.ranks == 1 for job in planned.jobs)
    headings = [heading for heading in rows[0] if not (one_rank and heading in _OF_RANKS)]
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "job" else "right", no_wrap=heading != "job")
    for row in rows:
        shown.add_row(*map(row.__getitem__, headings))
    sent = [
        Text(f"on Slurm, {len(batch.jobs)} jobs in one array, {batch.why}")
        for batch in batches(planned.study, planned.jobs)
    ]
    state = planned.jobs[0].state_bytes
    total = sum(job.written_bytes for job in planned.jobs)
    totals = Text(
        f"{len(planned.jobs)} jobs; state {state / 1e9:.2f} GB ({state / 2**30:.2f} GiB); "
        f"writes at most {total / 1e9:.2f} GB, {_at_a_time(planned)} at a time"
    )
    if planned.study.loop:
        minutes = planned.study.loop.duration_s * len(planned.jobs) / 60
        totals.append(f"; without checkpoints their steps take {minutes:,.1f} min")
    return Group(shown, *sent, notes(planned), totals)


def _at_a_time(planned: Plan) -> str:
    kept = planned.study.loop.saves if planned.study.loop else 1
    return "one checkpoint" if kept == 1 else f"{kept} checkpoints"


_OF_RANKS = frozenset({"ranks", "GB a rank ≤", "files a rank ≤"})
"""The columns that are left out where every job has one rank."""


def _row(job: Job) -> dict[str, str | JobId]:
    ranks = job.scale.ranks
    return {
        "order": str(job.order),
        "job": JobId(job.id),
        "ranks": str(ranks),
        "GB a rank ≤": f"{job.rank_bytes / 1e9:.2f}",
        "files ≤": f"{job.checkpoint_files:,}",
        "files a rank ≤": f"{-(-job.checkpoint_files // ranks):,}",
        "checkpoint ≤": f"{job.checkpoint_bytes / 1e9:.2f} GB",
        **({"blocks": str(job.blocks), "saves": str(job.trials)} if job.way else {"trials": str(job.trials)}),
        "writes ≤": f"{job.written_bytes / 1e9:.2f} GB",
    }


def notes(planned: Plan) -> RenderableType:
    """What the study asks for and is left out, and what the metadata servers will suffer from."""
    left_out = [Text(f"left out: {reason}") for reason in planned.left_out()]
    return Group(*left_out, *(Text(f"warning: {warning}", style="yellow") for warning in warnings(planned)))


def warnings(planned: Plan) -> list[str]:
    """What targets share, as far as that is known here, and what the metadata servers will suffer from."""
    most = {
        (job.label, str(job.scale), job.checkpoint_files, job.scale.ranks)
        for job in planned.jobs
        if not planned.study.targets[job.target].on_each_node
    }
    return sharing.warnings(planned.study.targets) + [
        f"{label} at {scale} makes up to {files:,} files per checkpoint, {-(-files // ranks):,} a rank: "
        f"a metadata server that makes {_CREATES_PER_S:,} a second takes {files / _CREATES_PER_S:,.0f} s for that"
        for label, scale, files, ranks in sorted(most)
        if files >= _MANY_FILES
    ]
