"""Writes advice and projections as sentences and tables."""

from __future__ import annotations

import math

from analysis.advice.advice import MTBF_HOURS, Advice, Assumptions, Schedule
from analysis.advice.projection import FAR, Projection, Span
from analysis.measures.operation import Operation
from analysis.measures.statistics import Interval
from analysis.tables.table import MISSING, Cell, Estimate, Number, Table

HOW_SEPARATED = (
    "several strategies in one row: the data does not separate them. One is called slower only if the 95 % interval of "
    "the ratio within rounds lies above 1 and the tests of the tables agree (corrected p < 0.05); "
    "with too few rounds for that, only if no trial of one is as fast as one of the other"
)

MODEL = (
    "Young: sqrt(2 C M); Daly: his higher-order estimate (2006), for C < 2 M; C is the stall, M the MTBF, and the "
    "interval is time spent computing between two checkpoints. The machine lost is what Daly's expected wall time has "
    "above the time for the work alone, at Daly's interval"
)


_MOST_IN_A_SENTENCE = 3


def advice_tables(advice: Advice) -> list[Table]:
    """Return the tables of what is best, how often to checkpoint, and how the answer depends on the MTBF."""
    return [_picks(advice), _schedules(advice), *_by_mtbf(advice)]


def in_words(advice: Advice) -> list[str]:
    """Answer in a few sentences: which strategy, how often, at what cost, and how sure that is."""
    pick = next(pick for pick in advice.picks if pick.question == "least of the machine lost")
    where = f"On {advice.setting.target}, {_scale(advice)}"
    if not pick.best:
        return [f"{where}: no strategy has a valid save and a valid load, so there is no advice."]
    first = next(schedule for schedule in advice.schedules if schedule.label == pick.best[0])
    if len(pick.best) == 1:
        sentences = [f"{where}, use {first.label}."]
    else:
        sentences = [f"{where}, use {_some(pick.best)}: the data does not separate them."]
    sentences.append(
        f"With {first.label} a checkpoint stops the job for {_duration(first.stall_s.estimate)}, and a restart loads "
        f"for {_duration(first.load_s.estimate)} ({_cache(first.load_kind)})."
    )
    hours = advice.assumptions.mtbf_hours
    steps = _steps(first, advice.assumptions)
    every = f", every {steps:,.0f} steps" if steps is not None else ""
    sentences.append(
        f"With a failure every {hours:g} h, checkpoint after every {_duration(first.daly_s)} of computing (Daly){every}"
        f"; checkpoints and failures then take {_share(first.lost_range)} of the machine."
    )
    if pick.next_best:
        sentences.append(f"The next, {pick.next_best}, loses {pick.next_ratio.estimate:.3g} times as much.")
    best = {pick.question: pick.best for pick in advice.picks}
    if "fastest save" in best:
        sentences.append(f"Fastest to save: {_some(best['fastest save'])}.")
    if "fastest load" in best:
        sentences.append(f"Fastest to load: {_some(best['fastest load'])}.")
    if best.get("smallest"):
        sentences.append(f"Smallest: {_some(best['smallest'])}.")
    if "best open format" in best:
        sentences.append(_open_in_words(best["best open format"]))
    return sentences


def assumed(assumptions: Assumptions) -> list[str]:
    """Put the assumptions of the advice into words."""
    stall = (
        "a checkpoint stops the job until it is committed: no strategy is taken to save while the job computes"
        if assumptions.stall == "committed"
        else "a checkpoint stops the job for the strategy's call only, and sync and commit are done while the job "
        "computes: this holds only if your code does so; each failure then costs the time until the commit once more"
    )
    load = {
        "cold": "a restart loads from storage (cold loads)",
        "warm": "a restart loads from the page cache of a node that still holds the checkpoint (warm loads)",
    }[assumptions.restore]
    return [
        f"failures come at random, one every {assumptions.mtbf_hours:g} h of the whole job, all its nodes together",
        stall,
        f"{load}, and costs {assumptions.restart_s:g} s besides",
        "the job's state is the measured one, on as many nodes: for others, see `python -m analysis project`",
    ]


