"""Groups the jobs that may be compared: they differ only in what is being compared.

Strategy and target are compared. A difference in anything else — the state, the versions, the kind of node — splits
the table, and the split says what differs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from analysis.measures.loop import spec_of

MUST_AGREE = {
    "state_digest": "the state",
    "state_contents": "the state's contents",
    "state_sharding": "how ranks share the state",
    "load_ranks": "on how many ranks it is loaded",
    "read_shift": "how many nodes from its writer a share is loaded",
    "packages": "the package versions",
    "node_type": "the kind of node",
    "cold_loads": "what is known of cold loads",
    "durability": "whether saves are proven durable",
    "loop": "the training loop",
}
"""The columns of `Results.jobs` in which compared jobs have to agree, and what they are called in messages."""


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs that may be compared: rows of `Results.jobs`."""

    study: str
    target: str
    nodes: int
    tasks_per_node: int
    apart: str
    """What sets them apart from other jobs of the same study, target and scale; empty if nothing."""
    jobs: pd.DataFrame


def groups(jobs: pd.DataFrame) -> Iterator[Group]:
    """Group the jobs by study, target and scale, and by what they must agree in; targets in the study's order."""
    keys = ["study", "position", "target", "nodes", "tasks_per_node"]
    known = jobs.fillna({"target": "unknown", "nodes": 0, "tasks_per_node": 0})
    for key, rows in known.assign(position=_positions(known)).groupby(keys, sort=True):
        study, _, target, nodes, tasks = map(str, key)
        for members, apart in split(rows):
            yield Group(study, target, int(float(nodes)), int(float(tasks)), apart, members)


def _positions(jobs: pd.DataFrame) -> pd.Series:
    """Return, per job, the position of its target in the study; targets of an unknown position come last."""
    if "target_position" not in jobs:
        return pd.Series(math.inf, index=jobs.index)
    of_target = jobs.groupby(["study", "target"], sort=False)["target_position"].transform("min")
    return of_target.astype("float64").fillna(math.inf)


def split(jobs: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """Split jobs into groups that may be compared, with what sets a group apart (empty if it is the only one).

    Jobs that never reported, or failed before their state was built, go with the largest group; in a study with
    training loops, with the largest that has their kind of step.
    """
    known = [column for column in MUST_AGREE if column in jobs]
    described = jobs.dropna(subset=["state_digest"]) if "state_digest" in jobs else jobs.iloc[:0]
    if not len(described):
        return [(jobs, "")]
    keys = described[known].fillna("unknown").astype(str).agg("\x1f".join, axis=1)
    if len(set(keys)) == 1:
        return [(jobs, "")]
    differing = [column for column in known if len(set(described[column].fillna("unknown").astype(str))) > 1]
    silent = jobs.loc[jobs.index.difference(described.index)]
    steps, step_of_silent = described.apply(_step, axis=1), silent.apply(_step, axis=1)
    goes_with = {
        step: cast("Hashable", keys[(steps == step) if (steps == step).any() else keys.index].mode().iloc[0])
        for step in set(step_of_silent)
    }
    groups = []
    for key, group in described.groupby(keys, sort=True):
        members = pd.concat([group, silent[[goes_with[step] == key for step in step_of_silent]]])
        groups.append((members.sort_index(), _apart(group, differing)))
    return groups


def _step(job: pd.Series) -> str:
    """Return what a step of a job's training loop does, as its log or else the plan has it; empty without a loop."""
    spec = spec_of(str(job.get("loop", "")))
    planned = job.get("planned_step")
    return spec.step if spec else planned if isinstance(planned, str) else ""


def _apart(group: pd.DataFrame, differing: Sequence[str]) -> str:
    parts = [f"{MUST_AGREE[column]} ({_in_words(column, group[column].iloc[0])})" for column in differing]
    return f"not set beside the study's other jobs, which differ in {'; '.join(parts)}"


def _in_words(column: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a job without a log has none, which turns the column into floats
    if column == "loop":
        return str(spec_of(str(value)) or "none")
    return "as many as save it" if column == "load_ranks" and value == 0 else str(value)[:200]


def agreement(jobs: pd.DataFrame) -> dict[str, str]:
    """Return what the jobs of a group agree in, by the keys of `MUST_AGREE`; nothing where none built its state."""
    described = jobs.dropna(subset=["state_digest"]) if "state_digest" in jobs else jobs.iloc[:0]
    return {key: str(described[key].iloc[0]) for key in MUST_AGREE if key in described and len(described)}
