"""A study whose truths are known by construction is reported with exactly these truths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import check, compare_two
from analysis.errors import ResultsError
from analysis.logs.load import load_results
from analysis.measures.comparison import compare
from analysis.measures.operation import Operation
from jobs.timing_log import Ceiling
from support.logs import GB, GIB, amended
from support.studies import MakeStudy, Show, StudyOnDisk, only, rows

ROUNDS, TRIALS = 6, 8

REFERENCE, SLOW, SAME, DRIFTING = (
    "torch_save",
    "tensorstore_basic",
    "tensorstore_t5x",
    "tensorstore_basic+compressor=none",
)

STRATEGIES = [REFERENCE, SLOW, SAME, {"name": "tensorstore_basic", "compressor": "none"}]

FACTOR = 2.0


def ceilings(before_gbps: float, after_gbps: float) -> list[Ceiling]:
    """What the target did by itself before a job and after it."""
    return [
        Ceiling(when=when, operation=operation, size_bytes=10**9, start_s=0.0, duration_s=1 / gbps, direct=True)
        for when, gbps in (("before", before_gbps), ("after", after_gbps))
        for operation in ("write", "read")
    ]


def noisy(draw: np.random.Generator, median_s: float) -> list[float]:
    """One job's trials: jobs differ by 3 %, trials within one by 1 %."""
    level = median_s * np.exp(draw.normal(0, 0.03))
    return [float(each) for each in level * np.exp(draw.normal(0, 0.01, TRIALS))]


def make_truths(make_study: MakeStudy, seed: int = 0, *, all_report: bool = False, **keys: Any) -> StudyOnDisk:
    """Six rounds: one method twice as slow, one the same, one that drifts; one job is disturbed, one never reports."""
    study = make_study(strategies=STRATEGIES, rounds=ROUNDS, **keys)
    draw = np.random.default_rng(seed)
    for number in range(1, ROUNDS + 1):
        for place, (label, median_s) in enumerate(((REFERENCE, 1.0), (SLOW, FACTOR), (SAME, 1.0), (DRIFTING, 1.0))):
            seconds = noisy(draw, median_s)
            if label == DRIFTING and number == 1:
                seconds = [1.0 + 0.05 * trial for trial in range(TRIALS)]
            if label == SAME and number == ROUNDS and not all_report:
                continue
            study.log(
                label, number=number, save=seconds, cold=[each / 2 for each in seconds], gib=[1.0] * TRIALS,
                clock_zero_unix_s=1.75e9 + 1e4 * (10 * number + place),
                ceiling=ceilings(2.0, 1.0 if (label, number) == (SLOW, 3) else 2.0),
            )  # fmt: skip
    return study


@pytest.fixture
def truths(make_study: MakeStudy) -> StudyOnDisk:
    """The study of known truths."""
    return make_truths(make_study)


def test_the_factor_is_found(truths: StudyOnDisk) -> None:
    """Twice as slow is shown as twice as slow: the interval holds two, and the verdict is in words."""
    found = only(truths.root).differences[SLOW]

    for difference in (found.operations[Operation.SAVE], found.operations[Operation.LOAD_COLD]):
        assert difference.ratio.low <= FACTOR <= difference.ratio.high
        assert difference.ratio.high - difference.ratio.low < 0.3
        assert difference.verdict() == "slower"
    assert found.operations[Operation.LOAD_WARM].verdict() == ""
    assert found.size == 1.0


def test_no_difference_is_called_none(truths: StudyOnDisk) -> None:
    """The same speed is not significant, and its interval holds one."""
    found = only(truths.root).differences[SAME].operations[Operation.SAVE]

    assert found.verdict() == "not significant"
    assert found.ratio.low <= 1.0 <= found.ratio.high


def test_another_reference_turns_the_verdict(truths: StudyOnDisk) -> None:
    """Against the slow method, the others take half as long."""
    [found] = compare(load_results(truths.root), SLOW)

    assert found.setting.methods[0].label == SLOW
    assert {label: each.operations[Operation.SAVE].verdict() for label, each in found.differences.items()} == {
        REFERENCE: "faster", SAME: "faster", DRIFTING: "faster",
    }  # fmt: skip
    ratio = found.differences[REFERENCE].operations[Operation.SAVE].ratio
    assert ratio.low <= 1 / FACTOR <= ratio.high


def test_an_unknown_reference_lists_the_labels(truths: StudyOnDisk) -> None:
    """The error says what could have been meant."""
    with pytest.raises(ResultsError, match=r"no method is called 'torch'.*tensorstore_t5x, torch_save"):
        compare(load_results(truths.root), "torch")


