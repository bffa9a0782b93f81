"""Builds the training loops of all jobs, one for each run: a job that was interrupted and went on has several.

The process that went on calibrated its steps anew, perhaps on another node: its steps are no reference for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from analysis.logs.frames import Results
from analysis.measures.loop import JobLoop, spec_of
from analysis.measures.loop_jobs import NO_REFERENCE_BLOCK, LoopRows, job_loop


def job_loops(results: Results) -> dict[tuple[str, str], list[JobLoop]]:
    """Build the loops of all jobs that have one and left a log, by study and job id: one for each run, in order."""
    if "loop" not in results.jobs or not results.jobs["loop"].fillna("").astype(bool).any():
        return {}
    by_job = [
        dict(iter(frame.groupby(["study", "job_id"], sort=False)))
        for frame in (results.blocks, results.steps, results.saves, results.ranks)
    ]
    nothing = [frame.iloc[:0] for frame in (results.blocks, results.steps, results.saves, results.ranks)]
    loops = {}
    for job in results.jobs.to_dict("records"):
        key = job["study"], job["job_id"]
        spec = spec_of(job["loop"]) if isinstance(job["loop"], str) else None
        if spec is not None and key in by_job[0]:
            rows = (frames.get(key, empty) for frames, empty in zip(by_job, nothing, strict=True))
            facts = cast("dict[str, Any]", job)
            loops[key] = _usable([job_loop(facts, spec, run) for run in _runs(LoopRows(*rows))])
    return loops


def _runs(rows: LoopRows) -> Iterator[LoopRows]:
    """Split the rows of a job by the run that its blocks belong to; the log knows the hosts of the last one only."""
    runs = sorted(set(rows.blocks["run"]))
    for run in runs:
        blocks = rows.blocks[rows.blocks["run"] == run]
        steps, saves = (frame[frame["block"].isin(blocks["block"])] for frame in (rows.steps, rows.saves))
        yield LoopRows(blocks, steps, saves, rows.ranks if run == runs[-1] else rows.ranks.assign(host=""))


def _usable(runs: Sequence[JobLoop]) -> list[JobLoop]:
    """Leave out the saves of a run that was interrupted before it had a reference: the job does them again."""
    if not any(run.reference.steps for run in runs):
        return list(runs)
    return [replace(run, saves=tuple(save for save in run.saves if save.reason != NO_REFERENCE_BLOCK)) for run in runs]
