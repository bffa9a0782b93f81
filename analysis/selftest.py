"""Judges the self-test: whether results of strategies of known cost and with known faults show just that.

`python -m jobs selftest` plans, submits and runs the shipped study `selftest`, and ends with this. Twice as slow must
be measured as twice as slow, and every faulty strategy must be caught.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.errors import ResultsError
from analysis.logs.claims import PROVEN
from analysis.logs.frames import Results
from analysis.logs.operations import UNPROVEN
from analysis.measures.setting import Setting, settings
from analysis.measures.statistics import ratio_interval
from analysis.selftest_loops import loop_verdicts
from analysis.verdict import Verdict

_STRATEGY = "_selftest"

_TOLERANCE = 0.05
"""What scheduling and the noise of the disk may add to a sleep of half a second."""

_DISHONEST = {
    "wrong_data": ("load", "loaded state differs"),
    "lazy": ("load", "not in memory of its own"),
    "unsynced": ("save", "not durable"),
}
"""Dishonest behaviour -> the operation that must be invalid, and how its reason begins."""

_OPTIONS = {"behaviour": "honest", "sleep_s": 0.0, "bytes_per_s": 0.0, "blocks_s": 0.0, "spins_s": 0.0}


def verdicts(results: Results) -> list[Verdict]:
    """Compare what was measured with what is known, target by target.

    Raises:
        ResultsError: if these are no results of a self-test.
    """
    jobs = results.jobs[results.jobs["strategy"] == _STRATEGY]
    if not len(jobs):
        raise ResultsError("these are no results of a self-test: run `python -m jobs selftest --target DIR` first")
    loops = jobs["way"].fillna("") != ""
    judged = [
        (target, verdict)
        for target, on_target in jobs[~loops].groupby("target", sort=True)
        for verdict in _on_one_target(on_target, results.samples)
    ]
    judged += [
        (setting.target, verdict)
        for setting in settings(results)
        if setting.loop
        for verdict in _beside_one_loop(setting, jobs[loops], results.saves)
    ]
    targets = set(jobs["target"])
    return [
        Verdict(verdict.passed, f"{target}: {verdict.what}" if len(targets) > 1 else verdict.what)
        for target, verdict in judged
    ]


def _beside_one_loop(setting: Setting, jobs: pd.DataFrame, saves: pd.DataFrame) -> Iterator[Verdict]:
    chosen = jobs[(jobs["target"] == setting.target) & (jobs["study"] == setting.study)]
    yield _complete(chosen)
    options = dict(zip(chosen["label"], _options(chosen), strict=True))
    cores = chosen["loop_cores"].dropna() if "loop_cores" in chosen else pd.Series(dtype=float)
    yield from loop_verdicts(
        setting.methods,
        options,
        saves[(saves["study"] == setting.study) & saves["job_id"].isin(chosen["job_id"])],
        float(cores.iloc[0]) if len(cores) else math.nan,
    )


def _options(jobs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the options of every job; those without a log have none."""
    return [_OPTIONS | json.loads(text or "{}") for text in jobs["strategy_options"].fillna("")]


def _complete(jobs: pd.DataFrame) -> Verdict:
    states = sorted(set(jobs["status"]))
    return Verdict(states == ["complete"], f"every job completes: {', '.join(states)}")


def _on_one_target(jobs: pd.DataFrame, samples: pd.DataFrame) -> Iterator[Verdict]:
    options = _options(jobs)
    asked = jobs[["study", "job_id"]].assign(**{name: [option[name] for option in options] for name in _OPTIONS})
    samples = samples.merge(asked, on=["study", "job_id"], validate="many_to_one")
    totals = samples[(samples["phase"] == "total") & ~samples["warmup"]]
    honest = totals[totals["behaviour"] == "honest"]
    yield _complete(jobs)
    yield Verdict(bool(len(honest)) and bool(honest["valid"].all()), "nothing honest is called invalid")
    yield _phases(samples)
    yield _cold(honest[honest["operation"] == "load"]["cache"], _doubt(jobs, "storage_cold_proof"))
    yield _durable(honest[honest["operation"] == "save"], _doubt(jobs, "storage_durability_proof"))
    for operation in ("save", "load"):
        yield from _known_costs(operation, honest[honest["valid"] & (honest["operation"] == operation)])
    for behaviour, (operation, reason) in _DISHONEST.items():
        chosen = totals[(totals["behaviour"] == behaviour) & (totals["operation"] == operation)]
        caught = chosen["reason"].str.startswith(reason)
        what = f"{behaviour}: {caught.sum()} of {len(caught)} {operation}s caught"
        unseen = chosen["dirty_pages"].isna() if behaviour == "unsynced" else pd.Series(data=False, index=chosen.index)
        if unseen.any():  # what nobody can see can't be caught, and may not be called proven
            unproven = unseen & (chosen["durability"] == UNPROVEN)
            caught |= unproven
            what += f", and {unproven.sum()}, whose dirty pages can't be seen here, are not called durable"
        yield Verdict(bool(len(caught)) and bool(caught.all()), what)


