"""What is advised from lost times that were measured in training loops, which are simulated and so known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis import load_results
from analysis.__main__ import advise_, project_
from analysis.advice.advice import LEAST_LATENCY, LEAST_LOST, Advice, Pick, advise
from analysis.advice.assumptions import Assumptions
from analysis.advice.intervals import best_interval_s, loss
from analysis.advice.schedules import Schedule, cost_of
from analysis.errors import ResultsError
from analysis.measures.setting import settings
from analysis.tables.advice import advice_tables
from analysis.tables.advice_words import in_words
from analysis.tables.table import Number
from support.logs import LogBuilder, job
from support.loops import Costs, LoopSimulation

SPEC = {"every": [80], "saves": 2, "blocks": 3}
"""Intervals of 80 s, longer than any latency here."""

SYNC = Costs(call_s=30.0, latency_s=30.0)
THREAD = Costs(snapshot_s=1.0, interference_s=0.1, latency_s=60.0)
CHEAP = Costs(snapshot_s=0.1, latency_s=60.0)

HOUR_S = 3600.0


def simulate(root: Path, ways: Mapping[str, Costs], *, rounds: int = 3, noise: float = 0.002, **keys: Any) -> Path:
    """Write the logs of these ways to save, one job each in every round; returns where they are."""
    for number in range(1, rounds + 1):
        for place, (way, costs) in enumerate(ways.items()):
            arguments = {"spec": SPEC, "seed": 100 * number + place} | keys
            LoopSimulation(way=way, costs=costs, noise=noise, number=number, **arguments).write(root)
    return root


def advice(root: Path, **assumptions: Any) -> Advice:
    """The advice on the only setting of these results."""
    [setting] = settings(load_results(root))
    return advise(setting, Assumptions(**assumptions))


def schedule(given: Advice, way: str) -> Schedule:
    """The schedule of a way to save."""
    return next(each for each in given.schedules if each.label.endswith(f"way={way}"))


def pick(given: Advice, question: str) -> Pick:
    """The answer to one question."""
    return next(each for each in given.picks if each.question == question)


def test_the_measured_lost_time_and_latency_go_into_the_model(tmp_path: Path) -> None:
    """What was simulated is found, and interval, loss and exposure are the model's at these times."""
    given = advice(simulate(tmp_path, {"sync": SYNC, "thread": THREAD}), mtbf_hours=4, restart_s=300)
    sync, thread = schedule(given, "sync"), schedule(given, "thread")

    assert sync.lost_s.estimate == pytest.approx(30, rel=0.02)
    assert thread.lost_s.estimate == pytest.approx(1 + 0.1 * 59, rel=0.1)
    assert thread.latency_s.estimate == pytest.approx(60)
    for found in (sync, thread):
        lost_s, latency_s = found.lost_s.estimate, found.latency_s.estimate
        best_s = best_interval_s(lost_s, latency_s, 4 * HOUR_S)
        assert found.interval_s.estimate == best_s
        assert found.exposure_s.estimate == pytest.approx(best_s + lost_s + latency_s)
        assert found.loss == loss(best_s, lost_s, 300, 4 * HOUR_S, latency_s=latency_s)
        assert found.interval_s.low <= best_s <= found.interval_s.high
        assert found.loss_range.low < found.loss.total < found.loss_range.high


def test_the_way_that_loses_least_is_not_the_one_that_is_committed_first(tmp_path: Path) -> None:
    """The asynchronous save loses a quarter of the synchronous one's time, and is committed later."""
    given = advice(simulate(tmp_path, {"sync": SYNC, "thread": THREAD}))

    assert pick(given, LEAST_LOST).best == ("torch_save+way=thread",)
    assert pick(given, LEAST_LOST).next_best == "torch_save+way=sync"
    assert pick(given, LEAST_LATENCY).best == ("torch_save+way=sync",)
    assert pick(given, LEAST_LATENCY).next_ratio.estimate == pytest.approx(2)
    words = " ".join(in_words(given))
    assert words.startswith(
        "On disk, 1 node × 1 task, beside compute steps of 1 s on 2 cores, a save every 80 steps, use "
        "torch_save+way=thread."
    )
    assert "is committed 60 s (60 s to 60 s) after its call." in words
    assert "Soonest committed: torch_save+way=sync." in words


