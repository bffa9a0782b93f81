"""Doubts about the numbers: each with its figure and a remedy, and none about good ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.__main__ import check
from analysis.logs.load import load_results
from analysis.measures import ceilings
from analysis.measures.comparison import compare
from analysis.measures.method import Method
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from analysis.measures.stability import _may_drift
from analysis.tables.methods import all_tables
from jobs import timing_log
from jobs.timing_log import Ceiling
from support.studies import MakeStudy, StudyOnDisk

STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]


def doubts(study: StudyOnDisk) -> list[str]:
    """What is said against the study's figures."""
    return [str(caveat) for setting in settings(load_results(study.root)) for caveat in setting.caveats]


def torch_save_of(study: StudyOnDisk) -> Method:
    """What was measured of torch_save in the study's one setting."""
    (setting,) = settings(load_results(study.root))
    method = setting.method("torch_save")
    assert method is not None
    return method


def amend(path: Path, change: Callable[[timing_log.TimingLog], None]) -> None:
    """Rewrite a log."""
    log = timing_log.read(path)
    change(log)
    log.write(path)


def of_two(make_study: MakeStudy, first: list[float], second: list[float], **options: Any) -> StudyOnDisk:
    """A study with two strategies and these seconds."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"], **options)
    study.log("torch_save", save=first, cold=[1.0] * len(first))
    study.log("tensorstore_basic", save=second, cold=[2.0] * len(second), clock_zero_unix_s=9e9)
    return study


def test_nothing_is_said_against_steady_numbers(make_study: MakeStudy) -> None:
    """Six trials within two per cent, methods a factor of two apart."""
    assert doubts(of_two(make_study, STEADY, [2 * value for value in STEADY])) == []


def test_few_trials_and_wide_spread(make_study: MakeStudy) -> None:
    """Fewer than five trials, and a standard deviation over ten per cent of the mean."""
    said = doubts(of_two(make_study, [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]))

    assert [line for line in said if line.startswith("torch_save, save: only 3 valid trials")] != []
    assert [line for line in said if "torch_save, save: the standard deviation is 50% of the mean" in line] != []
    assert [line for line in said if "tensorstore_basic, save: the standard deviation" in line] == []


def test_a_slow_first_trial(make_study: MakeStudy) -> None:
    """It was a warm-up that nobody declared."""
    said = doubts(of_two(make_study, [3.0, *STEADY], [9.0] * 6))

    assert [line for line in said if "the first trial took 3.0 times as long as the others" in line] != []


def test_drift(make_study: MakeStudy) -> None:
    """Trials that get slower one after the other."""
    said = doubts(of_two(make_study, [1.0, 1.02, 1.04, 1.06, 1.08, 1.1], [9.0] * 6))

    assert [line for line in said if "trials get slower with time (rank correlation +1.00" in line] != []


def test_a_disturbed_job(make_study: MakeStudy) -> None:
    """The target itself was half as fast after the trials as before."""
    study = of_two(make_study, STEADY, [9.0] * 6)

    def disturb(log: timing_log.TimingLog) -> None:
        for when, seconds in (("before", 1.0), ("after", 2.0)):
            log.ceiling.append(
                Ceiling(
                    when=when, operation="write", size_bytes=2 * 10**9, start_s=0.0, duration_s=seconds, direct=True
                )
            )

    amend(study.paths.log(study.job("torch_save").id), disturb)

    assert [line for line in doubts(study) if "write went from 2.00 to 1.00 GB/s" in line] != []
    usage = torch_save_of(study).usage[Operation.SAVE]
    assert 2 * 2 / (1 + 2) == usage.gbps / usage.of_ceiling


def test_jobs_at_the_same_time(make_study: MakeStudy) -> None:
    """Two jobs of ours on one shared target whose clocks overlap."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"])
    study.log("torch_save", save=STEADY, cold=[1.0] * 6, clock_zero_unix_s=1000.0)
    study.log("tensorstore_basic", save=[9.0] * 6, cold=[2.0] * 6, clock_zero_unix_s=1001.0)

    assert [line for line in doubts(study) if "it ran at the same time as" in line] != []


