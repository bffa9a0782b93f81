"""The numbers: medians, spreads and differences, each computed by hand."""

from __future__ import annotations

import csv
import math

import pytest

import analysis
from analysis.measures.comparison import ratio
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting, settings
from analysis.measures.trials import Trials
from support.studies import MakeStudy, Show, StudyOnDisk

GIB = 2**30


def summary(trials: Trials) -> tuple[float, ...]:
    """Median, smallest, largest, valid, invalid, and the ends of the median's interval."""
    median = trials.median()
    smallest, largest = min(trials.durations_s), max(trials.durations_s)
    return median.estimate, smallest, largest, len(trials), trials.invalid, median.low, median.high


@pytest.fixture
def setting(three_methods: StudyOnDisk) -> Setting:
    """The only setting of the three methods."""
    [found] = settings(analysis.load_results(three_methods.root))
    return found


def test_medians_leave_warm_ups_out(setting: Setting) -> None:
    """A statistic is the median, smallest and largest of the measured totals: of seconds and of bytes."""
    figures = {m.label: (*map(summary, m.operations.values()), m.files.size_bytes / GIB) for m in setting.methods}

    assert list(figures) == ["torch_save", "tensorstore_basic", "tensorstore_t5x"]
    assert figures["torch_save"] == (
        (4, 2, 6, 3, 0, 2, 6),
        (2, 1, 3, 3, 0, 1, 3),
        (1, 0.5, 1.5, 3, 0, 0.5, 1.5),
        2.0,
    )
    assert figures["tensorstore_basic"] == (
        (87.6, 80, 100, 3, 0, 80, 100),
        (25, 20, 30, 3, 0, 20, 30),
        (10, 9, 14, 3, 0, 9, 14),
        1.5,
    )
    assert figures["tensorstore_t5x"] == (
        (43.8, 40, 50, 3, 0, 40, 50),
        (12.5, 12, 13, 3, 0, 12, 13),
        (12, 11, 13, 3, 0, 11, 13),
        pytest.approx(1.65),
    )
    assert [method.problems for method in setting.methods] == [()] * 3


def test_a_comparison_says_what_was_compared(setting: Setting) -> None:
    """Study, target, scale and state stand with the numbers."""
    assert (setting.study, setting.target) == ("tiny", "disk")
    assert (setting.nodes, setting.tasks_per_node) == (1, 1)
    assert [method.state_bytes for method in setting.methods] == [GIB] * 3
    assert setting.state == "tiny, 3 tensors, 0.500e9 parameters, float16, 1.00 GiB, digest 0123456789ab"


def test_the_three_tables_hold_the_hand_computed_numbers(three_methods: StudyOnDisk, show: Show) -> None:
    """CSV has each number unrounded: 87.6 / 4 - 1 = +2090 %, 1 - 43.8 / 87.6 = 50 % saved, and so on."""
    blocks = show(three_methods.root, "csv").strip().split("\n\n")
    tables = [list(csv.DictReader(line for line in block.splitlines() if line[:1] != "#")) for block in blocks]
    _storage, summary, relative, against, _phases, bandwidth, _cost = tables

    def numbers(row: dict[str, str], *columns: str) -> list[float]:
        return [float(row[column]) for column in columns]

    assert [row["table"] for table in tables for row in table] == [
        "storage",
        *["summary"] * 3,
        *["relative"] * 2,
        "t5x_against_basic",
        *["phases"] * 3,
        *["bandwidth"] * 3,
        *["cost"] * 3,
    ]
    assert [row["method"] for row in summary] == ["torch_save", "tensorstore_basic", "tensorstore_t5x"]
    columns = [f"save [s] {part}" for part in ("median", "smallest", "largest", "valid", "invalid")]
    assert numbers(summary[1], *columns) == [87.6, 80, 100, 3, 0]
    assert numbers(summary[2], "load, cold from the device [s] median", "load, warm [s] median") == [12.5, 12]
    figures = ["save", "load, cold from the device", "load, warm", "size"]
    assert numbers(relative[0], *figures) == pytest.approx([20.9, 11.5, 9, -0.25])
    assert numbers(relative[1], *figures) == pytest.approx([9.95, 5.25, 11, -0.175])
    figures = ["save time saved", "cold load time saved", "warm load time saved", "size"]
    assert numbers(against[0], *figures) == pytest.approx([0.5, 0.5, -0.2, 0.1])
    # 1 GiB in each of three trials: total bytes over total seconds.
    assert numbers(bandwidth[1], "save [GB/s]") == [pytest.approx(3 * 2**30 / (80 + 87.6 + 100) / 1e9)]


