"""The judge of training loops in the self-test: honest measurements pass, doctored ones fail, and noise is unsure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import load_results
from analysis.__main__ import selftest
from analysis.measures import loop_jobs
from analysis.selftest import verdicts
from analysis.verdict import Verdict
from jobs.timing_log import Step, TimingLog
from support.loops import Costs, LoopSimulation

IDLE = {"step": "jobs.node.loop.uneven:sleep", "step_s": 0.1, "cores": 1, "every": [6], "saves": 2, "blocks": 3}
BUSY = {"step": "compute", "step_s": 0.1, "cores": None, "every": [16], "saves": 1, "blocks": 6}

LONGER = (1.0, 1.3, 1.05, 1.2, 1.1, 1.25)
"""How much longer than stated the steps of each job are: a job's own blocks alone fit it."""

Options = Mapping[str, Any]
Change = Callable[[TimingLog], None]

NOT_DURABLE = "not durable: 3 pages were not on storage when it had ended"
DIFFERS = "loaded state differs: w"

METHODS: list[tuple[Options, str, Costs, str]] = [
    ({}, "sync", Costs(call_s=0.05, latency_s=0.05), ""),
    ({}, "library", Costs(call_s=0.01, latency_s=0.05), ""),
    ({"blocks_s": 0.3}, "sync", Costs(call_s=0.05, latency_s=0.05), ""),
    ({"blocks_s": 0.3}, "library", Costs(call_s=0.31, latency_s=0.35), ""),
    ({"sleep_s": 0.85}, "sync", Costs(call_s=0.9, latency_s=0.9), ""),
    ({"sleep_s": 0.85}, "library", Costs(call_s=0.01, latency_s=0.9), ""),
    ({"behaviour": "torn"}, "sync", Costs(call_s=0.05, latency_s=0.05), ""),
    ({"behaviour": "torn"}, "library", Costs(call_s=0.01, latency_s=0.05), DIFFERS),
    ({"behaviour": "swallows"}, "library", Costs(call_s=0.01, latency_s=0.05), DIFFERS),
    ({"behaviour": "unsynced"}, "sync", Costs(call_s=0.05, latency_s=0.05), NOT_DURABLE),
    ({"behaviour": "unsynced"}, "library", Costs(call_s=0.01, latency_s=0.05), NOT_DURABLE),
]
"""What the self-test's study measures beside idle steps: options, way, costs, and why every save is invalid."""


def unchanged(_: TimingLog) -> None:
    """Change nothing of a log."""


def write(
    root: Path, number: int, options: Options, way: str, costs: Costs, reason: str = "", *,
    spec: Mapping[str, Any] = IDLE, noise: float = 0.002, change: Change = unchanged,
) -> None:  # fmt: skip
    """Write the log of a job of the self-test, whose steps have a length of their own."""
    label = "+".join(["_selftest", *(f"{name}={value}" for name, value in options.items()), f"way={way}"])
    longer = spec["step_s"] * LONGER[number % len(LONGER)]
    simulation = LoopSimulation(
        "_selftest", way, costs, spec=dict(spec) | {"step_s": longer}, noise=noise, seed=number
    )  # fmt: skip

    def complete(log: TimingLog) -> None:
        loop = json.loads(log.header.loop) | {"step_s": spec["step_s"]}
        log.header = replace(
            log.header, label=label, job_id=f"r01-{label}", strategy_options=json.dumps(options), loop=json.dumps(loop)
        )
        log.provenance["loop_cores"] = 2
        log.blocks = [replace(block, cpu_s=2 * block.duration_s) for block in log.blocks]
        if reason:
            log.saves = [replace(save, valid=False, reason=reason) for save in log.saves]
        change(log)

    simulation.write(root, complete)


