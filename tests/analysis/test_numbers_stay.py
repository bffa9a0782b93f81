"""The numbers of one rich set of results, frozen: they were written before analysis had one model of a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from analysis.__main__ import advise_, check, project_, table
from analysis.advice.assumptions import Assumptions
from jobs.timing_log import Ceiling
from support.logs import GB, amended
from support.studies import MakeStudy, Ranked

SECONDS = {"torch_save": 4.0, "tensorstore_basic": 6.0, "tensorstore_t5x": 4.2}
NOISE = (1.0, 1.03, 1.25)


def build(make_study: MakeStudy, ranked: Ranked) -> list[Path]:
    """Two targets in three rounds, with a missing job, invalid and unproven trials; and two scales."""
    study = make_study(rounds=3, targets={"fast": {"path": "/fast"}, "slow": {"path": "/slow"}})
    for target, factor in (("fast", 1.0), ("slow", 3.0)):
        for number, noise in enumerate(NOISE, 1):
            for label, seconds in SECONDS.items():
                if (target, number, label) == ("slow", 3, "tensorstore_t5x"):
                    continue  # this job never reports
                save = [50.0, *(factor * noise * (seconds + step / 10) for step in range(3))]
                path = study.log(
                    label, on=target, number=number, save=save, cold=[s / 2 for s in save], warm=[s / 8 for s in save],
                    gib=[seconds / 4] * 4, warmups=1, clock_zero_unix_s=1e9 + 1e4 * number + 1e3 * seconds,
                    invalid={(2, "cold"): "loaded state differs: w"} if number == 2 else {},
                    unproven={1: 0.5, 3: 0.25} if target == "slow" else {},
                )  # fmt: skip
                amended(path, lambda log: log.ceiling.extend(_ceilings()))
    for nodes in (1, 2):
        for label, seconds in SECONDS.items():
            own = [[seconds / nodes, seconds / nodes + 0.5, seconds][: nodes + 1]] * 3
            many = ranked(label=label, nodes=nodes, tasks=2, save=[(o * 2)[: 2 * nodes] for o in own],
                          load=[(o * 2)[: 2 * nodes] for o in own], ceiling=[2.0] * 2 * nodes,
                          lost=[(1, "load", 1)] if label == "torch_save" else [])  # fmt: skip
    return [study.root, many]


def _ceilings() -> list[Ceiling]:
    return [
        Ceiling(when=when, operation=operation, size_bytes=GB, start_s=0.0, duration_s=seconds, direct=not buffered,
                buffered=buffered, resident_fraction=0.0)
        for when, slower in (("before", 1.0), ("after", 1.5))
        for operation, buffered, seconds in (("write", False, slower), ("write", True, 0.8), ("read", False, 0.5))
    ]  # fmt: skip


def test_numbers_stay(
    make_study: MakeStudy,
    ranked: Ranked,
    capsys: pytest.CaptureFixture[str],
    file_regression: FileRegressionFixture,
) -> None:
    """Tables, advice, projection and caveats of these results are what they were."""
    results = build(make_study, ranked)
    table(*results, style="csv")
    advise_(*results, assumptions=Assumptions(step_time_s=2.0), style="csv")
    advise_(*results, assumptions=Assumptions(restore="warm", stall="call"), style="csv")
    project_(*results, parameters=405e9, nodes=64, style="csv")
    check(*results, all_=True)
    file_regression.check(capsys.readouterr().out, extension=".txt")