def test_the_machine(make_study: MakeStudy) -> None:
    """CPU time that a hypervisor took, and what others had left to be written."""
    study = of_two(make_study, STEADY, [9.0] * 6)
    facts = {"steal_share": 0.2, "dirty_bytes_before": 2**30, "cpu_governor": "powersave"}
    amend(study.paths.log(study.job("torch_save").id), lambda log: log.provenance.update(facts))

    said = "\n".join(doubts(study))

    assert "the hypervisor took 20% of the CPU time" in said
    assert "1024 MiB that others had written" in said
    assert "governor powersave" in said


def test_a_round_that_matters_more_than_the_strategy(make_study: MakeStudy) -> None:
    """Rounds that differ by half, methods by a tenth: their order is not sure."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"], rounds=2)
    for number, factor in ((1, 1.0), (2, 1.5)):
        for label, base in (("torch_save", 1.0), ("tensorstore_basic", 1.1)):
            zero = 1e6 * number + 1e4 * base
            seconds = [factor * base * value for value in STEADY]
            study.log(label, number=number, save=seconds, cold=seconds, clock_zero_unix_s=zero)

    said = [line for line in doubts(study) if "the round changes durations by 50%" in line]

    assert len(said) == 2
    assert "the closest two methods differ by 10%" in said[0]


def rounds_of_three(make_study: MakeStudy, third: dict[str, float]) -> list[str]:
    """What is said of rounds in a study of four, whose third took these times as long."""
    bases = {"torch_save": 1.0, "tensorstore_basic": 3.0, "tensorstore_t5x": 2.0}
    study = make_study("-".join(["of", *third]).replace("_", "-"), rounds=4)
    for number, (label, base) in itertools.product(range(1, 5), bases.items()):
        seconds = [base * value * (third.get(label, 1.0) if number == 3 else 1.0) for value in STEADY]
        study.log(label, number=number, save=seconds, clock_zero_unix_s=1e6 * number + 1e4 * base)
    return [line for line in doubts(study) if line.startswith("save, round")]


def test_a_disturbed_round_has_its_number(make_study: MakeStudy) -> None:
    """A round in which everything was slow, and one that moved the ratios between methods."""
    slow = rounds_of_three(make_study, {"torch_save": 2.0, "tensorstore_basic": 2.1, "tensorstore_t5x": 2.05})

    assert [line.partition(";")[0] for line in slow] == [
        "save, round 3: disturbed: the middle method took 2.0 times as long as in the other rounds"
    ]
    moved = rounds_of_three(make_study, {"torch_save": 1.9})
    assert [line.partition(";")[0] for line in moved] == [
        "save, round 3: disturbed: it moved methods against each other by up to 90%"
    ]


def test_nothing_is_said_against_quiet_rounds(make_study: MakeStudy) -> None:
    """Rounds within a few per cent are not called disturbed."""
    assert rounds_of_three(make_study, {"torch_save": 1.05, "tensorstore_basic": 0.97}) == []


@given(st.lists(st.one_of(st.floats(0.5, 2), st.sampled_from([1.0, 1.5])), min_size=6, max_size=30))
def test_no_drift_is_missed_for_speed(durations: list[float]) -> None:
    """Where the quick look says that there can be no drift, scipy's test finds none either."""
    if not _may_drift(durations):
        assert len(set(durations)) == 1 or stats.spearmanr(range(len(durations)), durations).pvalue >= 0.05


def _ceiling(seconds: float, *, buffered: bool, resident: float = 0.0, operation: str = "read") -> list[Ceiling]:
    """A ceiling of 2 GB before and after, at the same speed."""
    return [
        Ceiling(
            when=when, operation=operation, size_bytes=2 * 10**9, start_s=0.0, duration_s=seconds,
            direct=not buffered, buffered=buffered, resident_fraction=resident,
        )
        for when in ("before", "after")
    ]  # fmt: skip


