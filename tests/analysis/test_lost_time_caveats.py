"""Lost time of training loops with invalid saves, missing rows, slow ranks or too few blocks: what is said of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.logs.load import load_results
from analysis.measures.caveats import Kind
from analysis.measures.groups import split
from analysis.measures.loop import Part
from analysis.measures.setting import Setting, settings
from jobs.timing_log import TimingLog
from support.loops import SPEC, Costs, LoopSimulation
from support.lost_time import BEHIND, SYNC, cost_of, holds, measure, only


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Setting]:
    """Write the logs of simulated jobs, doctored by a change, and return their setting."""
    return partial(measure, tmp_path / "tiny")


def test_invalid_saves_are_counted_with_their_reasons(measured: Callable[..., Setting]) -> None:
    """They are in no median, and the method's problems name them."""
    reasons = {0: "loaded state differs: a", 7: "loaded state differs: a", 9: "not durable"}
    setting = measured(LoopSimulation(costs=BEHIND, reasons=reasons))
    cost = cost_of(setting)
    assert (only(cost).saves, only(cost).invalid) == (12, 3)
    assert cost.invalid == {"loaded state differs: a": 2, "not durable": 1}
    job_id = "r01-torch_save+way=thread-disk-1x1-compute"
    [method] = setting.methods
    assert method.problems == (
        f"{job_id}: 2 invalid save(s) of the loop: loaded state differs: a",
        f"{job_id}: 1 invalid save(s) of the loop: not durable",
    )


def test_a_slow_rank_is_in_all_steps_and_named(measured: Callable[..., Setting]) -> None:
    """One of three ranks saves slowly: all wait in the collective, and it is named, with host and part."""
    costs = replace(SYNC, slow_rank=1)
    setting = measured(LoopSimulation(way="sync", costs=costs, nodes=3))
    cost = cost_of(setting, "sync")
    assert only(cost).lost.interval.estimate == pytest.approx(3.0, abs=0.03)  # of one rank, not the slowest of three
    assert holds(only(cost).blocked, 3.0)
    for save in cost.jobs[0].saves:
        assert save.slow_rank is not None
        assert (save.slow_rank.rank, save.slow_rank.host, save.slow_rank.part) == (1, "node1", Part.CALL)
        assert save.slow_rank.excess_s == pytest.approx(3.0, abs=0.3)


def test_equal_ranks_have_no_straggler(measured: Callable[..., Setting]) -> None:
    """Ranks that differ by noise alone: nobody is named."""
    cost = cost_of(measured(LoopSimulation(way="sync", costs=SYNC, nodes=3, noise=0.005)), "sync")
    assert [save.slow_rank for save in cost.jobs[0].saves if save.slow_rank] == []


LATE = [("sync", replace(SYNC, writer=1)), ("thread", replace(BEHIND, writer=1))]


@pytest.mark.parametrize(("way", "costs"), LATE, ids=["sync", "thread"])
def test_a_rank_that_writes_late_is_named(way: str, costs: Costs, measured: Callable[..., Setting]) -> None:
    """It holds all ranks alike where they commit, or none: no step shows that, but when its files were on storage."""
    cost = cost_of(measured(LoopSimulation(way=way, costs=costs, nodes=3)), way)
    for save in cost.jobs[0].saves:
        assert save.slow_rank is not None
        assert (save.slow_rank.rank, save.slow_rank.host, save.slow_rank.by) == (1, "node1", "writing")
        assert save.slow_rank.excess_s == pytest.approx(costs.latency_s / 2)


def test_a_rank_that_writes_late_is_named_before_one_that_is_little_slower(measured: Callable[..., Setting]) -> None:
    """Another rank needs 0.1 s longer for the rest of the step, and holds the others too: 1.5 s of writing are more."""

    def lag(log: TimingLog) -> None:
        log.steps[:] = [
            replace(step, duration_s=step.duration_s + 0.1, collective_s=0.1 * (step.rank != 2))
            if step.blocked_s
            else step
            for step in log.steps
        ]

    cost = cost_of(measured(LoopSimulation(way="sync", costs=LATE[0][1], nodes=3), change=lag), "sync")
    assert {(save.slow_rank.rank, save.slow_rank.by) for save in cost.jobs[0].saves if save.slow_rank} == {
        (1, "writing")
    }


def test_a_log_without_times_of_files_names_no_late_rank(measured: Callable[..., Setting]) -> None:
    """Older ones don't have them."""

    def forget(log: TimingLog) -> None:
        log.saves[:] = [replace(row, synced_s=math.nan) for row in log.saves]

    cost = cost_of(measured(LoopSimulation(way="sync", costs=LATE[0][1], nodes=3, noise=0.005), change=forget), "sync")
    assert [save.slow_rank for save in cost.jobs[0].saves if save.slow_rank] == []


def test_a_rank_without_rows_makes_its_block_invalid(measured: Callable[..., Setting]) -> None:
    """A rank was lost in a block: its saves are invalid, and its steps are no reference."""

    def lost(log: TimingLog) -> None:
        log.blocks[:] = [row for row in log.blocks if (row.rank, row.block) not in {(1, 1), (1, 2)}]

    setting = measured(LoopSimulation(costs=BEHIND, nodes=2), change=lost)
    cost = cost_of(setting)
    assert sum(cost.invalid.values()) == 3
    assert set(cost.invalid) == {"missing: rank 1"}
    assert cost.jobs[0].reference.blocks == 4


def test_too_few_blocks_to_tell(measured: Callable[..., Setting]) -> None:
    """With three blocks of a kind in one job, no result could be called significant."""
    setting = measured(LoopSimulation(costs=SYNC, spec={"blocks": 3}))
    assert only(cost_of(setting)).lost.verdict == "too few blocks to tell"
    assert Kind.FEW_BLOCKS in {caveat.kind for caveat in setting.caveats}


