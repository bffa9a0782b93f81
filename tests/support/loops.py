"""Timing logs of training loops whose lost time is known: saves that block and disturb, step by step."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.timing_log import Block, LoopSave, Step, TimingLog
from support.logs import GIB, STATE, LogBuilder, job

SPEC: dict[str, Any] = {
    "step": "compute", "step_s": 1.0, "cores": 2, "every": [10], "saves": 3, "blocks": 5, "settle_steps": 3,
}  # fmt: skip
"""The loop of a job, as its log's header has it."""

_WARMUPS = 2


@dataclass(frozen=True)
class Costs:
    """What one save costs a simulated loop, in s."""

    snapshot_s: float = 0.0
    call_s: float = 0.0
    update_wait_s: float = 0.0
    """In the step of the call, before the update."""
    latency_s: float = 0.0
    """From the call, when nothing was left to wait for, to the commit; at least as long as the call blocks."""
    interference_s: float = 0.0
    """Added to every step that begins while the save is under way, but that of the call."""
    tail_s: Sequence[float] = ()
    """Added to the steps after the commit, one by one."""
    later_s: float = 0.0
    """Added to the latency of every second save, the job's first one left out."""
    slow_rank: int = -1
    """The rank that alone has these costs; -1: all ranks have them."""
    writer: int = -1
    """The rank that alone writes for the whole latency, the others for half of it; -1: all ranks do."""


@dataclass
class Truth:
    """What the saves of a job lost, by construction, in s: the first save is left out."""

    lost_s: list[float] = field(default_factory=list)
    blocked_s: list[float] = field(default_factory=list)
    interference_s: list[float] = field(default_factory=list)
    tail_s: list[float] = field(default_factory=list)


@dataclass
class _Save:
    """A save of the block that is simulated."""

    number: int
    step: int
    start_s: float
    wait_s: float
    commit_s: float
    interference_s: float = 0.0
    tail_s: float = 0.0


