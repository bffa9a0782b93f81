"""A plan on the terminal: every job with what it will take, and what a reader has to know."""

from __future__ import annotations

import sys

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.plan import Plan, batches

_HEADINGS = ("order", "job", "ranks", "GB a rank ≤", "files ≤", "files a rank ≤", "checkpoint ≤", "trials", "writes ≤")


def table(planned: Plan) -> RenderableType:
    """The jobs in the order of submission, how they go to Slurm, and the totals."""
    shown = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        shown.add_column(heading, justify="left" if heading == "job" else "right", no_wrap=True)
    for job in planned.jobs:
        ranks = job.scale.ranks
        shown.add_row(
            str(job.order), job.id, str(ranks), f"{job.rank_bytes / 1e9:.2f}", f"{job.checkpoint_files:,}",
            f"{-(-job.checkpoint_files // ranks):,}", f"{job.checkpoint_bytes / 1e9:.2f} GB", str(job.trials),
            f"{job.written_bytes / 1e9:.2f} GB",
        )  # fmt: skip
    sent = [
        Text(f"on Slurm, {len(batch.jobs)} jobs in one array, {batch.why}")
        for batch in batches(planned.study, planned.jobs)
    ]
    state = planned.jobs[0].state_bytes
    total = sum(job.written_bytes for job in planned.jobs)
    totals = Text(
        f"{len(planned.jobs)} jobs; state {state / 1e9:.2f} GB ({state / 2**30:.2f} GiB); "
        f"writes at most {total / 1e9:.2f} GB, one checkpoint at a time"
    )
    return Group(shown, *sent, notes(planned), totals)


def notes(planned: Plan) -> RenderableType:
    """What was asked for and is left out, and what will hurt."""
    left_out = [Text(f"left out: {reason}") for reason in planned.left_out()]
    return Group(*left_out, *(Text(f"warning: {each}", style="yellow") for each in planned.warnings()))


def wide_console() -> Console:
    """Where people read: as wide as the terminal; wide enough for a job id where there is none."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)
