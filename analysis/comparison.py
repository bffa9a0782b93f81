"""What the samples say about each method: medians with their spread, and what is missing or wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.load import Results

REFERENCE = "torch_save"
"""The method that others are set against, as in the document."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A median with its spread; `median` is NaN where no sample is valid."""

    median: float
    smallest: float
    largest: float
    count: int
    """Valid samples."""
    invalid: int
    """Samples that were measured, and may not be used."""


@dataclass(frozen=True, slots=True)
class Method:
    """One strategy, with its options, on one target at one scale."""

    label: str
    best_for: str
    save: Statistic
    """Seconds until the checkpoint was committed."""
    load_cold: Statistic
    """Seconds until every byte was in memory; no page cached before."""
    load_warm: Statistic
    size_bytes: float
    """Median of the files' sizes; NaN if nothing was written."""
    problems: tuple[str, ...]
    """What a reader has to know: jobs that failed or never reported, invalid samples."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods that differ in nothing but strategy: same study, state, target and scale."""

    study: str
    target: str
    nodes: int
    tasks_per_node: int
    state: str
    """The state in words."""
    state_bytes: int
    methods: tuple[Method, ...]

    def method(self, label: str) -> Method | None:
        """The method of that label."""
        return next((method for method in self.methods if method.label == label), None)


def compare(results: Results) -> list[Comparison]:
    """One comparison for each study, target and scale."""
    keys = ["study", "target", "nodes", "tasks_per_node"]
    found = []
    known = results.jobs.fillna({"target": "unknown", "nodes": 0, "tasks_per_node": 0})
    for key, jobs in known.groupby(keys, sort=True):
        labels = sorted(set(jobs["label"].dropna()), key=lambda label: (label != REFERENCE, label))
        described = jobs.dropna(subset=["state_digest"]) if "state_digest" in jobs else jobs.iloc[:0]
        study, target, nodes, tasks = key
        found.append(
            Comparison(
                study=str(study),
                target=str(target),
                nodes=int(float(str(nodes))),
                tasks_per_node=int(float(str(tasks))),
                state=_state_in_words(described),
                state_bytes=int(described["state_bytes"].iloc[0]) if len(described) else 0,
                methods=tuple(_method(label, jobs[jobs["label"] == label], results) for label in labels),
            )
        )
    return found


def _state_in_words(jobs: pd.DataFrame) -> str:
    if not len(jobs):
        return "no job got as far as building it"
    states = []
    for _, job in jobs.drop_duplicates("state_digest").iterrows():
        states.append(
            f"{job['state_model']}, {job['state_tensors']:.0f} tensors, {job['state_parameters'] / 1e9:.3f}e9 "
            f"parameters, {job['state_dtypes']}, {job['state_bytes'] / 2**30:.2f} GiB, digest "
            f"{job['state_digest'][:12]}"
        )
    warning = f"{len(states)} different ones, which do not compare: " if len(states) > 1 else ""
    return warning + "; ".join(states)


def _method(label: str, jobs: pd.DataFrame, results: Results) -> Method:
    ids = set(jobs["job_id"])
    study = jobs["study"].iloc[0]
    samples = results.samples[(results.samples["study"] == study) & results.samples["job_id"].isin(ids)]
    totals = samples[samples["phase"] == "total"]
    measured = totals[~totals["warmup"]]
    loads = measured[measured["operation"] == "load"]
    disk = results.disk[(results.disk["study"] == study) & results.disk["job_id"].isin(ids)]
    disk = disk.merge(measured[["job_id", "trial"]].drop_duplicates(), on=["job_id", "trial"])
    facts = [json.loads(text) for text in jobs["strategy_facts"].dropna() if text]
    return Method(
        label=label,
        best_for=facts[0].get("best_for", "") if facts else "",
        save=_statistic(measured[measured["operation"] == "save"]),
        load_cold=_statistic(loads[loads["cache"] == "cold"]),
        load_warm=_statistic(loads[loads["cache"] == "warm"]),
        size_bytes=float(disk["apparent_bytes"].median()) if len(disk) else math.nan,
        problems=(*_job_problems(jobs), *_sample_problems(totals)),
    )


def _statistic(samples: pd.DataFrame) -> Statistic:
    valid = samples[samples["valid"]]["duration_s"].dropna()
    invalid = len(samples) - len(valid)
    if not len(valid):
        return Statistic(math.nan, math.nan, math.nan, 0, invalid)
    return Statistic(float(valid.median()), float(valid.min()), float(valid.max()), len(valid), invalid)


def _job_problems(jobs: pd.DataFrame) -> list[str]:
    return [
        f"{job['job_id']}: {job['status']}" + (f": {job['error']}" if job["error"] else "")
        for _, job in jobs.iterrows()
        if job["status"] != "complete"
    ]


def _sample_problems(totals: pd.DataFrame) -> list[str]:
    problems = []
    for key, group in totals[~totals["valid"]].groupby(["job_id", "warmup", "operation", "reason"], sort=True):
        job_id, warmup, operation, reason = key
        problems.append(f"{job_id}: {len(group)} invalid {'warm-up ' if warmup else ''}{operation} sample(s): {reason}")
    unproven = totals[totals["valid"] & ~totals["warmup"] & (totals["cache"] == "cold-unproven")]
    if len(unproven):
        fraction = unproven["resident_fraction"].max()
        share = "an unknown share" if math.isnan(fraction) else f"up to {fraction:.0%}"
        problems.append(f"{len(unproven)} load(s) left out: not proven cold, {share} of the pages was cached")
    return problems


def change(value: float, reference: float) -> float:
    """How much more `value` is than `reference`, as a share of it; NaN where one is unknown."""
    return value / reference - 1 if reference else math.nan


def improvement(value: float, reference: float) -> float:
    """The share of `reference` that `value` saves: 0.5 is half the time."""
    return 1 - value / reference if reference else math.nan


def all_problems(comparisons: Sequence[Comparison]) -> list[str]:
    """Every problem of every method."""
    return [problem for each in comparisons for method in each.methods for problem in method.problems]