def test_rounds_are_pooled(make_study: MakeStudy) -> None:
    """A method's median is over the trials of all its rounds: of 2, 4, 6 and 20 s it is 5 s."""
    study = make_study(rounds=2)
    study.log("torch_save", number=1, save=[2, 20], cold=[1, 1], warm=[1, 1])
    study.log("torch_save", number=2, save=[6, 4], cold=[1, 2], warm=[1, 3])

    [found] = settings(analysis.load_results(study.root))
    method = found.method("torch_save")

    assert method is not None
    assert summary(method[Operation.SAVE]) == (5, 2, 20, 4, 0, 2, 20)
    assert summary(method[Operation.LOAD_WARM]) == (1, 1, 3, 4, 0, 1, 3)


def test_targets_and_studies_are_compared_apart(make_study: MakeStudy) -> None:
    """Two targets, or two studies, never share a median, even where job ids are the same."""
    targets = {"fast": {"path": "/fast"}, "slow": {"path": "/slow"}}
    first = make_study("first", targets=targets, strategies=["torch_save"])
    second = make_study("second", targets=targets, strategies=["torch_save"])
    for study, target, seconds in ((first, "fast", 1), (first, "slow", 2), (second, "fast", 3), (second, "slow", 4)):
        study.log("torch_save", on=target, save=[seconds])

    found = settings(analysis.load_results(first.root.parent))

    assert [(each.study, each.target, each.methods[0][Operation.SAVE].median_s) for each in found] == [
        ("first", "fast", 1.0),
        ("first", "slow", 2.0),
        ("second", "fast", 3.0),
        ("second", "slow", 4.0),
    ]


def test_options_make_another_method(make_study: MakeStudy) -> None:
    """One strategy with two settings is two methods, and neither stands in for the other."""
    raw = {"name": "tensorstore_basic", "compressor": "none"}
    study = make_study(strategies=["tensorstore_basic", raw])
    study.log("tensorstore_basic", save=[8])
    study.log("tensorstore_basic+compressor=none", save=[3])

    [found] = settings(analysis.load_results(study.root))

    assert [(each.label, each[Operation.SAVE].median_s) for each in found.methods] == [
        ("tensorstore_basic", 8.0),
        ("tensorstore_basic+compressor=none", 3.0),
    ]


def test_different_states_are_said_to_be_different(make_study: MakeStudy) -> None:
    """Rows whose states differ do not share a table without a word."""
    study = make_study()
    state = {"model": "m", "tensors": 1, "parameters": 10**9, "state_bytes": GIB, "dtypes": "float16"}
    study.log("torch_save", save=[1], state=state | {"digest": "a" * 64})
    study.log("tensorstore_basic", save=[1], state=state | {"digest": "b" * 64, "tensors": 2})

    [first, second] = settings(analysis.load_results(study.root))

    assert "m, 1 tensors" in first.state
    assert "m, 2 tensors" in second.state
    assert all("differ in the state" in each.apart for each in (first, second))


def test_a_valid_sample_without_a_duration_is_not_counted(make_study: MakeStudy) -> None:
    """`n` is the number of durations that the median is made of."""
    study = make_study()
    study.log("torch_save", save=[1, math.nan, 3])

    [found] = settings(analysis.load_results(study.root))

    assert found.methods[-1].label == "tensorstore_t5x"
    assert summary(found.methods[0][Operation.SAVE]) == (2, 1, 3, 2, 1, 1, 3)


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (21.9, 1.0, 21.9),
        (0.5, 1.0, 0.5),
        (3.0, 3.0, 1.0),
        (1.0, 0.0, math.nan),
        (math.nan, 1.0, math.nan),
        (1.0, math.nan, math.nan),
    ],
)
def test_a_ratio(value: float, reference: float, expected: float) -> None:
    """How many times the reference; nothing is said where one of the two is unknown."""
    assert pytest.approx(expected, nan_ok=True) == ratio(value, reference)