def test_saves_come_no_sooner_than_the_save_before_is_committed(tmp_path: Path) -> None:
    """A tenth of a second lost asks for a save every 27 s, but each is in flight for a minute. Steps are rounded up."""
    given = advice(simulate(tmp_path, {"process": CHEAP}), mtbf_hours=1)
    [cheap] = given.schedules
    [row] = advice_tables(given)[1].rows
    headings = advice_tables(given)[1].headings

    assert cheap.daly_s < 30
    assert cheap.interval_s.estimate == pytest.approx(60 - cheap.lost_s.estimate)
    assert cheap.exposure_s.estimate == pytest.approx(120)
    assert row[headings.index("decided by")] == "latency"
    assert row[headings.index("interval [steps]")] == Number(60, 0)
    assert "every 60 steps (sooner, a save would wait for the one before)" in " ".join(in_words(given))


def test_ways_that_the_data_does_not_separate_are_advised_together(tmp_path: Path) -> None:
    """Two ways that cost the same, in loops with noise: one of them has the smaller median, and that proves nothing."""
    given = advice(simulate(tmp_path, {"thread": THREAD, "process": THREAD, "sync": SYNC}, noise=0.02))

    assert set(pick(given, LEAST_LOST).best) == {"torch_save+way=thread", "torch_save+way=process"}
    assert pick(given, LEAST_LOST).next_best == "torch_save+way=sync"
    assert "the data does not separate them" in in_words(given)[0]


def test_too_few_rounds_are_named(tmp_path: Path) -> None:
    """With two rounds there is no test, and the advice says what is compared instead."""
    given = advice(simulate(tmp_path, {"sync": SYNC, "thread": THREAD}, rounds=2))

    assert pick(given, LEAST_LOST).best == ("torch_save+way=thread",)
    assert any(line.startswith("fewer than three rounds: all strategies") for line in given.thin)


def test_a_way_with_an_invalid_checkpoint_is_not_advised(tmp_path: Path) -> None:
    """However little it loses, and however many of its checkpoints are right."""
    simulate(tmp_path, {"sync": SYNC})
    simulate(tmp_path, {"process": CHEAP}, reasons={2: "loaded state differs: w"})
    given = advice(tmp_path)

    assert pick(given, LEAST_LOST).best == ("torch_save+way=sync",)
    assert pick(given, LEAST_LATENCY).best == ("torch_save+way=sync",)
    assert math.isnan(schedule(given, "process").loss.total)
    assert any(
        line.startswith("with an invalid checkpoint: torch_save+way=process; not advised") for line in given.thin
    )


def test_saves_that_are_never_committed_in_time_have_no_lost_time_of_their_own(tmp_path: Path) -> None:
    """The next call comes before every commit but a block's last: those still tell, and alone they do."""
    given = advice(simulate(tmp_path, {"thread": THREAD}, spec=SPEC | {"every": [20]}))

    assert schedule(given, "thread").latency_s.estimate == pytest.approx(60)
    assert schedule(given, "thread").lost_s.estimate == pytest.approx(1 + 0.1 * 59, rel=0.1)


def test_slow_saves_count_where_the_next_call_comes_before_their_commit(tmp_path: Path) -> None:
    """Every second save takes 12 s instead of 8 s, and one is called every 10 s: the fast ones alone would advise 8 s,
    for each round as for all.
    """
    costs = Costs(snapshot_s=0.5, latency_s=8, later_s=4)
    root = simulate(tmp_path, {"thread": costs}, rounds=1, spec={"every": [10], "saves": 3, "blocks": 6})
    [setting] = settings(load_results(root))
    [method] = setting.methods

    assert cost_of(method, Assumptions()).latency_s.estimate == pytest.approx(10)
    assert cost_of(method, Assumptions()).latency_s_by_round == pytest.approx({"1": 10})
    assert pick(advise(setting, Assumptions()), LEAST_LATENCY).value.estimate == pytest.approx(10)