def _known_costs(operation: str, valid: pd.DataFrame) -> Iterator[Verdict]:
    """Judge whether sleeps of known length are measured as that, and a known rate takes its time."""
    sleeps = sorted(set(valid["sleep_s"]) - {0})
    plain = valid[(valid["sleep_s"] == 0) & (valid["bytes_per_s"] == 0)]
    limited = valid[valid["bytes_per_s"] > 0]
    if len(sleeps) < 2 or not len(plain) or not len(limited):
        yield Verdict(passed=False, what=f"{operation}: a strategy of known cost has no valid sample")
        return
    # What a save or a load takes without the sleep; other jobs of the node may have slowed down some of them.
    least_s, most_s = float(plain["duration_s"].min()), float(plain["duration_s"].max())
    short_s, long_s = sleeps[0], sleeps[-1]
    lowest, highest = ((long_s + base_s) / (short_s + base_s) for base_s in (most_s, least_s))
    long, short = (valid[valid["sleep_s"] == sleep_s] for sleep_s in (long_s, short_s))
    ratio = ratio_interval(
        long["duration_s"].tolist(), long["job_id"].tolist(), short["duration_s"].tolist(), short["job_id"].tolist()
    )
    yield Verdict(
        ratio.low * (1 - _TOLERANCE) <= highest and lowest <= ratio.high * (1 + _TOLERANCE),
        f"{operation}: {long_s} s against {short_s} s of sleep is a factor of {lowest:.2f} to {highest:.2f}, measured "
        f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
    )
    bytes_per_s = float(limited["bytes_per_s"].iloc[0])
    bare_s = float(limited["state_bytes"].iloc[0]) / bytes_per_s
    measured_s = _upper_median(limited["duration_s"])
    yield Verdict(
        bare_s * (1 - _TOLERANCE) <= measured_s <= (bare_s + 2 * most_s) * (1 + _TOLERANCE),
        f"{operation}: {bytes_per_s / 1e6:.0f} MB/s takes {bare_s + least_s:.2f} to {bare_s + most_s:.2f} s, measured "
        f"{measured_s:.2f} s",
    )


def _upper_median(durations: pd.Series) -> float:
    return float(durations.sort_values().iloc[len(durations) // 2])


def _phases(samples: pd.DataFrame) -> Verdict:
    """Judge whether a save lasts as long as its call, sync and commit together: no part lies outside the clock."""
    saves = samples[(samples["operation"] == "save") & samples["valid"]]
    sums = saves.pivot_table(index=["job_id", "trial"], columns="phase", values="duration_s", aggfunc="sum")
    if not {"call", "sync", "commit", "total"} <= set(sums.columns):
        return Verdict(passed=False, what=f"a save's total has its parts: only {', '.join(sums.columns)} were measured")
    gap = (sums["total"] - sums["call"] - sums["sync"] - sums["commit"]).abs().max()
    return Verdict(bool(gap < 0.001), f"a save's total is call + sync + commit: off by at most {gap * 1e6:.0f} µs")


def _doubt(jobs: pd.DataFrame, proof: str) -> str:
    """Return why a claim can't be proven on the target, as the logs have it; empty if it can."""
    proofs = jobs[proof].dropna() if proof in jobs else pd.Series(dtype=str)
    return next((str(reason) for reason in proofs if reason != PROVEN), "")


def _cold(caches: pd.Series, doubt: str) -> Verdict:
    if doubt:
        return Verdict(passed="cold" not in set(caches), what=f"no load is called cold from the device: {doubt}")
    unproven, proven = int((caches == "cold-unproven").sum()), int((caches == "cold").sum())
    return Verdict(proven > 0 and not unproven, f"cold loads are proven cold: {proven}, and {unproven} are not")


def _durable(saves: pd.DataFrame, doubt: str) -> Verdict:
    proven = (saves["durability"] == "committed") & (saves["dirty_pages"] == 0)
    if doubt:
        return Verdict("committed" not in set(saves["durability"]), f"no save is called durable: {doubt}")
    return Verdict(
        bool(len(saves)) and bool(proven.all()),
        f"saves are proven durable: {proven.sum()}, and {(~proven).sum()} are not",
    )
