"""Judges what the self-test measured in training loops: known lost times, known faults, and steps that are all there.

Whether every step is in the log, and has what blocked it, is judged on every machine. Times are judged where they were
measured to within a quarter of what is known; elsewhere, on a busy machine, the verdict is that nobody can tell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.logs.operations import UNPROVEN
from analysis.measures.loop import JobLoop, LoopBlock, Part
from analysis.measures.loop_cost import NO_SAVES
from analysis.measures.lost import LoopCost
from analysis.measures.method import Method
from analysis.measures.statistics import Interval
from analysis.verdict import Verdict

_LIBRARY = "library"
"""The way in which the self-test's strategy saves as its options say."""

_FAULTS = {
    "torn": ({_LIBRARY}, "loaded state differs"),
    "swallows": ({_LIBRARY}, "loaded state differs"),
    "unsynced": (None, "not durable"),
}
"""Behaviour -> the ways in which it is a fault (None: all of them), and how the reason of every save must begin."""

_TOLERANCE = 0.05
"""What scheduling may add to a known time, as a fraction of it."""

_OF_CORES = 0.25
"""How far the lost time may be from the CPU time that was taken, as a fraction: cores share caches and clock rates."""

_UNSURE = 0.25
"""From this half-width of an interval on, as a fraction of the known time, it says nothing."""

_LEAST_SEEN = 0.05
"""Which part of its time a process that spins on a core gets at least, however busy the machine is."""