def judge(root: Path, change: Change = unchanged, **keys: Any) -> list[Verdict]:
    """Judge the study of idle steps, after a change of every log."""
    for number, (options, way, costs, reason) in enumerate(METHODS):
        write(root, number, options, way, costs, reason, change=change, **keys)
    return verdicts(load_results(root))


def failed(judged: list[Verdict]) -> list[str]:
    """What was not found to be as it is known to be."""
    return [verdict.what for verdict in judged if verdict.passed is False]


def test_an_honest_measurement_passes(tmp_path: Path) -> None:
    """Every known time is found within its interval, and every fault is caught."""
    judged = judge(tmp_path)

    assert failed(judged) == []
    assert [verdict.what for verdict in judged if verdict.passed is None] == []
    whats = [verdict.what for verdict in judged]
    for begins in (
        "every step begins where the one before ended",
        "the step of a call has what its save blocked",
        "library: a save that holds the loop for 0.3 s, lost",
        "sync: a save that holds the loop for 0.85 s, lost",
        "library: a save that sleeps behind the loop for 0.85 s, lost beside that",
        "library: a save that sleeps behind the loop for 0.85 s, latency",
        "library: a save that sleeps behind the loop for 0.85 s, the next one waits",
        "torn, beside a loop: 7 of 7",
        "swallows, beside a loop: 7 of 7",
        "unsynced, beside a loop: 14 of 14",
    ):
        assert sum(what.startswith(begins) for what in whats) == 1, begins


def test_a_reference_from_another_job_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job's steps have a length of their own: the blocks of another job make its saves look dearer or cheaper."""
    honest, first = loop_jobs.reference_of, []

    def doctored(blocks: Any) -> Any:
        first.append(honest(blocks))
        return first[0]

    monkeypatch.setattr(loop_jobs, "reference_of", doctored)

    assert len([what for what in failed(judge(tmp_path)) if ", lost" in what]) >= 2


def test_averaged_steps_fail(tmp_path: Path) -> None:
    """A log of every fifth step's average hides what a single step was held."""

    def average(log: TimingLog) -> None:
        averaged: list[Step] = []
        for start in range(0, len(log.steps), 5):
            of_five = log.steps[start : start + 5]
            mean_s = sum(step.duration_s for step in of_five) / len(of_five)
            for step in of_five:
                begins_s = averaged[-1].start_s + averaged[-1].duration_s if averaged else step.start_s
                averaged.append(replace(step, start_s=begins_s, duration_s=mean_s))
        log.steps = averaged

    assert [what[:20] for what in failed(judge(tmp_path, average)) if what.startswith("the step of a call")] != []


def test_a_step_that_is_not_in_the_log_fails(tmp_path: Path) -> None:
    """A recorder that leaves out every tenth step."""

    def thin_out(log: TimingLog) -> None:
        log.steps = [step for number, step in enumerate(log.steps) if number % 10 != 4]

    assert [what for what in failed(judge(tmp_path, thin_out)) if "are missing" in what] != []


def test_a_clock_of_saves_that_starts_after_the_wait_fails(tmp_path: Path) -> None:
    """The step has what the save no longer accounts for, and the next save seems not to have waited."""

    def start_late(log: TimingLog) -> None:
        log.saves = [
            replace(save, start_s=save.start_s + save.wait_s, commit_s=save.commit_s - save.wait_s, wait_s=0.0)
            for save in log.saves
        ]

    judged = failed(judge(tmp_path, start_late))

    assert [what for what in judged if what.startswith("the step of a call")] != []
    assert [what for what in judged if "the next one waits" in what] != []


def test_a_clock_of_steps_that_starts_after_the_wait_fails(tmp_path: Path) -> None:
    """Time is missing between two steps."""

    def start_late(log: TimingLog) -> None:
        waits = {(save.block, save.step): save.wait_s for save in log.saves}
        log.steps = [
            replace(
                step, start_s=step.start_s + wait_s, duration_s=step.duration_s - wait_s,
                blocked_s=step.blocked_s - wait_s,
            )
            for step in log.steps
            for wait_s in [waits.get((step.block, step.step), 0.0)]
        ]  # fmt: skip

    judged = failed(judge(tmp_path, start_late))

    assert [what for what in judged if what.startswith("every step begins where")] != []


