"""Checks how far the numbers of a setting can be trusted: spread, drift, disturbance and the effects of rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.logs.claims import PROVEN
from analysis.measures.caveats import FEWEST_TRIALS, Caveat, Kind
from analysis.measures.operation import COLD_LOADS, LOADS, LOADS_IN_PLACE, Operation
from jobs.timing_log import LOAD_INTO

_MOST_SPREAD = 0.10
"""The largest standard deviation, as a fraction of the mean."""

_SLOW_FIRST = 1.2
"""A first trial is slow from this multiple of the median of the others."""

_DRIFT_P = 0.05
_FEWEST_FOR_DRIFT = 6

_DISTURBED = 0.20
"""How far a ceiling may differ between before and after, and a round from the others."""

_SCATTERED = 2.0
"""A round is disturbed if ratios between methods move this many times as far as in the other rounds."""

_FEWEST_ROUNDS = 3
"""With two rounds, nothing shows which one was disturbed."""

_ABOVE_CEILING = 0.10
"""How far a method may exceed its ceiling, by the noise of measurement."""

_LOADS = {load.value: load.label for load in (*LOADS, *LOADS_IN_PLACE)}
_UNPROVEN_LOADS = [load.value for load in COLD_LOADS if load is not Operation.LOAD_COLD]

_STEAL = 0.02
_DIRTY_BYTES = 256 * 2**20
_VARYING_GOVERNORS = frozenset({"powersave", "ondemand", "conservative", "schedutil"})


def caveats_about(jobs: pd.DataFrame, samples: pd.DataFrame, ceilings: pd.DataFrame) -> tuple[Caveat, ...]:
    """Check the jobs of one setting.

    Args:
        jobs: their rows of `Results.jobs`.
        samples: their samples, with the ranks of an operation folded into one.
        ceilings: their ceilings, as `ceilings.best` chose them.
    """
    totals = samples[(samples["phase"] == "total") & samples["valid"] & ~samples["warmup"]]
    return (
        *_spread(totals),
        *_disturbed_jobs(ceilings),
        *_above_ceiling(totals, ceilings),
        *_unproven(jobs, totals),
        *_machine(jobs),
        *_overlaps(jobs, totals),
        *_effects(totals, jobs),
        *_disturbed_rounds(totals),
    )


def _name(operation: str, cache: str) -> str:
    if operation == LOAD_INTO:
        cache = f"into {cache}"
    return operation if cache == "n/a" else _LOADS.get(cache, f"load, {cache}")


def _spread(totals: pd.DataFrame) -> Iterator[Caveat]:
    for key, group in totals.groupby(["label", "operation", "cache"], sort=True):
        label, operation, cache = map(str, key)
        name = f"{label}, {_name(operation, cache)}"
        durations = group["duration_s"]
        if len(durations) < FEWEST_TRIALS:
            yield Caveat(Kind.FEW_TRIALS, name, len(durations))
        if len(durations) > 1 and durations.std() > _MOST_SPREAD * durations.mean():
            yield Caveat(Kind.WIDE_SPREAD, name, durations.std() / durations.mean())
        ordered = group.sort_values(["job_id", "trial"])
        ids, starts = np.unique(ordered["job_id"].to_numpy(object), return_index=True)
        for job_id, trials in zip(ids, np.split(ordered["duration_s"].to_numpy(), starts[1:]), strict=True):
            yield from _order(f"{name}, {job_id}", trials.tolist())


def _order(name: str, durations: Sequence[float]) -> Iterator[Caveat]:
    """Check the order of one job's trials."""
    if len(durations) > 2:  # a median of the others needs two
        others = sorted(durations[1:])[len(durations[1:]) // 2]
        if durations[0] > _SLOW_FIRST * others:
            yield Caveat(Kind.SLOW_FIRST_TRIAL, name, durations[0] / others)
    if len(durations) >= _FEWEST_FOR_DRIFT and _may_drift(durations):
        test = stats.spearmanr(range(len(durations)), durations)
        if test.pvalue < _DRIFT_P:
            direction = "slower" if test.statistic > 0 else "faster"
            yield Caveat(Kind.DRIFT, name, test.statistic, {"direction": direction, "p": test.pvalue})


def _may_drift(durations: Sequence[float]) -> bool:
    """Return whether scipy's test, which takes a hundred times as long, could find a drift.

    Its statistic t = r sqrt((n - 2) / (1 - r^2)) has heavier tails than the normal distribution, so that |t| must
    exceed 1.95 at the least. With ties this r is not the test's, which is then done in any case.
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


def _disturbed_jobs(ceilings: pd.DataFrame) -> Iterator[Caveat]:
    moved = ceilings[ceilings["operation"] != "copy"]
    rated = moved.assign(gbps=moved["size_bytes"] / moved["duration_s"] / 1e9)
    rates = rated.pivot_table(index=["job_id", "operation"], columns="when", values="gbps", aggfunc="median")
    if not {"before", "after"} <= set(rates.columns):
        return
    changed = rates[(rates["after"] / rates["before"] - 1).abs() > _DISTURBED]
    for (job_id, operation), before, after in zip(changed.index, changed["before"], changed["after"], strict=True):
        yield Caveat(Kind.DISTURBED_JOB, job_id, after, {"operation": operation, "before": before})


def _above_ceiling(totals: pd.DataFrame, ceilings: pd.DataFrame) -> Iterator[Caveat]:
    """Find methods that are faster than the target's own fastest I/O in the same job, by more than noise."""
    rated = ceilings.assign(gbps=ceilings["size_bytes"] / ceilings["duration_s"] / 1e9)
    roofs = rated.groupby(["job_id", "operation"])["gbps"].max()
    stored = totals[totals["cache"] != "warm"]
    stored = stored.assign(gbps=stored["state_bytes"] / stored["duration_s"] / 1e9)
    for key, group in stored.groupby(["label", "operation", "cache"], sort=True):
        label, operation, cache = map(str, key)
        reached = group.groupby("job_id")["gbps"].median()
        keys = pd.MultiIndex.from_product([reached.index, ["write" if operation == "save" else "read"]])
        times = float((reached / roofs.reindex(keys).to_numpy()).median())
        if times > 1 + _ABOVE_CEILING:
            yield Caveat(Kind.ABOVE_CEILING, f"{label}, {_name(operation, cache)}", times)


def _unproven(jobs: pd.DataFrame, totals: pd.DataFrame) -> Iterator[Caveat]:
    """Tell what can't be proven on the target, and why."""
    saved = (totals["operation"] == "save").any() or jobs["loop"].fillna("").astype(bool).any()
    for proof, kind, operation, concerns in (
        ("storage_durability_proof", Kind.DURABILITY_UNPROVEN, "save", saved),
        ("storage_cold_proof", Kind.COLD_UNPROVEN, "load", totals["cache"].isin(_UNPROVEN_LOADS).any()),
    ):
        if proof in jobs and concerns:
            for (reason, fsync), _ in jobs.groupby([proof, "storage_fsync_guarantee"], sort=True):
                if reason != PROVEN:
                    yield Caveat(kind, operation, details={"reason": str(reason), "fsync": str(fsync)})


def _machine(jobs: pd.DataFrame) -> Iterator[Caveat]:
    for job in jobs.to_dict("records"):
        steal, dirty, governor = (job.get(key) for key in ("steal_share", "dirty_bytes_before", "cpu_governor"))
        if isinstance(steal, float) and steal > _STEAL:
            yield Caveat(Kind.STOLEN_CPU, job["job_id"], steal)
        if isinstance(dirty, int | float) and dirty > _DIRTY_BYTES:
            yield Caveat(Kind.DIRTY_PAGES, job["job_id"], dirty / 2**20)
        if governor in _VARYING_GOVERNORS:
            yield Caveat(Kind.CPU_FREQUENCY, job["job_id"], details={"governor": governor})


def _overlaps(jobs: pd.DataFrame, totals: pd.DataFrame) -> Iterator[Caveat]:
    """Find jobs of the study that ran on the same shared target at the same time, by their own clocks."""
    shared = jobs[~jobs["node_local"].fillna(False).astype(bool)] if "node_local" in jobs else jobs
    zeros = shared.set_index("job_id")["clock_zero_unix_s"].dropna()
    ran = totals.assign(end_s=totals["start_s"] + totals["duration_s"]).groupby("job_id")
    times = pd.DataFrame({"zero": zeros, "start": ran["start_s"].min(), "end": ran["end_s"].max()}).dropna()
    spans = list(zip(times["zero"] + times["start"], times["zero"] + times["end"], map(str, times.index), strict=True))
    for first, second in itertools.pairwise(sorted(spans)):
        common_s = min(first[1], second[1]) - second[0]
        if common_s > 0:
            yield Caveat(Kind.OVERLAPPING_JOBS, second[2], common_s, {"other": first[2]})


def _effects(totals: pd.DataFrame, jobs: pd.DataFrame) -> Iterator[Caveat]:
    """Find rounds, nodes or orders that explain as much as the strategies do."""
    hosts = jobs.set_index("job_id")["host"] if "host" in jobs else pd.Series(dtype=str)
    for key, group in totals.groupby(["operation", "cache"], sort=True):
        medians = group.groupby("label")["duration_s"].median().sort_values()
        if len(medians) < 2:
            continue
        gap = float((medians / medians.shift()).iloc[1:].min() - 1)  # between neighbours, the smallest
        position = group.groupby("job_id")["trial"].rank(pct=True)
        factors = {
            "round": group["round"],
            "node": group["job_id"].map(hosts),
            "order within a job": position > position.median(),
        }
        for factor, values in factors.items():
            effect = _effect(group, values)
            if effect > gap:
                kind = Kind.ROUND_EFFECT if factor == "round" else Kind.JOB_EFFECT
                yield Caveat(kind, _name(*map(str, key)), effect, {"factor": factor, "gap": gap})


def _effect(group: pd.DataFrame, values: pd.Series) -> float:
    """Return how much the levels of a factor differ, without the methods' own differences; 0 with a single level."""
    if values.nunique() < 2:
        return 0.0
    relative = group["duration_s"] / group.groupby("label")["duration_s"].transform("median")
    levels = relative.groupby(values).median()
    effect = float(levels.max() / levels.min() - 1)
    return effect if math.isfinite(effect) else 0.0


def _disturbed_rounds(totals: pd.DataFrame) -> Iterator[Caveat]:
    """Find rounds in which all methods were slower than in the others, or that moved the ratios between them."""
    for key, group in totals.groupby(["operation", "cache"], sort=True):
        measured = group[group["duration_s"] > 0]
        medians = measured.pivot_table(index="label", columns="round", values="duration_s", aggfunc="median")
        medians = medians[medians.notna().sum(axis=1) >= _FEWEST_ROUNDS]
        moved = medians.div(medians.median(axis=1), axis=0).map(math.log)
        if len(moved) < 2 or moved.shape[1] < _FEWEST_ROUNDS:
            continue
        level, width = moved.median(), moved.max() - moved.min()
        for number in moved.columns:
            slower = math.expm1(level[number] - level.drop(number).median())
            uneven = math.expm1(width[number])
            where = f"{_name(*map(str, key))}, round {number}"
            if slower > _DISTURBED:
                yield Caveat(Kind.SLOW_ROUND, where, 1 + slower)
            if uneven > _DISTURBED and width[number] > _SCATTERED * width.drop(number).median():
                yield Caveat(Kind.UNEVEN_ROUND, where, uneven)
