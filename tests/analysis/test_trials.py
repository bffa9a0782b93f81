"""From logs to the trials that advice, projection and figures are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.advice.advice import advise
from analysis.advice.assumptions import Assumptions
from analysis.logs.load import load_results
from analysis.measures.method import UNKNOWN_FACT
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from jobs import timing_log
from support.studies import MakeStudy, StudyOnDisk


def test_trials_are_the_valid_measured_samples(three_methods: StudyOnDisk) -> None:
    """No warm-up among them; the reference first; loads by kind; sizes and rates as in the logs."""
    [setting] = settings(load_results(three_methods.root))
    basic = setting.methods[1]

    assert [method.label for method in setting.methods] == ["torch_save", "tensorstore_basic", "tensorstore_t5x"]
    assert basic[Operation.SAVE].durations_s == (80, 87.6, 100)
    assert basic[Operation.LOAD_COLD].durations_s == (30, 20, 25)
    assert basic[Operation.LOAD_WARM].durations_s == (9, 14, 10)
    assert basic.phases["call"].durations_s == (40, 43.8, 50)
    assert list(basic.phases) == ["call", "sync", "commit"]
    assert basic.files.size_bytes == 1.5 * 2**30
    assert basic.state_bytes == 2**30
    assert set(basic[Operation.SAVE].jobs) == {"r01-tensorstore_basic-disk-1x1"}


def test_trials_of_several_rounds_are_in_order_of_time(make_study: MakeStudy) -> None:
    """By the clock of the job, whatever the jobs are called."""
    study = make_study(strategies=["torch_save"], rounds=2)
    study.log("torch_save", number=1, save=[3, 4], clock_zero_unix_s=2e9)
    study.log("torch_save", number=2, save=[1, 2], clock_zero_unix_s=1e9)
    [setting] = settings(load_results(study.root))

    assert setting.methods[0][Operation.SAVE].durations_s == (1, 2, 3, 4)
    assert list(setting.methods[0][Operation.SAVE].started_s) == sorted(setting.methods[0][Operation.SAVE].started_s)


def test_invalid_samples_and_missing_jobs(make_study: MakeStudy) -> None:
    """An invalid sample is no trial; a method whose job never reported is there, without any."""
    study = make_study()
    study.log("torch_save", save=[2, 4, 6], cold=[1, 2, 3], invalid={(1, "cold"): "loaded state differs: w"})
    [setting] = settings(load_results(study.root))

    assert setting.methods[0][Operation.LOAD_COLD].durations_s == (1, 3)
    assert [len(method[Operation.SAVE]) for method in setting.methods] == [3, 0, 0]


@pytest.mark.parametrize("facts", ["", "no JSON", "[1]", '{"best_for": "x"}'])
def test_facts_of_old_and_damaged_logs_are_unknown(facts: str, make_study: MakeStudy) -> None:
    """What a log doesn't say isn't guessed."""
    study = make_study(strategies=["torch_save"])
    study.log("torch_save", save=[1, 2], cold=[1, 2], strategy_facts=facts)
    [setting] = settings(load_results(study.root))

    assert setting.methods[0].fact("other_readers") == UNKNOWN_FACT


def test_facts_of_newer_logs_make_open_formats(make_study: MakeStudy) -> None:
    """Who else reads a format comes from the log, and decides what is advised."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"])
    study.log("torch_save", save=[1, 2], cold=[1, 2], strategy_facts='{"other_readers": "none"}')
    study.log("tensorstore_basic", save=[8, 9], cold=[8, 9], strategy_facts='{"other_readers": "zarr libraries"}')
    [setting] = settings(load_results(study.root))

    assert advise(setting, Assumptions()).picks[-1].best == ("tensorstore_basic",)


@pytest.mark.parametrize(("said", "node_local"), [([True, True], True), ([False, False], False), ([True, False], None)])
def test_a_target_is_node_local_if_all_jobs_say_so(
    said: list[bool], node_local: bool | None, make_study: MakeStudy
) -> None:
    """Jobs that disagree, or don't say, leave it open."""
    study = make_study(strategies=["torch_save"], rounds=2)
    for number, value in enumerate(said, 1):
        path: Path = study.log("torch_save", number=number, save=[1, 2])
        log = timing_log.read(path)
        log.provenance["node_local"] = value
        log.write(path)

    assert settings(load_results(study.root))[0].node_local is node_local


def test_a_known_truth_is_advised(make_study: MakeStudy) -> None:
    """Of five rounds: one strategy takes ten times as long as another, and a third differs by chance only."""
    noise = [1.00, 1.03, 0.98, 1.01, 0.99]
    study = make_study(rounds=5)
    for number, factor in enumerate(noise, 1):
        other = noise[-number]
        study.log("torch_save", number=number, save=[10 * factor] * 2, cold=[5 * factor] * 2)
        study.log("tensorstore_t5x", number=number, save=[10 * other, 10.05 * other], cold=[5 * other] * 2)
        study.log("tensorstore_basic", number=number, save=[100 * factor] * 2, cold=[50 * factor] * 2)
    [setting] = settings(load_results(study.root))
    advice = advise(setting, Assumptions())

    assert set(advice.picks[0].best) == {"torch_save", "tensorstore_t5x"}
    assert advice.picks[0].next_best == "tensorstore_basic"
    assert advice.picks[0].next_ratio.low <= 10 <= advice.picks[0].next_ratio.high
    assert not any("too few for a test" in line for line in advice.thin)
