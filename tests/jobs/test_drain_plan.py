"""A study whose targets drain to others, or that saves by a `Checkpointer`: its plan, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import StudyError
from jobs.plan import plan, study_file
from jobs.plan.plan import Plan

TWO = {"nvme": {"path": "/nvme", "drain_to": "lustre"}, "lustre": {"path": "/lustre"}}
LOOP = {"ways": ["sync", "checkpointer"]}


def planned(tiny: dict[str, Any], **keys: Any) -> Plan:
    """The plan of a study with these keys; None takes one away."""
    content = tiny | {"targets": TWO, "loop": LOOP} | keys
    without = {key: value for key, value in content.items() if key != "trials" and value is not None}
    return plan.make_plan(study_file.parse(without, "study.toml"))


def test_ways(tiny: dict[str, Any]) -> None:
    """A target that drains has jobs of one way, and the plan lists why; the other has all, and room for both's.

    Every checkpoint of a job that drains is written twice.
    """
    found = planned(tiny)
    assert {("nvme", "checkpointer"), ("lustre", "sync"), ("lustre", "checkpointer")} == {
        (job.target, job.way) for job in found.jobs
    }
    written = {job.target: job.written_bytes for job in found.jobs if job.way == "checkpointer"}
    assert written["nvme"] == 2 * written["lustre"] > 0
    assert ["sync on nvme: it drains to lustre, which only way=checkpointer does"] == found.left_out()
    assert found.largest("nvme") == found.largest("lustre") > (0, 0)
    assert found == plan.from_json(plan.to_json(found), "plan.json")
    assert [] == planned(tiny, loop={"ways": "checkpointer"}).left_out()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"targets": {"nvme": {"path": "/nvme", "drain_to": "gpfs"}, "lustre": {"path": "/lustre"}}},
            "target 'nvme' has drain_to = 'gpfs', and the study has no such target: expected one of lustre",
        ),
        (
            {"targets": {"nvme": {"path": "/nvme", "drain_to": "nvme"}}},
            "target 'nvme' has drain_to = 'nvme', and that one drains to 'nvme' itself",
        ),
        (
            {"targets": {"a": {"path": "/a", "drain_to": "b"}, "b": {"path": "/b", "drain_to": "c"}, "c": {}}},
            "target 'a' has drain_to = 'b', and that one drains to 'c' itself",
        ),
        (
            {"targets": {"a": {"path": "/a", "drain_to": "b"}, "b": {"path": "/a"}}},
            "target 'a' has drain_to = 'b', and both are the directory /a",
        ),
        ({"loop": None}, "target 'nvme' has drain_to = 'lustre', and only a training loop saves on two levels"),
        ({"loop": {"ways": ["sync"]}}, "target 'nvme' has drain_to = 'lustre', and loop.ways lacks 'checkpointer'"),
        (
            {"targets": {"a": {"path": "/a", "drain_bytes_per_s": 1e9}}},
            "drain_bytes_per_s says nothing without drain_to",
        ),
        (
            {"slurm": {"tasks_per_node": [1, 2]}},
            "loop.ways has 'checkpointer', whose jobs have one rank, and target 'nvme' is to be measured on several",
        ),
    ],
)
def test_what_is_wrong(keys: dict[str, Any], message: str, tiny: dict[str, Any]) -> None:
    """A message names the target, what is wrong, and what to write."""
    with pytest.raises(StudyError) as caught:
        planned(tiny, **keys)
    assert message in str(caught.value)