def test_saves_that_are_not_compared_or_looked_at_fail(tmp_path: Path) -> None:
    """Faulty saves that are called valid are named."""

    def believe(log: TimingLog) -> None:
        log.saves = [replace(save, valid=True, reason="") for save in log.saves]

    judged = failed(judge(tmp_path, believe))

    assert {what.split(",")[0] for what in judged} == {"torn", "swallows", "unsynced"}


def test_an_honest_save_that_is_called_invalid_fails(tmp_path: Path) -> None:
    """A comparison that finds a difference everywhere catches every fault, and is wrong all the same."""

    def doubt(log: TimingLog) -> None:
        log.saves = [replace(save, valid=False, reason=save.reason or DIFFERS) for save in log.saves]

    assert [what for what in failed(judge(tmp_path, doubt)) if what.startswith("nothing honest is called inv")] != []


def test_a_busy_machine_is_no_failure(tmp_path: Path) -> None:
    """Where steps take anything from half to twice their time, known times can't be judged, and the rest still is."""
    judged = judge(tmp_path, noise=0.8)
    words = [verdict.word for verdict in judged if ", lost" in verdict.what]

    assert words.count("unsure") >= 2
    assert "FAILED" not in words
    assert [verdict.word for verdict in judged if verdict.what.startswith(("every step", "torn", "swallows"))] == [
        "ok", "ok", "ok",
    ]  # fmt: skip


def busy(root: Path, interference_s: float, change: Change = unchanged) -> list[Verdict]:
    """Judge the study of computing steps: helpers took half a second of CPU time for every save, on two cores."""
    taking = Costs(call_s=0.001, latency_s=1.0, interference_s=interference_s)
    plain = Costs(call_s=0.001, latency_s=0.05)
    for number, (options, way, costs) in enumerate(
        [({}, "none", plain), ({}, "library", plain), ({"spins_s": 0.5}, "library", taking)]
    ):
        write(root, number, options, way, costs, spec=BUSY, change=change)
    return verdicts(load_results(root))


def test_cores_that_are_taken_from_the_loop_are_seen(tmp_path: Path) -> None:
    """A quarter of a second of each of two cores is lost, and no save loses nothing."""
    judged = busy(tmp_path, interference_s=0.028)

    assert failed(judged) == []
    assert len([verdict for verdict in judged if "takes 0.25 s of CPU time" in verdict.what and verdict.passed]) == 2
    assert [verdict.passed for verdict in judged if verdict.what.startswith("no save, lost")] == [True]


def test_cpu_time_that_is_not_counted_fails(tmp_path: Path) -> None:
    """Processes spun for half a second: that none of it was counted is a fault, and no sign of a busy machine."""

    def forget(log: TimingLog) -> None:
        log.blocks = [replace(block, helper_cpu_s=0.0) for block in log.blocks]

    assert failed(busy(tmp_path, interference_s=0.028, change=forget)) == [
        "a save that spins on each core for 0.5 s: 0.000 s of CPU time were counted"
    ]


def test_interference_that_is_overlooked_fails(tmp_path: Path) -> None:
    """Steps that are as long as without checkpoints, although their cores were busy, can't be."""
    assert [what for what in failed(busy(tmp_path, interference_s=0.0)) if ", lost: 0.250 s is known" in what] != []


def test_the_command_fails_only_for_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 for a verdict that failed, and 0 where nobody can tell."""
    judge(tmp_path / "busy", noise=0.8)
    judge(tmp_path / "honest")

    assert selftest(tmp_path / "busy") == selftest(tmp_path / "honest") == 0
    assert "unsure library: a save that holds the loop" in capsys.readouterr().out