def test_blocks_that_differ_as_clearly_as_they_can_are_not_called_equal(measured: Callable[..., Setting]) -> None:
    """With four blocks, p is 2/70 at best: among many methods without a loss, that is too little, and is called so."""
    nothing = [LoopSimulation(f"s{n}", "none", seed=n, spec={"blocks": 4}) for n in range(5)]
    setting = measured(LoopSimulation(costs=SYNC, spec={"blocks": 4}), *nothing)
    assert only(cost_of(setting)).lost.verdict == "too few blocks to tell"
    assert {only(cost_of(setting, "none", f"s{n}")).lost.verdict for n in range(5)} == {"not significant"}


def test_without_a_reference_nothing_is_known(measured: Callable[..., Setting]) -> None:
    """A job that ended before its first block without checkpoints: its saves are invalid, and no number is shown."""

    def only_saves(log: TimingLog) -> None:
        off = {row.block for row in log.blocks if not row.every}
        log.blocks[:] = [row for row in log.blocks if row.block not in off]

    cost = cost_of(measured(LoopSimulation(costs=SYNC), change=only_saves))
    at = only(cost)
    assert at.lost.verdict == ""
    assert at.saves == 0
    assert set(cost.invalid) == {"the job has no valid block without checkpoints"}


@pytest.mark.parametrize(
    ("kind", "keys", "change"),
    [
        (Kind.UNSTABLE_REFERENCE, {"noise": 0.1}, {}),
        (Kind.SHORT_STEPS, {}, {"loop_recorder_s": 0.05}),
        (Kind.UNSURE_CLOCKS, {"nodes": 2}, {"clock": 0.5}),
    ],
)
def test_caveats(kind: Kind, keys: Any, change: Any, measured: Callable[..., Setting]) -> None:
    """A caveat has its number and its remedy; a quiet loop has none of them."""

    def doctor(log: TimingLog) -> None:
        log.provenance |= {key: value for key, value in change.items() if key != "clock"}
        log.ranks[:] = [replace(row, clock_uncertainty_s=change.get("clock", 0.0)) for row in log.ranks]

    [caveat] = measured(LoopSimulation(costs=SYNC, **keys), change=doctor).caveats
    assert caveat.kind is kind
    assert caveat.number > 0


def test_tails_that_the_next_call_cuts_are_a_caveat(measured: Callable[..., Setting]) -> None:
    """Steps stay slow for longer than there is time before the next call, or after the last one."""
    costs = Costs(snapshot_s=0.5, latency_s=2.0, tail_s=(0.3,) * 20)
    [caveat] = measured(LoopSimulation(costs=costs)).caveats
    assert caveat.kind is Kind.CUT_TAILS
    assert caveat.what.startswith("15 of 15 saves: steps were not as long as without checkpoints again")


def test_a_quiet_loop_has_no_caveat(measured: Callable[..., Setting]) -> None:
    """Five blocks of each kind with steps that vary by 1 %."""
    assert measured(LoopSimulation(costs=BEHIND)).caveats == ()


def test_other_loops_are_other_settings(tmp_path: Path) -> None:
    """Steps of another kind share no table, and the setting says which loop it is."""
    for step in ("compute", "idle"):
        LoopSimulation(costs=SYNC, spec={"step": step}).write(tmp_path / "tiny")
    both = settings(load_results([tmp_path / "tiny"]))
    assert [setting.loop.step for setting in both if setting.loop] == ["compute", "idle"]
    assert "idle steps of 1 s on 2 cores, a save every 10 steps" in both[1].apart


def test_a_silent_job_goes_with_its_kind_of_step() -> None:
    """A planned job that never reported is a row of the setting with its step, though another setting has more jobs."""
    loops = {step: json.dumps(SPEC | {"step": step}) for step in ("compute", "idle")}
    jobs = pd.DataFrame(
        [
            *({"job_id": f"compute-{n}", "state_digest": "a", "loop": loops["compute"]} for n in range(3)),
            {"job_id": "idle-0", "state_digest": "a", "loop": loops["idle"]},
            {"job_id": "idle-1", "planned_step": "idle"},
            {"job_id": "idle-2", "loop": loops["idle"]},
            {"job_id": "compute-3", "planned_step": "compute"},
            {"job_id": "memory-0", "planned_step": "memory"},
        ]
    )
    assert [sorted(members["job_id"]) for members, _ in split(jobs)] == [
        ["compute-0", "compute-1", "compute-2", "compute-3", "memory-0"],
        ["idle-0", "idle-1", "idle-2"],
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"loop": "{}"},
        {"loop": "[" * 10_000},
        {"loop": '{"step": "idle", "step_s": 1e999, "every": [0], "saves": -1, "blocks": 0, "settle_steps": 0}'},
        {"start_s": float("nan")},
        {"start_s": float("-inf")},
        {"step": 10**6},
        {"commit_s": float("nan")},
        {"commit_s": 0.0},
        {"every": 10**12},
    ],
    ids=str,
)
def test_hostile_logs_are_no_traceback(change: dict[str, Any], measured: Callable[..., Setting]) -> None:
    """Whatever a log holds, the setting is built."""

    def doctor(log: TimingLog) -> None:
        for key, value in change.items():
            if key == "loop":
                log.header.loop = value
            if key in {"start_s", "every"}:
                log.blocks[:] = [replace(row, **{key: value}) for row in log.blocks]
            if key in {"start_s", "step", "commit_s"}:
                log.saves[:] = [replace(row, **{key: value}) for row in log.saves]

    setting = measured(LoopSimulation(costs=SYNC, nodes=2), change=doctor)
    assert len(setting.methods) == 1