def _cache(load: Operation | None) -> str:
    """Describe the page cache before a load, with a dash for no load."""
    return load.cache if load else MISSING


def _scale(advice: Advice) -> str:
    nodes, tasks = advice.setting.nodes, advice.setting.tasks_per_node
    return f"{_count(nodes, 'node')} × {_count(tasks, 'task')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _or(labels: tuple[str, ...]) -> str:
    return " or ".join(labels) if labels else "unknown"


def _some(labels: tuple[str, ...]) -> str:
    """Name as many labels as a sentence can take; the table lists them all."""
    if len(labels) <= _MOST_IN_A_SENTENCE:
        return _or(labels)
    return f"{_or(labels[:_MOST_IN_A_SENTENCE])} or one of {len(labels) - _MOST_IN_A_SENTENCE} others"


def _open_in_words(labels: tuple[str, ...]) -> str:
    if not labels:
        return "Open formats: none is known among these strategies."
    return f"If other software has to read the checkpoint: {_some(labels)}."


def _duration(seconds: float) -> str:
    """Write a duration with three digits, in the unit that fits."""
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _share(value: Interval) -> str:
    if math.isnan(value.estimate):
        return "an unknown share"
    between = "" if math.isnan(value.low) else f" ({value.low:.2%} to {value.high:.2%})"
    return f"{value.estimate:.2%}{between}".replace("%", " %")


def _steps(schedule: Schedule, assumptions: Assumptions) -> float | None:
    """Convert Daly's interval to whole steps, at least one; None if that is unknown."""
    if assumptions.step_time_s is None or math.isnan(schedule.daly_s):
        return None
    return max(1.0, float(round(schedule.daly_s / assumptions.step_time_s)))


def _picks(advice: Advice) -> Table:
    scale = {"s": 1.0, "bytes": 2.0**-30, "share": 100.0}
    units = {"s": "s", "bytes": "GiB", "share": "% of the machine"}
    rows: list[tuple[Cell, ...]] = [
        (
            pick.question,
            _or(pick.best),
            Estimate(_times(scale[pick.unit], pick.value), 3),
            units[pick.unit],
            pick.next_best or "-",
            Estimate(pick.next_ratio),
        )
        for pick in advice.picks
    ]
    headings = ("question", "strategies", "value", "unit", "next best", "times as much")
    notes = (*in_words(advice), HOW_SEPARATED, *(f"assumed: {line}" for line in assumed(advice.assumptions)),
             *(f"thin: {line}" for line in advice.thin))  # fmt: skip
    return Table("advice", f"Advice: {advice.setting}", headings, tuple(rows), notes)


def _times(factor: float, value: Interval) -> Interval:
    return Interval(factor * value.estimate, factor * value.low, factor * value.high)


def _schedules(advice: Advice) -> Table:
    step = advice.assumptions.step_time_s
    rows: list[tuple[Cell, ...]] = []
    for schedule in advice.schedules:
        steps = _steps(schedule, advice.assumptions)
        rows.append(
            (
                schedule.label,
                Estimate(schedule.stall_s, 3),
                Estimate(schedule.load_s, 3),
                _cache(schedule.load_kind),
                Number(schedule.young_s / 60),
                Number(schedule.daly_s / 60),
                *([Number(math.nan if steps is None else steps, 0)] if step is not None else []),
                Number(100 * schedule.lost.checkpoints, 3),
                Number(100 * schedule.lost.failures, 3),
                Estimate(_times(100, schedule.lost_range), 3),
            )
        )
    headings = (
        "method", "stall [s]", "load [s]", "kind of load",
        "Young [min]", "Daly [min]",
        *([f"Daly [steps of {step:g} s]"] if step is not None else []),
        "lost to checkpoints [%]", "lost to failures [%]", "lost in all [%]",
    )  # fmt: skip
    hours = advice.assumptions.mtbf_hours
    title = f"How often to checkpoint, with a failure every {hours:g} h: {advice.setting}"
    return Table("schedule", title, headings, tuple(rows), (MODEL, _what_stalls(advice.assumptions)))