def test_drift_disturbance_and_absence_are_named(truths: StudyOnDisk, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` names the job that drifts, the one that was disturbed and the one that is missing, and no other job."""
    assert check(truths.root, all_=True) == 1
    said = capsys.readouterr().out.splitlines()

    def jobs(text: str) -> set[str]:
        return {word.strip(":,") for line in said if text in line for word in line.split() if word.startswith("r0")}

    assert jobs("disturbed: the target's own") == {truths.job(SLOW, number=3).id}
    assert jobs("never reported") == {truths.job(SAME, number=ROUNDS).id}
    drifting = truths.job(DRIFTING, number=1).id
    assert drifting in jobs("trials get slower with time (rank correlation +1.00")


def test_a_null_difference_is_rarely_called_one(make_study: MakeStudy, tmp_path: Path) -> None:
    """Of twelve whole studies, at most two call a method slower or faster that is not."""
    called = {}
    for seed in range(12):
        comparison = only(make_truths(make_study, seed, all_report=True, below=tmp_path / str(seed)).root)
        verdict = comparison.differences[SAME].operations[Operation.SAVE].verdict()
        if verdict != "not significant":
            called[seed] = verdict

    assert len(called) <= 2, called


def two_targets(make_study: MakeStudy, **logs: Any) -> StudyOnDisk:
    """One strategy on two targets, of which the second takes three times as long."""
    targets = {"lustre": {"path": "/lustre"}, "nvme": {"path": "/nvme"}}
    study = make_study(targets=targets, strategies=["torch_save"], rounds=5)
    draw = np.random.default_rng(3)
    for number in range(1, 6):
        for target, median_s in (("nvme", 1.0), ("lustre", 3.0)):
            seconds = noisy(draw, median_s)
            unproven = dict.fromkeys(range(TRIALS), 0.0) if target == "lustre" else {}
            study.log("torch_save", on=target, number=number, save=seconds, cold=seconds, unproven=unproven, **logs)
    return study


def test_targets_stand_against_each_other(make_study: MakeStudy, show: Show) -> None:
    """The filesystem study: each method on both in GB/s, with the ratio and its verdict; unlike loads are marked."""
    shown = show(two_targets(make_study).root, "csv")
    lustre, nvme = rows(shown, "targets")

    assert [row["target"] for row in (lustre, nvme)] == ["lustre", "nvme"]
    assert float(lustre["save [GB/s] low"]) <= GIB / 3 / GB <= float(lustre["save [GB/s] high"])
    for operation in ("save", "load"):
        assert float(nvme[f"{operation} over lustre low"]) <= 3 <= float(nvme[f"{operation} over lustre high"])
        assert nvme[f"{operation} over lustre verdict"] == "faster"
        assert lustre[f"{operation} over lustre"] == ""
    assert [row["the load was"] for row in (lustre, nvme)] == ["cold unproven", "cold from the device"]
    assert [row["notes"] for row in (lustre, nvme)] == ["", "1"]
    assert "[1] loads of different kinds: part of the ratio may be a cache" in shown


def test_targets_that_differ_in_more_are_left_out_with_the_reason(make_study: MakeStudy, show: Show) -> None:
    """Another kind of node on one of the targets is no comparison of targets."""
    study = two_targets(make_study)
    for number in range(1, 6):
        path = study.paths.log(study.job("torch_save", "lustre", number).id)
        amended(path, lambda log: log.provenance.update(cpu="another CPU"))

    shown = show(study.root, "text")

    assert "left out: tiny, target nvme, 1x1: it differs in the kind of node" in shown


def test_means_over_targets(make_study: MakeStudy, show: Show) -> None:
    """Four times as long on one target and as long on the other is twice as long, by the geometric mean."""
    study = make_study(targets={"a": {"path": "/a"}, "b": {"path": "/b"}}, strategies=[REFERENCE, SLOW])
    for target, seconds in (("a", 4.0), ("b", 1.0)):
        study.log(REFERENCE, on=target, save=[1.0, 1.0], gib=[1, 1])
        study.log(SLOW, on=target, save=[seconds, seconds], gib=[2, 2])

    [row] = rows(show(study.root, "csv"), "overall")

    assert float(row["save"]) == pytest.approx(1.0)  # +100 %
    assert float(row["size"]) == pytest.approx(1.0)
    assert row["load, cold from the device"] == ""


def test_before_and_after(make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`compare A B`: what became faster, what did not change, and what else differs, by key with both values."""
    sides = []
    for name, slow_s, kernel, version in (("before", 2.0, "6.1", "2.6"), ("after", 1.0, "6.8", "2.7")):
        study = make_study(strategies=[REFERENCE, SLOW], rounds=5, below=tmp_path / name)
        draw = np.random.default_rng(len(name))
        for number in range(1, 6):
            for label, median_s in ((REFERENCE, 1.0), (SLOW, slow_s)):
                path = study.log(label, number=number, save=noisy(draw, median_s))
                facts = {"kernel": kernel, "packages": f'{{"torch": "{version}", "numpy": "2.0"}}'}
                amended(path, lambda log, facts=facts: log.provenance.update(facts))
                amended(path, lambda log: log.storage.update(options="rw,noatime"))
        sides.append(study.root)

    assert compare_two(sides[0], sides[1], style="csv") == 0
    shown = capsys.readouterr().out

    found = {row["method"]: row for row in rows(shown, "methods")}
    assert float(found[SLOW]["B / A low"]) <= 0.5 <= float(found[SLOW]["B / A high"])
    assert found[SLOW]["B / A verdict"] == "faster"
    assert found[REFERENCE]["B / A verdict"] == "not significant"
    assert [(row["what"], row["A"], row["B"]) for row in rows(shown, "circumstances")] == [
        ("kernel", "6.1", "6.8"),
        ("package torch", "2.6", "2.7"),
    ]


def test_two_studies_with_nothing_in_common_say_so(
    make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other targets and other methods are listed, not dropped."""
    first = make_study(below=tmp_path / "a", strategies=["torch_save"], targets={"x": {"path": "/x"}})
    second = make_study(below=tmp_path / "b", strategies=["torch_save"], targets={"y": {"path": "/y"}})
    first.log("torch_save", on="x", save=[1.0])
    second.log("torch_save", on="y", save=[1.0])

    compare_two(first.root, second.root)
    shown = capsys.readouterr().out

    assert "only in A: tiny, target x, 1x1" in shown
    assert "only in B: tiny, target y, 1x1" in shown
