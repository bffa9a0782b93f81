"""What is advised, from trials whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.advice.advice import Advice, Pick, advise
from analysis.advice.assumptions import MTBF_HOURS, Assumptions
from analysis.advice.intervals import daly_interval_s, loss
from analysis.errors import ResultsError
from analysis.measures.operation import Operation
from analysis.tables.advice import advice_tables
from analysis.tables.advice_words import assumed, in_words

GIB = 2**30
Make = Callable[..., Any]

FAST = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0]
ALIKE = [2.02, 1.98, 2.08, 1.92, 2.0, 2.03]
SLOW = [20.0, 21.0, 19.0, 20.5, 19.5, 20.0]
ZARR = {"other_readers": "any zarr reader"}
OWN = {"other_readers": "none"}


def pick(advice: Advice, question: str) -> Pick:
    """The answer to one question."""
    return next(each for each in advice.picks if each.question == question)


def test_the_best_of_each_kind(measured: Make, setting: Make) -> None:
    """Each question has its own answer, with how far the next one is behind."""
    advice = advise(
        setting(
            measured("a", FAST, SLOW, size_bytes=4 * GIB, facts=OWN),
            measured("b", SLOW, FAST, size_bytes=3 * GIB, facts=ZARR),
        ),
        Assumptions(),
    )

    assert pick(advice, "fastest save").best == ("a",)
    assert pick(advice, "fastest save").value.estimate == 2.0
    assert pick(advice, "fastest save").next_best == "b"
    assert pick(advice, "fastest save").next_ratio.estimate == pytest.approx(10.0)
    assert pick(advice, "fastest load").best == ("b",)
    assert pick(advice, "smallest").best == ("b",)
    assert pick(advice, "smallest").next_ratio.estimate == pytest.approx(4 / 3)
    assert pick(advice, "least of the machine lost").best == ("a",)
    assert pick(advice, "best open format").best == ("b",)


def test_what_the_data_does_not_separate_is_a_set(measured: Make, setting: Make) -> None:
    """Two methods whose trials mix are both best, and the third isn't; sizes within 1 % are the same."""
    advice = advise(
        setting(
            measured("a", FAST, FAST, size_bytes=1000, facts=ZARR),
            measured("b", ALIKE, ALIKE, size_bytes=1005, facts=ZARR),
            measured("c", SLOW, SLOW, size_bytes=1020, facts=ZARR),
        ),
        Assumptions(),
    )

    for question in ("fastest save", "fastest load", "smallest", "least of the machine lost", "best open format"):
        assert set(pick(advice, question).best) == {"a", "b"}, question
        assert pick(advice, question).next_best == "c"


def test_two_rounds_are_told_apart_only_where_no_trials_overlap(measured: Make, setting: Make) -> None:
    """No test can show a difference then, so one shared value keeps two methods together."""
    apart = advise(setting(measured("a", [1, 3]), measured("b", [4, 6])), Assumptions())
    mixed = advise(setting(measured("a", [1, 3.5]), measured("b", [3.4, 6])), Assumptions())

    assert pick(apart, "fastest save").best == ("a",)
    assert pick(mixed, "fastest save").best == ("a", "b")
    assert any("two rounds: all strategies" in line for line in apart.thin)


def test_a_single_trial_separates_nothing(measured: Make, setting: Make) -> None:
    """However large the difference: there is nothing to judge it by, and the advice says where it is thin."""
    advice = advise(setting(measured("a", [1.0], [1.0]), measured("b", [100.0], [100.0])), Assumptions())

    assert pick(advice, "fastest save").best == ("a", "b")
    assert pick(advice, "least of the machine lost").best == ("a", "b")
    assert [line.split(":")[0] for line in advice.thin] == [
        "fewer than 5 valid trials",
        "a single job",
        "older logs, which don't say who else reads the format",
    ]


def test_a_schedule_is_the_model_at_the_measured_times(measured: Make, setting: Make) -> None:
    """Stall, load and the cost of a restart go into Young's and Daly's formulas as they were measured."""
    advice = advise(setting(measured("a", FAST, SLOW)), Assumptions(mtbf_hours=4, restart_s=300))
    [schedule] = advice.schedules
    mtbf_s = 4 * 3600

    assert schedule.lost_s.estimate == 2.0
    assert schedule.young_s == math.sqrt(2 * 2 * mtbf_s)
    assert schedule.daly_s == daly_interval_s(2, mtbf_s)
    assert schedule.loss == loss(schedule.daly_s, 2, 20 + 300, mtbf_s)
    assert schedule.loss_range.low < schedule.loss.total < schedule.loss_range.high
    assert schedule.loss_by_mtbf[MTBF_HOURS.index(4)] == schedule.loss.total
    assert list(schedule.loss_by_mtbf) == sorted(schedule.loss_by_mtbf, reverse=True)
    assert list(schedule.interval_s_by_mtbf) == sorted(schedule.interval_s_by_mtbf)


def test_a_save_that_goes_on_behind_the_job_stops_it_for_the_call_only(measured: Make, setting: Make) -> None:
    """The rest of the save is work that each failure loses on top, and the advice says what it takes for granted."""
    call = [duration / 4 for duration in FAST]
    method = measured("a", FAST, SLOW, call=call)
    [schedule] = advise(setting(method), Assumptions(stall="call")).schedules

    assert schedule.lost_s.estimate == 0.5
    assert schedule.latency_s.estimate == 2.0
    assert schedule.loss == loss(schedule.daly_s, 0.5, 20, 8 * 3600, latency_s=2.0)
    assert "only if your code does so" in " ".join(assumed(Assumptions(stall="call")))
    assert "until it is committed" in " ".join(assumed(Assumptions()))