def _what_stalls(assumptions: Assumptions) -> str:
    if assumptions.stall == "call":
        return "stall: the strategy's call only (--stall call)"
    return "stall: the save until it was committed"


def _by_mtbf(advice: Advice) -> list[Table]:
    where = advice.setting
    headings = tuple(f"{hours} h" for hours in MTBF_HOURS)
    intervals: list[tuple[Cell, ...]] = [
        (schedule.label, *(Number(value / 60) for value in schedule.daly_s_by_mtbf)) for schedule in advice.schedules
    ]
    lost: list[tuple[Cell, ...]] = [
        (schedule.label, *(Number(100 * value, 3) for value in schedule.lost_by_mtbf)) for schedule in advice.schedules
    ]
    return [
        Table("interval_by_mtbf", f"Minutes of computing between checkpoints (Daly), by MTBF: {where}",
              ("method", *(f"{heading} [min]" for heading in headings)), tuple(intervals), (MODEL,)),
        Table("lost_by_mtbf", f"Share of the machine lost to checkpoints and failures, by MTBF: {where}",
              ("method", *(f"{heading} [%]" for heading in headings)), tuple(lost),
              ("every method checkpoints at Daly's interval",)),
    ]  # fmt: skip


def projection_table(projection: Projection) -> Table:
    """Show how long the methods of a setting would take for the wanted state; the notes state the model."""
    wanted, setting = projection.wanted, projection.setting

    def cells(label: str, save: Span, load: Span, kind: str) -> tuple[Cell, ...]:
        return (
            label, Number(save.least_s, 1), Number(save.most_s, 1), save.bound_by or "-",
            Number(load.least_s, 1), Number(load.most_s, 1), load.bound_by or "-", kind,
        )  # fmt: skip

    rows = [cells(method.label, method.save, method.load, _cache(method.load_kind)) for method in projection.methods]
    rows.append(cells("(the target by itself)", *projection.ceiling, "-"))
    headings = (
        "method", "save, least [s]", "save, most [s]", "save bound by",
        "load, least [s]", "load, most [s]", "load bound by", "kind of load",
    )  # fmt: skip
    title = (
        f"Projected to {wanted.parameters:.4g} parameters × {wanted.bytes_per_parameter:g} bytes = "
        f"{wanted.size_bytes / 1e9:.4g} GB on {wanted.nodes} nodes: {setting}"
    )
    return Table("projection", title, headings, tuple(rows), tuple(_projection_notes(projection)))


def _projection_notes(projection: Projection) -> list[str]:
    wanted, setting = projection.wanted, projection.setting
    limit = wanted.shared_limit_gbps
    if setting.node_local:
        adds_up = "node-local: the nodes' rates add up, whatever the shared filesystem does"
    elif limit is not None:
        adds_up = f"shared: the nodes' rates add up to the stated limit of {limit:g} GB/s in all"
    else:
        adds_up = (
            "shared, without a stated limit: from all nodes at full rate to one node's rate in all; "
            "set --shared-limit-gbps for a narrower range"
        )
    if setting.node_local is None:
        adds_up += "; the logs don't record whether the target is node-local, so it is taken as shared"
    model = (
        "model: each node writes and reads an equal share of the state, all at once, at the measured rate of a node "
        "(95 % interval of the median), at most at the target's ceiling, or at what exceeded it; time = bytes / rate"
    )
    reach = (
        f"extrapolated by {projection.size_factor:.3g} in bytes per node and {projection.node_factor:.3g} in nodes; "
        "what does not grow with the bytes (opening files, metadata, the slowest of many nodes) is not in the model"
    )
    replicated = setting.agreed.get("state_sharding") == "replicated" and setting.ranks > 1
    unknown = "'-' where the trials are too few for an interval, or the ceiling was not measured"
    notes = [model, adds_up, reach, unknown]
    if replicated:
        notes.append("measured with every rank loading the whole state; projected is a state that nodes share")
    if projection.size_factor > FAR or projection.size_factor < 1 / FAR:
        notes.append("beware: that is far from what was measured; measure a state nearer to the wanted share of a node")
    return notes
