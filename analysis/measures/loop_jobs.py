"""Builds the training loop of a job from its rows of blocks, steps and saves: ranks folded, and saves with their parts.

Only steps of the same run serve as the reference: other jobs ran on other nodes, at other times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.measures.loop import (
    BLOCKED,
    JobLoop,
    LoopBlock,
    LoopSave,
    LoopSpec,
    LoopStep,
    Part,
    Reference,
    SlowRank,
)
from analysis.measures.loop_windows import Window, parts_of, reference_of, window

_COLUMNS = {
    Part.WAIT: "wait_s",
    Part.SNAPSHOT: "snapshot_s",
    Part.CALL: "call_s",
    Part.UPDATE_WAIT: "update_wait_s",
}

_Row = dict[str, Any]

RESOLVED = 1e-3
"""A wait, or another part that is clocked by itself, counts as none below this fraction of a step."""

_LEAST_LATE = 0.1
"""How much later than the others a rank must have written its files, as a fraction of its time: disks vary."""

INCOMPLETE = "the block's steps aren't all in the log"

NO_REFERENCE_BLOCK = "the job has no valid block without checkpoints"


@dataclass(frozen=True, slots=True)
class LoopRows:
    """The rows of one job, or of one run of it: frames as in `Results`."""

    blocks: pd.DataFrame
    steps: pd.DataFrame
    saves: pd.DataFrame
    ranks: pd.DataFrame


def job_loop(job: Mapping[str, Any], spec: LoopSpec, rows: LoopRows) -> JobLoop:
    """Build the loop of one run of a job.

    Args:
        job: its row of `Results.jobs`.
        spec: its loop.
        rows: of this run.
    """
    expected = int(job["nodes"] * job["tasks_per_node"])
    own = rows.steps.assign(own_s=rows.steps["duration_s"] - rows.steps["collective_s"])
    steps = {int(str(number)): of_block for number, of_block in own.groupby("block", sort=True)}
    blocks = tuple(
        _block(number, of_block, steps.get(number, own.iloc[:0]), expected)
        for number, of_block in sorted(_records(rows.blocks, "block").items())
    )
    reference = reference_of(blocks)
    uncertainty_s = float(rows.ranks["clock_uncertainty_s"].max()) if len(rows.ranks) else 0.0
    recorder_s = job.get("loop_recorder_s", math.nan)
    hosts = dict(zip(rows.ranks["rank"], rows.ranks["host"], strict=True))
    built = _Job(job, reference, expected, hosts, *_usual(own, blocks))
    saves = _records(rows.saves, "block")
    return JobLoop(
        job_id=str(job["job_id"]),
        round=str(job["round"]),
        way=str(job["way"]),
        spec=spec,
        reference=reference,
        blocks=blocks,
        saves=tuple(
            save
            for block in blocks
            if block.number in saves
            for save in built.saves_of(block, saves[block.number], steps.get(block.number, own.iloc[:0]))
        ),
        clock_uncertainty_s=uncertainty_s if expected > 1 and math.isfinite(uncertainty_s) else 0.0,
        recorder_s=float(recorder_s) if isinstance(recorder_s, int | float) else math.nan,
    )


def _records(rows: pd.DataFrame, column: str) -> dict[int, list[_Row]]:
    """Return rows as dictionaries, by the number in a column: pandas takes a hundred times as long for a few rows."""
    return _by(cast("list[_Row]", rows.to_dict("records")), column)


def _by(rows: Sequence[_Row], column: str) -> dict[int, list[_Row]]:
    grouped: dict[int, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: (row[column], row["rank"])):
        grouped.setdefault(int(row[column]), []).append(row)
    return grouped


def _block(number: int, rows: Sequence[_Row], steps: pd.DataFrame, expected: int) -> LoopBlock:
    folded = _folded(steps)
    reason = _first_reason(rows) or _missing(rows, expected)
    measured = [step.number for step in folded if step.number >= 0]
    if not reason and (
        measured != list(range(len(measured))) or len(steps) != len(folded) * len({row["rank"] for row in rows})
    ):
        reason = INCOMPLETE
    return LoopBlock(
        number=number,
        every=int(rows[0]["every"]),
        opening=bool(rows[0]["opening"]),
        start_s=min(row["start_s"] for row in rows),
        duration_s=max(row["duration_s"] for row in rows),
        steps=folded,
        valid=not reason,
        reason=reason,
        cpu_s=sum(row["cpu_s"] for row in rows),
        helper_cpu_s=sum(row["helper_cpu_s"] for row in rows),
        **{
            column: _largest(rows, column)
            for column in ("peak_memory_bytes", "end_memory_bytes", "threads", "descriptors")
        },
    )


def _folded(steps: pd.DataFrame) -> tuple[LoopStep, ...]:
    """Fold the ranks: a step lasts as long as on the slowest one."""
    if not len(steps):
        return ()
    ordered = steps.sort_values(["step", "own_s"], kind="stable")
    grouped = ordered.groupby("step", sort=True)
    columns = (
        grouped["start_s"].min(),
        grouped["duration_s"].max(),
        grouped["blocked_s"].max(),
        grouped["rank"].last(),  # of those that are sorted by their own time
    )
    numbers = [int(number) for number in columns[0].index]
    return tuple(
        LoopStep(number, float(start_s), float(duration_s), float(blocked_s), int(rank))
        for number, start_s, duration_s, blocked_s, rank in zip(numbers, *columns, strict=True)
    )


def _largest(rows: Sequence[_Row], column: str) -> float:
    """Return the largest value of a rank; NaN where one is."""
    return float(np.max([row[column] for row in rows]))


def _first_reason(rows: Sequence[_Row]) -> str:
    """Return why rows may not be used, of the first rank that has a reason; empty if all may."""
    invalid = [str(row["reason"]) for row in rows if not row["valid"]]
    return next(filter(None, invalid), "marked invalid, without a reason") if invalid else ""


def _missing(rows: Sequence[_Row], expected: int) -> str:
    missing = sorted({*range(expected)} - {row["rank"] for row in rows})
    named = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"missing: {'ranks' if len(missing) > 1 else 'rank'} {named}" if missing else ""


def _usual(own: pd.DataFrame, blocks: Sequence[LoopBlock]) -> tuple[pd.Series, float]:
    """Return the median own time of a step without checkpoints by rank, in s, and how wide 95 % lie around it."""
    chosen = own[own["block"].isin([block.number for block in blocks if block.is_reference]) & (own["step"] >= 0)]
    usual = chosen.groupby("rank", sort=True)["own_s"].median()
    around = chosen["own_s"] - chosen["rank"].map(usual)
    return usual, float(np.subtract(*np.percentile(around, (97.5, 2.5)))) if len(around) else math.nan


@dataclass(frozen=True, slots=True)
class _Job:
    """What all saves of a job have in common."""

    facts: Mapping[str, Any]
    reference: Reference
    ranks: int
    hosts: Mapping[int, str]
    usual_s: pd.Series
    """What a step takes a rank without checkpoints and collective: the median, by rank."""
    spread_s: float
    """The width of the band around it that holds 95 % of these steps, all ranks together."""

    def saves_of(self, block: LoopBlock, rows: Sequence[_Row], steps: pd.DataFrame) -> Iterator[LoopSave]:
        """Build the saves of a block, in order."""
        by_save = sorted(_by(rows, "save").items())
        calls = [max(0, min(int(row["step"]) for row in of_save)) for _, of_save in by_save]
        measured = block.measured
        for (number, of_save), (call, following) in zip(
            by_save, itertools.pairwise([*calls, len(measured)]), strict=True
        ):
            yield self._save(block, number, of_save, (call, max(following, call + 1)), steps)

    def _save(
        self, block: LoopBlock, number: int, rows: Sequence[_Row], bounds: tuple[int, int], steps: pd.DataFrame
    ) -> LoopSave:
        call, bound = bounds
        measured = block.measured
        reason = _first_reason(rows) or _missing(rows, self.ranks) or block.reason
        if not reason and (call >= len(measured) or not self.reference.steps):
            reason = INCOMPLETE if self.reference.steps else NO_REFERENCE_BLOCK
        committed_s = float(np.max([row["start_s"] + row["commit_s"] for row in rows]))
        counted = window(measured, call, bound, committed_s, self.reference)
        if call >= len(measured):
            counted = Window(call, call, call)
        parts = parts_of(measured, counted, _blocked(rows), self.reference)
        return LoopSave(
            job_id=str(self.facts["job_id"]),
            round=str(self.facts["round"]),
            block=block.number,
            number=number,
            every=block.every,
            opening=block.opening,
            step=call,
            end_step=counted.end,
            commit_step=counted.commit,
            committed=bool(measured[counted.end - 1].end_s >= committed_s) if counted.end > call else False,
            tail_cut=counted.end == min(bound, len(measured)) and counted.end > counted.commit + 1,
            called_s=min(row["start_s"] for row in rows),
            parts=parts,
            lost_s=math.fsum(parts.values()),
            latency_s=_largest(rows, "commit_s"),
            waited=bool(parts[Part.WAIT] > RESOLVED * self.reference.median_s),
            state_bytes=float(sum(row["state_bytes"] for row in rows)),
            cpu_s=float(sum(row["cpu_s"] for row in rows)),
            slow_rank=self._slow_rank(rows, steps, counted) if self.ranks > 1 else None,
            valid=not reason,
            reason=reason,
            drained_s=_largest(rows, "drained_s"),
            drain_problem=next((str(row["drain_problem"]) for row in rows if row["drain_problem"]), ""),
        )

    def _slow_rank(self, rows: Sequence[_Row], steps: pd.DataFrame, counted: Window) -> SlowRank | None:
        """Name the rank that the others waited for, and by what; None if noise would explain it."""
        slow, late = self._slow_in_steps(rows, steps, counted), self._late(rows)
        return late if late and slow and late.excess_s > 2 * slow.excess_s else slow or late  # a slow call is in both

    def _slow_in_steps(self, rows: Sequence[_Row], steps: pd.DataFrame, counted: Window) -> SlowRank | None:
        """Name the rank whose steps were longest, the wait for others left out, and by which part."""
        in_window = steps[(steps["step"] >= counted.first) & (steps["step"] < counted.end)]
        of_rank = in_window.groupby("rank", sort=True)["own_s"]
        own = of_rank.sum() - of_rank.size() * self.usual_s
        if len(own) < 2 or not np.isfinite(own).all():
            return None
        rank = int(own.index[int(own.to_numpy().argmax())])
        excess_s = float(own[rank] - own.drop(rank).median())
        if not excess_s > self.spread_s * math.sqrt(of_rank.size().max()):
            return None
        more = {
            part: max((row[column] for row in rows if row["rank"] == rank), default=0.0)
            - float(np.median([row[column] for row in rows if row["rank"] != rank] or [0.0]))
            for part, column in _COLUMNS.items()
        }
        more[Part.INTERFERENCE] = excess_s - sum(more.values())
        return SlowRank(rank, str(self.hosts.get(rank, "")), max(more, key=more.__getitem__), excess_s)

    def _late(self, rows: Sequence[_Row]) -> SlowRank | None:
        """Name the rank whose files were on storage last: the others wait for it to commit, and no step shows that."""
        own = {int(row["rank"]): float(row["synced_s"] - row["wait_s"]) for row in rows}
        if len(own) < 2 or not all(map(math.isfinite, own.values())):
            return None
        rank = max(own, key=own.__getitem__)
        excess_s = own[rank] - float(np.median([own_s for other, own_s in own.items() if other != rank]))
        is_late = excess_s > max(self.spread_s, _LEAST_LATE * own[rank])
        return SlowRank(rank, str(self.hosts.get(rank, "")), None, excess_s) if is_late else None


def _blocked(rows: Sequence[_Row]) -> dict[Part, float]:
    """Return what blocked the rank that was blocked longest."""
    clocked = [[float(row[column]) for column in _COLUMNS.values()] for row in rows]
    return dict(zip(BLOCKED, max(clocked, key=sum), strict=True))