class LoopSimulation:
    """One job's loop: every step takes its time with noise, and what saves add to it.

    Args:
        label: the job's strategy.
        way: how it saves; `none` saves nothing.
        costs: of a save.
        spec: what differs from `SPEC`.
        noise: standard deviation of a step, as a fraction of it.
        seed: of the noise.
        drift: by how much steps get longer over the whole job, as a fraction.
        first: what the first save costs; like the others by default.
        number: the round.
        nodes: of the scale, with one rank each.
        reasons: save, counted over the job without the first one -> why it is invalid.
    """

    def __init__(
        self,
        label: str = "torch_save",
        way: str = "thread",
        costs: Costs = Costs(),
        *,
        spec: Mapping[str, Any] | None = None,
        noise: float = 0.01,
        seed: int = 0,
        drift: float = 0.0,
        first: Costs | None = None,
        number: int = 1,
        nodes: int = 1,
        target: str = "disk",
        reasons: Mapping[int, str] | None = None,
        **header: Any,
    ) -> None:
        self.spec = SPEC | dict(spec or {})
        self._way, self._costs, self._first = way, costs, first or costs
        self._noise, self._drift, self._ranks, self._reasons = noise, drift, nodes, reasons or {}
        self._random = random.Random(seed)
        planned = job(f"{label}+way={way}", target, number, nodes=nodes)
        planned = replace(planned, id=f"{planned.id}-{self.spec['step']}", strategy=label, options={})
        self._built = LogBuilder(planned, way=way, loop=json.dumps(self.spec, sort_keys=True), **header)
        self._built.log.state = dict(STATE)
        self._built.hosts("node", 0.0)
        self.truth = Truth()
        self._now_s = 10.0
        self._saves = 0
        self._run()

    @property
    def log(self) -> TimingLog:
        """What the job recorded."""
        return self._built.log

    def write(self, directory: Path, change: Callable[[TimingLog], object] = lambda _: None) -> Path:
        """Write the log, after a change of what it holds, below the directory of a study; returns the directory."""
        change(self.log)
        self._built.write(directory / "logs" / f"{self.log.header.job_id}.h5")
        return directory

    def _run(self) -> None:
        kinds = []
        for _ in range(self.spec["blocks"]):
            kinds_of_one = [0, *self.spec["every"]]
            self._random.shuffle(kinds_of_one)
            kinds += kinds_of_one
        opening = self._way != "none"
        order = [(max(self.spec["every"]), True)] * opening + [(kind, False) for kind in kinds]
        for number, (every, is_first) in enumerate(order):
            self._block(number, every, number / len(order), is_first=is_first)

    def _block(self, number: int, every: int, progress: float, *, is_first: bool) -> None:
        costs = self._first if is_first else self._costs
        due = self._due(every, is_first=is_first)
        length = 1 if is_first else self.spec["saves"] * (every or max(self.spec["every"]))
        began_s, saves, settled, step, pending = self._now_s, list[_Save](), 0, -_WARMUPS, False
        while step < length or settled < self.spec["settle_steps"]:
            start_s = self._now_s
            calls = step in due
            if calls:
                before_s = saves[-1].start_s + saves[-1].commit_s if saves else 0.0
                wait_s = max(0.0, before_s - start_s)
                latency_s = costs.latency_s + costs.later_s * ((self._saves + len(saves)) % 2)
                saves.append(_Save(len(saves), step, start_s, wait_s, wait_s + latency_s))
            self._step(number, step, start_s, costs, saves, calls=calls, slower=1 + self._drift * progress)
            was_pending, pending = pending, bool(saves) and saves[-1].start_s + saves[-1].commit_s > self._now_s
            settled = settled + 1 if step > max(due, default=-1) and not (was_pending or pending) else 0
            step += 1
        self._record(number, every, began_s, costs, saves, is_first=is_first)

    def _due(self, every: int, *, is_first: bool) -> frozenset[int]:
        if self._way == "none" or not every:
            return frozenset()
        return frozenset([0]) if is_first else frozenset(every * save for save in range(self.spec["saves"]))

    def _step(
        self, block: int, step: int, start_s: float, costs: Costs, saves: Sequence[_Save], *, calls: bool, slower: float
    ) -> None:
        """Simulate one step on all ranks, which wait for the slowest."""
        blocked_s = added_s = 0.0
        if calls:
            blocked_s = saves[-1].wait_s + costs.snapshot_s + costs.call_s + costs.update_wait_s
        elif saves:
            last = saves[-1]
            committed_s = last.start_s + last.commit_s
            if start_s <= committed_s:
                added_s = costs.interference_s
                last.interference_s += added_s
            else:
                since = sum(1 for row in self.log.steps if row.block == block and row.rank == 0
                            and row.step > last.step and row.start_s > committed_s)  # fmt: skip
                added_s = costs.tail_s[since] if since < len(costs.tail_s) else 0.0
                last.tail_s += added_s
        own: list[tuple[float, float]] = []
        for rank in range(self._ranks):
            has = costs.slow_rank in {-1, rank}
            usual_s = self.spec["step_s"] * slower * max(0.1, self._random.gauss(1, self._noise))
            own.append((usual_s + (blocked_s + added_s) * has, blocked_s * has))
        longest_s = max(duration_s for duration_s, _ in own)
        self._now_s = start_s + longest_s
        self.log.steps += [
            Step(block=block, step=step, rank=rank, start_s=start_s, duration_s=longest_s, blocked_s=of_rank_s,
                 collective_s=longest_s - duration_s)
            for rank, (duration_s, of_rank_s) in enumerate(own)
        ]  # fmt: skip

    def _record(
        self, number: int, every: int, began_s: float, costs: Costs, saves: Sequence[_Save], *, is_first: bool
    ) -> None:
        for rank in range(self._ranks):
            self.log.blocks.append(
                Block(
                    block=number, rank=rank, every=every, opening=is_first, start_s=began_s,
                    duration_s=self._now_s - began_s, peak_memory_bytes=(3 if saves else 1) * GIB,
                    end_memory_bytes=GIB, threads=4 + bool(saves), descriptors=20 + 2 * bool(saves),
                    cpu_s=self._now_s - began_s, helper_cpu_s=0.5 * len(saves), valid=True, reason="",
                )
            )  # fmt: skip
        for save in saves:
            reason = "" if is_first else self._reasons.get(self._saves, "")
            self._saves += not is_first
            if not is_first and not reason:
                self._note(save, costs)
            self.log.saves += [self._row(number, rank, save, costs, reason) for rank in range(self._ranks)]

    def _note(self, save: _Save, costs: Costs) -> None:
        blocked_s = save.wait_s + costs.snapshot_s + costs.call_s + costs.update_wait_s
        self.truth.blocked_s.append(blocked_s)
        self.truth.interference_s.append(save.interference_s)
        self.truth.tail_s.append(save.tail_s)
        self.truth.lost_s.append(blocked_s + save.interference_s + save.tail_s)

    def _row(self, block: int, rank: int, save: _Save, costs: Costs, reason: str) -> LoopSave:
        has = costs.slow_rank in {-1, rank}
        written_s = (save.commit_s - save.wait_s) / (1 if costs.writer in {-1, rank} else 2)
        return LoopSave(
            block=block, save=save.number, rank=rank, step=save.step, start_s=save.start_s, wait_s=save.wait_s * has,
            snapshot_s=costs.snapshot_s * has, call_s=costs.call_s * has, update_wait_s=costs.update_wait_s * has,
            commit_s=save.commit_s, state_bytes=GIB // self._ranks, durability="committed", dirty_pages=0,
            synced_s=save.wait_s + written_s, cpu_s=0.25, valid=not reason, reason=reason,
        )  # fmt: skip