def test_a_save_that_costs_less_than_nothing_costs_nothing(tmp_path: Path) -> None:
    """Noise can make steps with saves shorter; advice from a negative time would be nonsense."""
    given = advice(simulate(tmp_path, {"process": Costs(latency_s=60, interference_s=-0.05)}))
    [found] = given.schedules

    assert (found.lost_s.estimate, found.lost_s.low) == (0, 0)
    assert found.interval_s.estimate == pytest.approx(60)
    assert 0 < found.loss.total < 1


def test_the_null_test_is_no_way_to_save(tmp_path: Path) -> None:
    """A loop that saves nothing loses nothing, and nothing else either would be worse advice."""
    given = advice(simulate(tmp_path, {"none": Costs(), "sync": SYNC}))

    assert [each.label for each in given.schedules] == ["torch_save+way=sync"]


def test_lost_times_of_different_loops_are_not_mixed(tmp_path: Path) -> None:
    """A save that costs little beside idle steps costs much beside computing ones: each loop has its own advice."""
    simulate(tmp_path, {"thread": THREAD})
    simulate(tmp_path, {"thread": CHEAP}, spec=SPEC | {"step": "idle"})
    found = {
        setting.loop.step: advise(setting, Assumptions()).schedules
        for setting in settings(load_results(tmp_path))
        if setting.loop
    }

    assert {step: len(schedules) for step, schedules in found.items()} == {"compute": 1, "idle": 1}
    assert found["compute"][0].lost_s.estimate > 50 * found["idle"][0].lost_s.estimate


def test_what_stalls_is_not_assumed_where_it_was_measured(tmp_path: Path) -> None:
    """`--stall` is for studies without a loop."""
    simulate(tmp_path, {"sync": SYNC, "thread": THREAD})

    assert advice(tmp_path, stall="call").schedules == advice(tmp_path).schedules


def test_the_interval_in_steps(tmp_path: Path) -> None:
    """By default of the measured loop, and of another job's where that is asked for."""
    root = simulate(tmp_path, {"sync": SYNC})

    def steps(**assumptions: Any) -> tuple[str, object]:
        table = advice_tables(advice(root, **assumptions))[1]
        [place] = [number for number, heading in enumerate(table.headings) if "[steps" in heading]
        return table.headings[place], table.rows[0][place]

    interval_s = schedule(advice(root), "sync").interval_s.estimate
    assert steps() == ("interval [steps]", Number(round(interval_s), 0))
    assert steps(step_time_s=12.0) == ("interval [steps of 12 s]", Number(round(interval_s / 12), 0))


def test_a_lost_time_is_not_projected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To another state it would be a guess: loops alone are refused, and left out beside what can be projected."""
    simulate(tmp_path / "loop", {"sync": SYNC})
    alone = LogBuilder(job("torch_save")).trial(save=4.0, cold=2.0).trial(save=4.1, cold=2.1)
    alone.write(tmp_path / "alone" / "logs" / "1.h5")

    with pytest.raises(ResultsError, match="a lost time is not projected, for it depends on the loop"):
        project_(tmp_path / "loop", parameters=1e9, nodes=1)
    project_(tmp_path / "loop", tmp_path / "alone", parameters=1e9, nodes=1)
    printed = capsys.readouterr()
    assert printed.out.count("Projected to") == 1
    assert printed.err.startswith("not projected, for a lost time depends on its loop: tiny, target disk, 1x1")


@pytest.mark.parametrize("style", ["text", "markdown", "csv", "latex", "html"])
def test_the_advice_is_printed_in_all_formats(style: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exposure, which is the price of an asynchronous save."""
    advise_(simulate(tmp_path, {"sync": SYNC, "thread": THREAD}, rounds=1), style=style)

    printed = capsys.readouterr().out
    assert "exposure" in printed
    assert "thread" in printed