_LEAST_S = 0.005
"""Of a clock's readings around a call; a busy machine may come between two."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """A method of the self-test, and what its options say."""

    options: Mapping[str, Any]
    loop: LoopCost

    def is_plain(self, *but: str) -> bool:
        """Return whether it is honest, and costs nothing known but what these options say."""
        costs = {"sleep_s", "blocks_s", "spins_s", "bytes_per_s"} - set(but)
        return self.options["behaviour"] == "honest" and not any(self.options[name] for name in costs)


def loop_verdicts(
    methods: Sequence[Method], options: Mapping[str, Mapping[str, Any]], saves: pd.DataFrame, cores: float
) -> Iterator[Verdict]:
    """Compare what was measured in the loops of one setting with what is known.

    Args:
        methods: of the setting.
        options: of the self-test's strategy, by label.
        saves: rows of `Results.saves` of the setting's jobs.
        cores: on which the loop's steps ran, all that it had; NaN unknown.
    """
    measured = [_Measured(options[m.label], m.loop) for m in methods if m.loop and m.label in options]
    jobs = [job for case in measured for job in case.loop.jobs]
    yield _gaps(jobs)
    yield _blocked(jobs)
    yield from _faults(saves, options)
    plain = {case.loop.way: case.loop for case in measured if case.is_plain()}
    for case in measured:
        if case.loop.way in plain and case.options["blocks_s"] and case.is_plain("blocks_s"):
            if case.loop.way == _LIBRARY:
                yield from _holds(case.options["blocks_s"], case.loop, plain[case.loop.way])
        elif case.loop.way in plain and case.options["sleep_s"] and case.is_plain("sleep_s"):
            if case.loop.way == "sync":
                yield from _holds(case.options["sleep_s"], case.loop, plain[case.loop.way])
            else:
                yield from _behind(case.options["sleep_s"], case.loop, plain[case.loop.way])
        elif case.loop.way == _LIBRARY and case.options["spins_s"] and case.is_plain("spins_s"):
            nothing = [other.loop for other in measured if other.loop.way == NO_SAVES]
            yield from _cores(case.options["spins_s"], case.loop, cores, nothing)


def _gaps(jobs: Sequence[JobLoop]) -> Verdict:
    """Judge whether every step is in the log, from the end of the one before."""
    steps = [list(itertools.pairwise(block.steps)) for job in jobs for block in job.blocks]
    pairs = list(itertools.chain.from_iterable(steps))
    missing = sum(after.number != before.number + 1 for before, after in pairs)
    gap_s = max((abs(after.start_s - before.end_s) for before, after in pairs), default=math.inf)
    return Verdict(
        not missing and gap_s < _LEAST_S,
        f"every step begins where the one before ended: off by at most {1e6 * gap_s:.0f} µs in {len(pairs)} steps"
        + (f", and {missing} are missing" if missing else ""),
    )


def _blocked(jobs: Sequence[JobLoop]) -> Verdict:
    """Judge whether the step of a call is longer by what the save blocked, the wait for the one before included."""
    count, off_s = 0, 0.0
    for job in jobs:
        steps = {(block.number, step.number): step for block in job.blocks for step in block.steps}
        for save in job.saves:
            step = steps.get((save.block, save.step))
            if step is None:
                off_s = math.inf
                continue
            least_s = max(step.blocked_s, save.blocked_s)
            off_s = max(off_s, abs(step.blocked_s - save.blocked_s), least_s - step.duration_s)
            count += 1
    return Verdict(
        count > 0 and off_s < 0.02,
        f"the step of a call has what its save blocked, and lasts longer: off by at most {1e3 * off_s:.1f} ms in "
        f"{count} saves",
    )


def _faults(saves: pd.DataFrame, options: Mapping[str, Mapping[str, Any]]) -> Iterator[Verdict]:
    """Judge whether every save of a faulty method is invalid, for that reason, and no other one."""
    behaviours = saves["label"].map(lambda label: options[label]["behaviour"])
    ways = saves["label"].map(_way)
    faulty = pd.Series(data=False, index=saves.index)
    for behaviour, (where, reason) in _FAULTS.items():
        chosen = (behaviours == behaviour) & (ways.isin(where) if where else True)
        if not (behaviours == behaviour).any():
            continue
        faulty |= chosen
        of_behaviour = saves[chosen]
        caught = of_behaviour["reason"].str.startswith(reason) & ~of_behaviour["valid"]
        what = f"{behaviour}, beside a loop: {caught.sum()} of {len(caught)} saves caught"
        unseen = of_behaviour["dirty_pages"].isna() if behaviour == "unsynced" else ~of_behaviour["reason"].notna()
        if unseen.any():  # what nobody can see can't be caught, and may not be called proven
            unproven = unseen & (of_behaviour["durability"] == UNPROVEN)
            caught |= unproven
            what += f", and {unproven.sum()}, whose dirty pages can't be seen here, are not called durable"
        yield Verdict(bool(len(caught)) and bool(caught.all()), what)
    honest = saves[~faulty]
    yield Verdict(
        bool(len(honest)) and bool(honest["valid"].all()),
        f"nothing honest is called invalid beside a loop: {len(honest)} saves",
    )


def _way(label: str) -> str:
    return label.rpartition("+way=")[2]


def _holds(known_s: float, loop: LoopCost, plain: LoopCost) -> Iterator[Verdict]:
    """Judge a save that holds the loop for a known time: it loses that, and what it loses anyway."""
    for name, interval, usual in (
        ("lost", loop.unhurried.lost, plain.unhurried.lost),
        ("blocked", loop.unhurried.blocked, plain.unhurried.blocked),
    ):
        yield _agrees(f"{loop.way}: a save that holds the loop for {known_s} s, {name}", interval, known_s, usual)


def _behind(known_s: float, loop: LoopCost, plain: LoopCost) -> Iterator[Verdict]:
    """Judge a save that sleeps behind the loop: it loses nothing by that, is committed later, and the next waits."""
    what = f"{loop.way}: a save that sleeps behind the loop for {known_s} s"
    lost, usual = loop.unhurried.lost, plain.unhurried.lost
    more = Interval(*(end + known_s for end in (lost.estimate, lost.low, lost.high)))  # so that nothing is something
    yield _agrees(f"{what}, lost beside that", more, known_s, usual)
    yield _agrees(f"{what}, latency", loop.unhurried.latency, known_s, plain.unhurried.latency)
    waits = [off_s for job in loop.jobs for block in job.blocks for off_s in _waits_off(block, job)]
    if not waits:
        yield Verdict(passed=None, what=f"{what}, waits: no save was called before the one before was committed")
        return
    off_s = float(np.median(waits))
    spread_s = float(np.median(np.abs(np.asarray(waits) - off_s)))
    agrees = abs(off_s) <= _TOLERANCE * known_s + _LEAST_S
    yield Verdict(
        agrees or (None if spread_s > _UNSURE * known_s else False),
        f"{what}, the next one waits for the rest: off by {1e3 * off_s:.0f} ms (median of {len(waits)})",
    )


def _waits_off(block: LoopBlock, job: JobLoop) -> Iterator[float]:
    """Return by how much a block's saves waited longer than known: for the rest of the save before, after the steps."""
    saves = [save for save in job.saves if save.block == block.number and not save.opening]
    for before, save in itertools.pairwise(saves):
        between_s = (save.step - before.step) * job.reference.median_s + before.blocked_s
        known_s = before.latency_s - between_s
        if known_s > 0:
            yield save.parts[Part.WAIT] - known_s