def test_a_strategy_without_phases_has_no_schedule_by_call(measured: Make, setting: Make) -> None:
    """What wasn't measured isn't replaced by something else."""
    [schedule] = advise(setting(measured("a", FAST, FAST)), Assumptions(stall="call")).schedules

    assert math.isnan(schedule.daly_s)
    assert math.isnan(schedule.loss.total)


@pytest.mark.parametrize(
    ("kind", "restore", "says"),
    [
        (Operation.LOAD_UNPROVEN, "cold", "loads not proven cold"),
        (Operation.LOAD_WARM, "cold", "no cold loads"),
        (Operation.LOAD_COLD, "warm", "no warm loads"),
    ],
)
def test_a_load_of_another_kind_stands_in_and_is_named(
    kind: Operation, restore: Any, says: str, measured: Make, setting: Make
) -> None:
    """A restart needs some load; which one counted stands in the table and among the warnings."""
    advice = advise(setting(measured("a", FAST, SLOW, kind=kind)), Assumptions(restore=restore))

    assert advice.schedules[0].load_s.estimate == 20.0
    assert advice.schedules[0].load_kind is kind
    assert any(line.startswith(says) for line in advice.thin)


def test_warm_restarts_count_warm_loads(measured: Make, setting: Make) -> None:
    """Where both kinds were measured, `--restore` decides."""
    cold, warm = measured("a", FAST, SLOW), measured("a", FAST, FAST, kind=Operation.LOAD_WARM)
    both = setting(measured("a", FAST, operations={**cold.operations, **warm.operations}))

    assert advise(both, Assumptions()).schedules[0].load_s.estimate == 20.0
    assert advise(both, Assumptions(restore="warm")).schedules[0].load_s.estimate == 2.0


def test_only_known_foreign_readers_make_a_format_open(measured: Make, setting: Make) -> None:
    """`none` and an old log's silence both don't."""
    advice = advise(
        setting(measured("a", FAST, FAST, facts=OWN), measured("b", FAST, FAST), measured("c", SLOW, SLOW, facts=ZARR)),
        Assumptions(),
    )

    assert pick(advice, "best open format").best == ("c",)
    assert any(line.endswith("b; not considered as open formats") for line in advice.thin)


def test_nothing_valid_gives_no_advice(measured: Make, setting: Make) -> None:
    """Jobs that never reported are named, and nothing is advised."""
    advice = advise(setting(measured("a"), measured("b")), Assumptions())

    assert {each.best for each in advice.picks} == {()}
    assert in_words(advice) == [
        "On disk, 1 node × 1 task: no strategy has a valid save and a valid load, so there is no advice."
    ]
    assert "without a valid save: all strategies; no advice about them" in advice.thin
    assert len(advice_tables(advice)[1].rows) == 2


def test_the_answer_in_words(measured: Make, setting: Make) -> None:
    """A person who reads only this knows what to do."""
    advice = advise(
        setting(measured("a", FAST, SLOW, facts=ZARR), measured("b", SLOW, SLOW, facts=OWN)),
        Assumptions(step_time_s=1.5),
    )

    words = in_words(advice)
    assert words[0] == "On disk, 1 node × 1 task, use a."
    assert words[1] == "With a a checkpoint stops the job for 2 s, and a restart loads for 20 s (cold from the device)."
    assert words[2].startswith(
        "With a failure every 8 h, checkpoint after every 5.63 min of computing (Daly), every 225 steps;"
    )
    assert "If other software has to read the checkpoint: a." in words


@given(
    st.lists(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=8), min_size=1, max_size=5),
    st.floats(0.1, 1000),
)
def test_there_is_always_a_best_and_it_has_the_smallest_median(
    measured: Make, setting: Make, saves: list[list[float]], mtbf_hours: float
) -> None:
    """Whatever was measured: the first of a set has the smallest median, and nothing is both best and next."""
    methods = [measured(f"m{number}", durations, durations) for number, durations in enumerate(saves)]
    advice = advise(setting(*methods), Assumptions(mtbf_hours=mtbf_hours))
    medians = {method.label: method[Operation.SAVE].median().estimate for method in methods}

    fastest = pick(advice, "fastest save")
    assert medians[fastest.best[0]] == min(medians.values())
    assert fastest.next_best not in fastest.best
    for table in advice_tables(advice):
        assert all(len(row) == len(table.headings) for row in table.rows)


@pytest.mark.parametrize(
    ("assumptions", "message"),
    [
        (Assumptions(mtbf_hours=0), "--mtbf-hours 0: expected a positive number"),
        (Assumptions(mtbf_hours=math.nan), "--mtbf-hours nan"),
        (Assumptions(step_time_s=-1), "--step-time -1"),
        (Assumptions(restart_s=-1), "--restart-s -1: expected zero or a positive number"),
    ],
)
def test_nonsense_is_refused(assumptions: Assumptions, message: str, setting: Make) -> None:
    """The message names the option, the number and what was expected."""
    with pytest.raises(ResultsError, match=message):
        advise(setting(), assumptions)
