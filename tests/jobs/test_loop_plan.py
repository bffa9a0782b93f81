"""A study's table `[loop]`: what it plans, what it takes, and what is wrong with one."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

from jobs import plan_table
from jobs.cluster import memory
from jobs.cluster.arrays import batches
from jobs.errors import StudyError
from jobs.node.loop import blocks
from jobs.plan import plan, study_file
from jobs.plan.loop import Loop
from jobs.plan.plan import Job, Plan

LOOP: dict[str, Any] = {"every": [2, 6], "saves": 3, "blocks": 4, "ways": ["none", "sync", "thread", "process"]}


def study_of(tiny: dict[str, Any], loop: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    """The content of a study with a loop."""
    without = {key: value for key, value in tiny.items() if key != "trials"}
    return without | {"loop": dict(loop)} | keys


def planned(content: Mapping[str, Any]) -> Plan:
    """The plan of a study."""
    return plan.make_plan(study_file.parse(dict(content), "study.toml"))


def by_way(content: Mapping[str, Any]) -> dict[str, Job]:
    """The jobs of a study of one strategy, by their way."""
    return {job.way: job for job in planned(content).jobs}


def test_ways_and_steps_are_axes(tiny: dict[str, Any]) -> None:
    """A job for each way and step; both are in its id, and the way is in its label."""
    found = planned(study_of(tiny, {"ways": ["sync", "thread"], "step": ["idle", "a.module:step"]}))
    assert {
        "r01-torch_save+way=sync-here-1x1-idle", "r01-torch_save+way=thread-here-1x1-idle",
        "r01-torch_save+way=sync-here-1x1-a.module_step", "r01-torch_save+way=thread-here-1x1-a.module_step",
    } == {job.id for job in found.jobs}  # fmt: skip
    assert {"torch_save+way=sync", "torch_save+way=thread"} == {job.label for job in found.jobs}


def test_a_loop_has_one_null_test(tiny: dict[str, Any]) -> None:
    """A job that saves nothing is the same with every strategy: there is one for each kind of step."""
    loop = {"ways": ["sync", "none"], "step": ["idle", "launch"]}
    jobs = planned(study_of(tiny, loop, strategies=["torch_save", "safetensors_file"])).jobs
    assert ["idle", "launch"] == sorted(job.step for job in jobs if job.way == "none")
    assert {"torch_save"} == {job.strategy for job in jobs if job.way == "none"}
    assert 4 == sum(job.way == "sync" for job in jobs)


def test_what_a_job_will_take(tiny: dict[str, Any]) -> None:
    """Blocks, saves, bytes in all, and room for the checkpoints of a block; a job that saves nothing takes no room."""
    jobs = by_way(study_of(tiny, LOOP))
    trials = planned(tiny).jobs[0]
    assert {"none": (12, 0), "sync": (13, 25), "thread": (13, 25), "process": (13, 25)} == {
        way: (job.blocks, job.trials) for way, job in jobs.items()
    }
    assert 25 * trials.checkpoint_bytes == jobs["sync"].written_bytes
    assert 0 == jobs["none"].written_bytes
    assert (3 * trials.directory_bytes, 3 * trials.directory_files) == (
        jobs["sync"].directory_bytes, jobs["sync"].directory_files,
    )  # fmt: skip


def test_the_plan_as_a_person_sees_it(tiny: dict[str, Any]) -> None:
    """Blocks and saves instead of trials, and how long the steps take."""
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table.table(planned(study_of(tiny, LOOP | {"step_s": 0.5}))))
    shown = console.export_text()
    assert "trials" not in shown
    assert "blocks saves" in " ".join(shown.split())
    assert "3 checkpoints at a time; without checkpoints their steps take 5.6 min" in shown  # 4 jobs of 168 steps


def test_a_plan_survives_its_file(tiny: dict[str, Any]) -> None:
    """What is written is read; and a plan of an earlier release, whose jobs know of no loop, is read too."""
    made = planned(study_of(tiny, LOOP))
    assert made == plan.from_json(plan.to_json(made), "plan.json")
    earlier = json.loads(plan.to_json(planned(tiny)))
    del earlier["study"]["loop"]
    for job in earlier["jobs"]:
        del job["way"], job["step"], job["blocks"]
    read = plan.from_json(json.dumps(earlier), "plan.json")
    assert planned(tiny) == read
    assert [("trial", 3)] == [(job.part, job.parts) for job in read.jobs]


def test_memory(tiny: dict[str, Any]) -> None:
    """A rank that saves behind the loop needs a copy of the state as well, and a process of its own its libraries."""
    needed = {}
    for way in LOOP["ways"]:
        content = study_of(tiny, LOOP | {"ways": [way]}, slurm={"mem_gb": 1})
        (batch,) = batches(study_file.parse(content, "study.toml"), planned(content).jobs)
        found = memory.of(batch)
        assert found
        needed[way] = found.needed_bytes
    rank_bytes = planned(tiny).jobs[0].rank_bytes
    assert needed["none"] == needed["sync"] == needed["thread"] - rank_bytes
    assert needed["process"] == needed["thread"] + memory._LIBRARIES_BYTES


@pytest.mark.parametrize(
    ("loop", "keys", "message"),
    [
        ({"setp": "idle"}, {}, "there is no key 'loop.setp'. Valid keys of loop: step, step_s, cores, ways, every"),
        ({"step": "sleep"}, {}, "loop.step: 'sleep' is no step: expected compute, memory, launch, idle, or your own"),
        ({"step": ["idle", "idle"]}, {}, "loop.step: ['idle', 'idle'] must be one value or several different ones"),
        (
            {"ways": ["async"]},
            {},
            "loop.ways: 'async' is no way to save: expected none, sync, thread, process, library, checkpointer",
        ),
        ({"ways": []}, {}, "loop.ways: [] must be one value or several different ones"),
        ({"every": [0]}, {}, "loop.every: [0] must be one number or several"),
        ({"every": [5, 5]}, {}, "loop.every: [5, 5] must be one value or several different ones"),
        ({"step_s": 0}, {}, "loop.step_s = 0"),
        (
            {"every": [1000], "blocks": 1000, "saves": 5},
            {},
            "has 10,000,000 steps on each of 1 ranks, and its log holds",
        ),
        ({}, {"trials": {"repeats": 3}}, "trials.repeats says nothing in a study with a table [loop]"),
        ({}, {"trials": {"warm_load": False}}, "trials.warm_load says nothing in a study with a table [loop]"),
        (
            {},
            {"targets": {"here": {"path": "/tmp", "between": "true"}}},
            "targets.here.between says nothing in a study with a table [loop]",
        ),
    ],
)
def test_what_is_wrong(loop: dict[str, Any], keys: dict[str, Any], message: str, tiny: dict[str, Any]) -> None:
    """A message names the key, its value and what is valid."""
    with pytest.raises(StudyError) as caught:
        planned(study_of(tiny, loop, **keys))
    assert message in str(caught.value)


def test_a_way_that_a_library_has_not(tiny: dict[str, Any]) -> None:
    """It is left out with the reason; a study of which nothing is left is an error with it."""
    found = planned(study_of(tiny, {"ways": ["sync", "library"]}))
    reason = "torch_save with way=library: its library has no asynchronous save of its own"
    assert [reason] == found.left_out()
    assert ["sync"] == [job.way for job in found.jobs]
    with pytest.raises(StudyError, match="plans no job: " + reason):
        planned(study_of(tiny, {"ways": "library"}))


def test_blocks() -> None:
    """Each kind as often as asked, each pass over them in an order of its own, the same for all ranks."""
    loop = Loop.model_validate(LOOP)
    order = blocks.order(loop, "a job")
    passes = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert order == blocks.order(loop, "a job")
    assert [[0, 2, 6]] * 4 == [sorted(part) for part in passes]
    assert 1 < len({tuple(blocks.order(loop, f"job {number}")) for number in range(20)})
    assert (18, 6, 18) == tuple(blocks.steps_of(loop, every) for every in (0, 2, 6))
    assert {0, 6, 12} == blocks.saves_at(loop, "sync", 6)
    assert not blocks.saves_at(loop, "none", 6)
    assert not blocks.saves_at(loop, "sync", 0)