def _cores(spins_s: float, loop: LoopCost, cores: float, nothing: Sequence[LoopCost]) -> Iterator[Verdict]:
    """Judge a save that spins on each of the loop's cores: the loop loses the CPU time that this takes, at least.

    Where other programs have a part of the cores, it may lose more: as long as it takes to get that much from the rest.
    """
    taken_s = loop.above.helper_cpu_s / cores
    if not taken_s >= _LEAST_SEEN * spins_s:  # NaN, too: what isn't counted can't be set against what was lost
        what = f"a save that spins on each core for {spins_s} s: {taken_s:.3f} s of CPU time were counted"
        yield Verdict(passed=False, what=what)
        return
    what = f"a save that takes {taken_s:.2f} s of CPU time from the loop"
    more_s = taken_s / _share_of_cores(loop, cores) - taken_s
    yield _agrees(f"{what}, lost", loop.unhurried.lost, taken_s, Interval(0.0, 0.0, more_s), _OF_CORES)
    for at in loop.at:
        part = at.parts[Part.INTERFERENCE]
        sure = _is_sure(part.interval, taken_s)
        yield Verdict(
            part.interval.low > 0 or (False if sure else None),
            f"{what}, interference: {_in_words(part.interval)}",
        )
    for other in nothing:
        for at in other.at:
            lost = at.lost.interval
            is_nothing = lost.low <= _TOLERANCE * taken_s and lost.high >= -_TOLERANCE * taken_s
            yield Verdict(
                is_nothing if _is_sure(lost, taken_s) else None,
                f"no save, lost: {_in_words(lost)}, {at.lost.verdict}",
            )


def _share_of_cores(loop: LoopCost, cores: float) -> float:
    """Return which part of its cores the loop had without checkpoints."""
    blocks = [block for job in loop.jobs for block in job.blocks if block.is_reference]
    return min(1.0, float(np.median([block.cpu_s / block.duration_s / cores for block in blocks])))


def _agrees(what: str, measured: Interval, known_s: float, usual: Interval, tolerance: float = _TOLERANCE) -> Verdict:
    """Judge whether an interval, and that of what is known, overlap: `known_s` and what such saves take anyway."""
    known = Interval(*(known_s + max(0.0, end) for end in (usual.estimate, usual.low, usual.high)))
    words = f"{what}: {known.estimate:.3f} s is known, measured {_in_words(measured)}"
    if not (_is_sure(measured, known_s) and _is_sure(known, known_s)):
        return Verdict(None, words)
    slack_s = tolerance * known_s + _LEAST_S
    return Verdict(measured.low - slack_s <= known.high and known.low <= measured.high + slack_s, words)


def _is_sure(interval: Interval, known_s: float) -> bool:
    return (interval.high - interval.low) / 2 <= _UNSURE * known_s


def _in_words(interval: Interval) -> str:
    return f"{interval.estimate:.3f} s [{interval.low:.3f}, {interval.high:.3f}]"
