"""How far the numbers can be trusted: spread, drift, disturbance, rounds — each warning with its number and remedy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.logs.frames import Results

MOST_SPREAD = 0.10
"""Of the mean, that a standard deviation may have."""

FEWEST_TRIALS = 5

_SLOW_FIRST = 1.2
"""Times the median of the others, from which a first trial counts as slow."""

_DRIFT_P = 0.05
_FEWEST_FOR_DRIFT = 6

DISTURBED = 0.20
"""By how much the ceiling may differ between before and after."""

_SCATTERED = 2.0
"""Times what the ratios between methods move in the other rounds, from which a round counts as disturbed."""

_FEWEST_ROUNDS = 3
"""With two, nothing says which of them was disturbed."""

_ORDER = "their order is not sure: add `rounds`, or compare within a round"
_ORDER_IN_ROUNDS = "the order of the medians is not sure: go by the ratios, which are taken within rounds"

_ABOVE_CEILING = 0.10
"""By how much a method may exceed its ceiling, as measurements do."""

_STEAL = 0.02
_DIRTY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that makes a number less sure; `where` is a method, a job or the study."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """In one sentence."""
        return f"{self.where}: {self.what}; {self.remedy}"


def in_short(doubts: Sequence[Doubt]) -> list[str]:
    """One line for each remedy, with the first doubt that calls for it, and how many more do."""
    kinds: dict[str, list[Doubt]] = {}
    for each in doubts:
        kinds.setdefault(each.remedy, []).append(each)
    return [
        f"{first.where}: {first.what}" + (f" (and {len(more)} more like it)" if more else "") + f"; {remedy}"
        for remedy, (first, *more) in kinds.items()
    ]


def doubts_about(results: Results, jobs: pd.DataFrame) -> list[Doubt]:
    """Everything that makes the figures of these jobs less sure."""
    study = str(jobs["study"].iloc[0])
    ids = set(jobs["job_id"])
    totals = results.samples[
        (results.samples["study"] == study)
        & results.samples["job_id"].isin(ids)
        & (results.samples["phase"] == "total")
        & results.samples["valid"]
        & ~results.samples["warmup"]
    ]
    ceilings = results.ceiling[(results.ceiling["study"] == study) & results.ceiling["job_id"].isin(ids)]
    return [
        *_spread(totals),
        *_disturbed(ceilings),
        *_above_the_ceiling(totals, ceilings),
        *_machine(jobs),
        *_overlaps(jobs, totals),
        *_effects(totals, jobs),
        *_rounds(totals),
    ]


def _spread(totals: pd.DataFrame) -> Iterator[Doubt]:
    for key, group in totals.groupby(["label", "operation", "cache"], sort=True):
        label, operation, cache = map(str, key)
        name = f"{label}, {operation}" + ("" if cache == "n/a" else f" {cache}")
        durations = group["duration_s"]
        if len(durations) < FEWEST_TRIALS:
            remedy = f"raise `repeats` or `rounds` to {FEWEST_TRIALS} or more"
            yield Doubt(name, f"only {len(durations)} valid trials", remedy)
        if len(durations) > 1 and durations.std() > MOST_SPREAD * durations.mean():
            share = durations.std() / durations.mean()
            remedy = "look at the trials one by one, and repeat at a quieter time or with more `rounds`"
            yield Doubt(name, f"the standard deviation is {share:.0%} of the mean", remedy)
        yield from _orders(name, group)


def _orders(name: str, group: pd.DataFrame) -> Iterator[Doubt]:
    ordered = group.sort_values(["job_id", "trial"])
    ids, starts = np.unique(ordered["job_id"].to_numpy(object), return_index=True)
    for job_id, trials in zip(ids, np.split(ordered["duration_s"].to_numpy(), starts[1:]), strict=True):
        yield from _order(f"{name}, {job_id}", trials.tolist())


def _order(name: str, durations: Sequence[float]) -> Iterator[Doubt]:
    """What the order of a job's trials shows."""
    if len(durations) > 2:  # a median of the others needs two
        others = sorted(durations[1:])[len(durations[1:]) // 2]
        if durations[0] > _SLOW_FIRST * others:
            times = f"the first trial took {durations[0] / others:.1f} times as long as the others"
            yield Doubt(name, times, "add a warm-up (`warmups = 1`)")
    if len(durations) >= _FEWEST_FOR_DRIFT and _may_drift(durations):
        found = stats.spearmanr(range(len(durations)), durations)
        if found.pvalue < _DRIFT_P:
            way = "slower" if found.statistic > 0 else "faster"
            what = f"trials get {way} with time (rank correlation {found.statistic:+.2f}, p = {found.pvalue:.3f})"
            yield Doubt(name, what, "the device's cache may fill, or its neighbours change: use more `rounds`")


def _may_drift(durations: Sequence[float]) -> bool:
    """Whether scipy's test, which takes a hundred times as long, could find a drift.

    Its statistic t = r sqrt((n - 2) / (1 - r^2)) has heavier tails than the normal distribution, so that |t| must
    exceed 1.95 at the least. With ties this r is not the test's, and it is asked in any case.
    """
    values = np.asarray(durations)
    count = len(values)
    order = np.argsort(values, kind="stable")
    if (np.diff(values[order]) == 0).any():
        return bool(values.min() < values.max())
    rank = np.empty(count)
    rank[order] = np.arange(count)
    r = 1 - 6 * float(((rank - np.arange(count)) ** 2).sum()) / (count * (count**2 - 1))
    return r * r * (count - 2) > 1.95**2 * (1 - r * r)


def _disturbed(ceilings: pd.DataFrame) -> Iterator[Doubt]:
    moved = ceilings[ceilings["operation"] != "copy"]
    rated = moved.assign(gbps=moved["size_bytes"] / moved["duration_s"] / 1e9)
    rates = rated.pivot_table(index=["job_id", "operation"], columns="when", values="gbps", aggfunc="median")
    if not {"before", "after"} <= set(rates.columns):
        return
    changed = rates[(rates["after"] / rates["before"] - 1).abs() > DISTURBED]
    for (job_id, operation), before, after in zip(changed.index, changed["before"], changed["after"], strict=True):
        what = f"disturbed: the target's own {operation} went from {before:.2f} to {after:.2f} GB/s"
        yield Doubt(job_id, what, "somebody else used it meanwhile: repeat, or trust the other rounds more")


def _above_the_ceiling(totals: pd.DataFrame, ceilings: pd.DataFrame) -> Iterator[Doubt]:
    """Methods that are faster than the target by itself was at its fastest in the same job, by more than noise."""
    rated = ceilings.assign(gbps=ceilings["size_bytes"] / ceilings["duration_s"] / 1e9)
    roofs = rated.groupby(["job_id", "operation"])["gbps"].max()
    stored = totals[totals["cache"] != "warm"]
    for key, group in stored.assign(gbps=stored["state_bytes"] / stored["duration_s"] / 1e9).groupby(
        ["label", "operation", "cache"], sort=True
    ):
        label, operation, cache = map(str, key)
        reached = group.groupby("job_id")["gbps"].median()
        keys = pd.MultiIndex.from_product([reached.index, ["write" if operation == "save" else "read"]])
        times = float((reached / roofs.reindex(keys).to_numpy()).median())
        if times > 1 + _ABOVE_CEILING:
            name = f"{label}, {operation}" + ("" if cache == "n/a" else f" {cache}")
            why = "a cache served it, the state is too small, or the ceiling's own I/O is slow"
            remedy = f"its share of the ceiling says little: {why}"
            yield Doubt(name, f"it is {times:.1f} times as fast as the target by itself", remedy)


def _machine(jobs: pd.DataFrame) -> Iterator[Doubt]:
    for job in jobs.to_dict("records"):
        steal, dirty, governor = (job.get(key) for key in ("steal_share", "dirty_bytes_before", "cpu_governor"))
        if isinstance(steal, float) and steal > _STEAL:
            yield Doubt(job["job_id"], f"the hypervisor took {steal:.0%} of the CPU time", "use another host")
        if isinstance(dirty, int | float) and dirty > _DIRTY_BYTES:
            what = f"{dirty / 2**20:.0f} MiB that others had written were not on storage when it began"
            yield Doubt(job["job_id"], what, "they were written during its trials: leave time between jobs")
        if governor in {"powersave", "ondemand", "conservative", "schedutil"}:
            what = f"the CPU's frequency changes with its load (governor {governor})"
            yield Doubt(job["job_id"], what, "ask for the governor `performance`, where the site allows it")


def _overlaps(jobs: pd.DataFrame, totals: pd.DataFrame) -> Iterator[Doubt]:
    """Jobs of ours that ran on the same shared target at the same time, by their own clocks."""
    shared = jobs[~jobs["node_local"].fillna(False).astype(bool)] if "node_local" in jobs else jobs
    zeros = shared.set_index("job_id")["clock_zero_unix_s"].dropna()
    ran = totals.assign(end_s=totals["start_s"] + totals["duration_s"]).groupby("job_id")
    times = pd.DataFrame({"zero": zeros, "start": ran["start_s"].min(), "end": ran["end_s"].max()}).dropna()
    spans = list(zip(times["zero"] + times["start"], times["zero"] + times["end"], map(str, times.index), strict=True))
    for first, second in itertools.pairwise(sorted(spans)):
        common_s = min(first[1], second[1]) - second[0]
        if common_s > 0:
            what = f"it ran at the same time as {first[2]} on the same target, for {common_s:.1f} s"
            yield Doubt(second[2], what, "submit the study as one, so that its jobs wait for each other")


def _effects(totals: pd.DataFrame, jobs: pd.DataFrame) -> Iterator[Doubt]:
    """Whether round, node or order explain as much as the strategies do."""
    hosts = jobs.set_index("job_id")["host"] if "host" in jobs else pd.Series(dtype=str)
    for key, group in totals.groupby(["operation", "cache"], sort=True):
        operation, cache = map(str, key)
        medians = group.groupby("label")["duration_s"].median().sort_values()
        if len(medians) < 2:
            continue
        gap = float((medians / medians.shift()).iloc[1:].min() - 1)  # between neighbours, the smallest
        place = group.groupby("job_id")["trial"].rank(pct=True)
        factors = {
            "round": group["round"],
            "node": group["job_id"].map(hosts),
            "order within a job": place > place.median(),
        }
        for name, values in factors.items():
            effect = _effect(group, values)
            if effect > gap:
                what = f"the {name} changes durations by {effect:.0%}, the closest two methods differ by {gap:.0%}"
                yield Doubt(_named(operation, cache), what, _ORDER_IN_ROUNDS if name == "round" else _ORDER)


def _rounds(totals: pd.DataFrame) -> Iterator[Doubt]:
    """Rounds in which all methods were slower than in the others, or that moved the ratios between them."""
    for key, group in totals.groupby(["operation", "cache"], sort=True):
        measured = group[group["duration_s"] > 0]
        medians = measured.pivot_table(index="label", columns="round", values="duration_s", aggfunc="median")
        medians = medians[medians.notna().sum(axis=1) >= _FEWEST_ROUNDS]
        moved = medians.div(medians.median(axis=1), axis=0).map(math.log)
        if len(moved) < 2 or moved.shape[1] < _FEWEST_ROUNDS:
            continue
        level, apart = moved.median(), moved.max() - moved.min()
        for number in moved.columns:
            slower = math.expm1(level[number] - level.drop(number).median())
            ratios = apart[number]
            where = f"{_named(*map(str, key))}, round {number}"
            if slower > DISTURBED:
                what = f"disturbed: the middle method took {1 + slower:.1f} times as long as in the other rounds"
                yield Doubt(where, what, "ratios are taken within rounds and hardly change by it; medians may")
            if math.expm1(ratios) > DISTURBED and ratios > _SCATTERED * apart.drop(number).median():
                what = f"disturbed: it moved methods against each other by up to {math.expm1(ratios):.0%}"
                yield Doubt(where, what, "it widens the intervals of their ratios: add `rounds`")


def _named(operation: str, cache: str) -> str:
    return operation + ("" if cache == "n/a" else f" {cache}")


def _effect(group: pd.DataFrame, values: pd.Series) -> float:
    """How much a factor's levels differ, the methods' own differences taken out; 0 with a single level."""
    if values.nunique() < 2:
        return 0.0
    relative = group["duration_s"] / group.groupby("label")["duration_s"].transform("median")
    levels = relative.groupby(values).median()
    effect = float(levels.max() / levels.min() - 1)
    return effect if math.isfinite(effect) else 0.0