def _bandwidth_notes(study: StudyOnDisk) -> str:
    """What stands below the table of bandwidths."""
    (found,) = compare(load_results(study.root))
    return "\n".join(next(each for each in all_tables(found) if each.name == "bandwidth").notes)


def _with_ceilings(make_study: MakeStudy, *rows: Ceiling) -> StudyOnDisk:
    """The study of two methods, whose jobs measured this; the first loads 2 GB in a second."""
    study = of_two(make_study, STEADY, [9.0] * 6)
    for label in ("torch_save", "tensorstore_basic"):
        amend(study.paths.log(study.job(label).id), lambda log: log.ceiling.extend(rows))
    return study


def test_the_ceiling_is_the_faster_of_direct_and_buffered(make_study: MakeStudy) -> None:
    """For reads and writes apart; which it was stands below the table, and a job's two ways are no disturbance."""
    study = _with_ceilings(
        make_study,
        *_ceiling(8.0, buffered=False),
        *_ceiling(0.5, buffered=True),
        *_ceiling(0.25, buffered=False, operation="write"),
        *_ceiling(4.0, buffered=True, operation="write"),
    )

    reached = {"write": ceilings.Ceiling(8.0, "direct"), "read": ceilings.Ceiling(4.0, "buffered")}
    assert torch_save_of(study).ceilings == reached
    assert "the ceiling here: for saves direct; for loads buffered" in _bandwidth_notes(study)
    (setting,) = settings(load_results(study.root))
    assert setting.ceilings == reached
    assert [line for line in doubts(study) if "disturbed" in line or "by itself" in line] == []


def test_a_read_from_the_page_cache_is_no_ceiling(make_study: MakeStudy) -> None:
    """Where the pages could not be evicted, what direct I/O did is left."""
    study = _with_ceilings(make_study, *_ceiling(1.0, buffered=False), *_ceiling(0.1, buffered=True, resident=0.5))

    assert torch_save_of(study).ceilings["read"].gbps == 2.0


def test_a_log_of_before_buffered_ceilings_says_so(make_study: MakeStudy) -> None:
    """Its ceiling is what direct I/O did, as it was, and the note says that nothing was compared."""
    rows = [replace(each, resident_fraction=math.nan) for each in _ceiling(1.0, buffered=False)]
    study = _with_ceilings(make_study, *rows)

    assert torch_save_of(study).ceilings["read"].gbps == 2.0
    assert "for loads direct, with no buffered I/O to compare" in _bandwidth_notes(study)


def test_a_read_from_memory_is_no_ceiling(make_study: MakeStudy) -> None:
    """Neither one that was meant to go through the page cache, nor one whose filesystem ignored direct I/O."""
    ignored = [replace(each, direct=False) for each in _ceiling(0.5, buffered=False, resident=1.0)]
    cached, cold = _ceiling(0.25, buffered=True, resident=1.0), _ceiling(1.0, buffered=True)

    assert torch_save_of(_with_ceilings(make_study, *ignored, *cached, *cold)).ceilings["read"].gbps == 2.0


def test_a_method_above_its_ceiling(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice as fast as the target by itself is no noise, and is said, by `check` and below the tables."""
    study = _with_ceilings(make_study, *_ceiling(4.0, buffered=False), *_ceiling(5.0, buffered=True))

    (found,) = [line for line in doubts(study) if "by itself" in line]
    assert found.startswith("torch_save, load, cold from the device: it is 2.1 times as fast as the target by itself; ")
    check(study.root)
    assert "as fast as the target by itself" in " ".join(capsys.readouterr().out.split())
    (compared,) = compare(load_results(study.root))
    assert any(
        "2.1 times as fast as the target by itself" in note for table in all_tables(compared) for note in table.notes
    )


def test_a_method_at_its_ceiling(make_study: MakeStudy) -> None:
    """Two per cent above it are noise."""
    study = _with_ceilings(make_study, *_ceiling(1.9, buffered=False), *_ceiling(5.0, buffered=True))

    assert [line for line in doubts(study) if "by itself" in line] == []
