"""Methods that may be set side by side, and how each differs from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import ResultsError
from analysis.logs.frames import Results
from analysis.logs.operations import several_ranks, whole_ceilings, whole_operations
from analysis.measures.caveats import Doubt, doubts_about
from analysis.measures.ceilings import best
from analysis.measures.groups import Group, agreement, groups
from analysis.measures.method import Method, method_of
from analysis.measures.relative import Relative, relate
from analysis.measures.stragglers import own_work

REFERENCE = "torch_save"
"""The method that others are set against, as in the original OpenLLaMA-3B comparison."""


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
    apart: str
    """What sets this apart from other jobs of the same study, target and scale; empty if nothing."""
    agreed: Mapping[str, str]
    """What all of its jobs agree in, by the keys of `guard.MUST_AGREE`."""
    methods: tuple[Method, ...]
    reference: str
    """The label of the method that the others are set against."""
    relative: Mapping[str, Relative]
    """How the others differ from it, by label; empty where it is not among the methods."""
    doubts: tuple[Doubt, ...]
    """What makes the figures less sure."""

    def method(self, label: str) -> Method | None:
        """The method of that label."""
        return next((method for method in self.methods if method.label == label), None)


def compare(results: Results, reference: str = "") -> list[Comparison]:
    """One comparison for each study, target and scale.

    Args:
        results: what the logs hold.
        reference: the label of the method that others are set against; by default `REFERENCE`, where there is one.

    Raises:
        ResultsError: if a reference is named that no comparison has.
    """
    labels = sorted(set(results.jobs["label"].dropna()))
    if reference and reference not in labels:
        raise ResultsError(f"no method is called {reference!r}: name one of {', '.join(labels)}")
    rows = Rows(results)
    return [_comparison(group, rows, reference or REFERENCE) for group in groups(results.jobs)]


class Rows:
    """The rows of each job, looked up once for all comparisons; those of several ranks are made one operation."""

    def __init__(self, results: Results) -> None:
        several = several_ranks(results.samples, results.jobs)
        self._frames = {
            "samples": whole_operations(results.samples, several),
            "disk": results.disk,
            "ceiling": best(whole_ceilings(results.ceiling)),
            "ranks": results.ranks,
            "work": own_work(several, results.ranks),
        }
        self._places = {
            name: frame.groupby(["study", "job_id"], sort=False).indices for name, frame in self._frames.items()
        }

    def of(self, jobs: pd.DataFrame) -> Results:
        """What the results hold of these jobs."""
        return Results(jobs=jobs, **{name: self._of(name, jobs) for name in ("samples", "disk", "ceiling", "ranks")})

    def work_of(self, jobs: pd.DataFrame) -> pd.DataFrame:
        """What each rank did by itself in these jobs (`spread.own_work`)."""
        return self._of("work", jobs)

    def _of(self, name: str, jobs: pd.DataFrame) -> pd.DataFrame:
        keys = zip(jobs["study"], jobs["job_id"], strict=True)
        places = [self._places[name][key] for key in keys if key in self._places[name]]
        return self._frames[name].take(np.sort(np.concatenate(places)) if places else [])


def _comparison(group: Group, rows: Rows, reference: str) -> Comparison:
    jobs = group.jobs
    results, work = rows.of(jobs), rows.work_of(jobs)
    labels = sorted(set(jobs["label"].dropna()), key=lambda label: (label != reference, label))
    described = jobs.dropna(subset=["state_digest"]) if "state_digest" in jobs else jobs.iloc[:0]
    methods = tuple(method_of(label, jobs[jobs["label"] == label], results, work) for label in labels)
    return Comparison(
        study=group.study,
        target=group.target,
        nodes=group.nodes,
        tasks_per_node=group.tasks_per_node,
        state=_state_in_words(described),
        state_bytes=int(described["state_bytes"].iloc[0]) if len(described) else 0,
        apart=group.apart,
        agreed=agreement(jobs),
        methods=methods,
        reference=reference,
        relative=relate(methods, reference),
        doubts=tuple(doubts_about(results, jobs)),
    )


def _state_in_words(jobs: pd.DataFrame) -> str:
    if not len(jobs):
        return "no job got as far as building it"
    states = []
    for _, job in jobs.drop_duplicates("state_digest").iterrows():
        states.append(
            f"{job['state_model']}, {job['state_tensors']:.0f} tensors, {job['state_parameters'] / 1e9:.3f}e9 "
            f"parameters, {job['state_dtypes']}, {job['state_bytes'] / 2**30:.2f} GiB, digest "
            f"{job['state_digest'][:12]}{_shared_by_ranks(job)}"
        )
    return "; ".join(states)


def _shared_by_ranks(job: pd.Series) -> str:
    """What is not as with one rank that saves weights and loads them."""
    ranks = int(job["nodes"] * job["tasks_per_node"])
    said = [f"contents {job['state_contents']}"] if job["state_contents"] != "weights" else []
    said += [f"among {ranks} ranks, {job['state_sharding']}"] if ranks > 1 else []
    said += [f"loaded on {job['load_ranks']:.0f} ranks"] if job["load_ranks"] else []
    away = f"{job['read_shift']:.0f} node{'s' * (job['read_shift'] != 1)}"
    said += [f"each share loaded {away} from where it was written"] if job["read_shift"] else []
    return "".join(f", {each}" for each in said)


def all_problems(comparisons: Sequence[Comparison]) -> list[str]:
    """Every problem of every method."""
    return [problem for each in comparisons for method in each.methods for problem in method.problems]
