"""Nothing is silently dropped between the plan and the table: each defect is seen in every format."""

from __future__ import annotations

import csv
import io

import h5py
import pytest

import analysis
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from jobs.timing_log.seal import sealed
from support.studies import MakeStudy, Show, StudyOnDisk

STYLES = pytest.mark.parametrize("style", ["text", "markdown", "csv"])


@pytest.fixture
def study(make_study: MakeStudy) -> StudyOnDisk:
    """Three planned jobs, of which `torch_save` is complete: 2, 4, 6 s."""
    made = make_study()
    made.log("torch_save", save=[2, 4, 6], cold=[1, 1, 1], warm=[1, 1, 1], gib=[1, 1, 1])
    return made


def cells(shown: str, style: str, label: str) -> list[str]:
    """The summary's row of a method, marks left out: in CSV only its median, n and invalid saves."""
    summary = shown.split("\n\n")[1] if style == "csv" else shown.partition("Relative to")[0]
    if style == "csv":
        [row] = [row for row in csv.DictReader(io.StringIO(summary)) if row["method"] == label]
        return [row[f"save [s] {part}"] for part in ("median", "valid", "invalid")]
    separator = "│" if style == "text" else "|"
    [line] = [line for line in summary.splitlines() if line.startswith((f"{separator} {label} ",))]
    return [cell.strip() for cell in line.strip(separator).split(separator)][1:]


def notes(shown: str) -> list[str]:
    """The numbered notes, without the number and what a format puts before it."""
    stripped = [line.lstrip("-# ") for line in shown.splitlines()]
    return [line.partition("] ")[2] for line in stripped if line.startswith("[") and line[1].isdigit()]


@STYLES
def test_a_job_that_never_reported(style: str, study: StudyOnDisk, show: Show) -> None:
    """It has its row, without numbers, and a note that names it."""
    study.log("tensorstore_basic", save=[8])
    shown = show(study.root, style)

    assert notes(shown) == [
        "tensorstore_t5x: r01-tensorstore_t5x-disk-1x1: no log: planned, but it never reported",
    ]
    assert cells(shown, style, "tensorstore_t5x")[0] == {"csv": ""}.get(style, "-")


@STYLES
def test_a_failed_job(style: str, study: StudyOnDisk, show: Show) -> None:
    """Its error is told; the trials that it finished count."""
    study.log("tensorstore_basic", save=[8, 10], status="failed", error="OSError: no space left")
    shown = show(study.root, style)

    expected = "tensorstore_basic: r01-tensorstore_basic-disk-1x1: failed: OSError: no space left"
    assert expected in notes(shown)
    found = cells(shown, style, "tensorstore_basic")
    assert found[:3] == ["9.0", "2", "0"] if style == "csv" else found[0] == "9.00 [8.00, 10.00], n = 2"


@STYLES
def test_an_unreadable_log(style: str, study: StudyOnDisk, show: Show) -> None:
    """A truncated log is told with its path; the other jobs stay."""
    log = study.log("tensorstore_basic", save=[8])
    log.write_bytes(log.read_bytes()[:1000])
    shown = show(study.root, style)

    [note] = [note for note in notes(shown) if note.startswith("tensorstore_basic:")]
    assert note.startswith(f"tensorstore_basic: r01-tensorstore_basic-disk-1x1: unreadable: {log} is damaged")
    assert cells(shown, style, "tensorstore_basic")[0] == {"csv": ""}.get(style, "-")
    assert cells(shown, style, "torch_save")[0] == {"csv": "4.0"}.get(style, "4.00 [2.00, 6.00], n = 3")


@STYLES
def test_a_job_that_still_runs(style: str, study: StudyOnDisk, show: Show) -> None:
    """What it has measured so far is shown, with a note that there is more to come."""
    study.log("tensorstore_basic", save=[8], status="running")
    shown = show(study.root, style)

    assert "tensorstore_basic: r01-tensorstore_basic-disk-1x1: running" in notes(shown)
    assert cells(shown, style, "tensorstore_basic")[0] == {"csv": "8.0"}.get(style, "8.00, n = 1")


@STYLES
def test_an_invalid_sample(style: str, study: StudyOnDisk, show: Show) -> None:
    """It is counted as invalid, told with its reason, and not part of the median."""
    invalid = {(1, "save"): "bits flipped"}
    study.log("tensorstore_basic", save=[8, 1000, 10], invalid=invalid)
    shown = show(study.root, style)

    assert "tensorstore_basic: r01-tensorstore_basic-disk-1x1: 1 invalid save sample(s): bits flipped" in notes(shown)
    found = cells(shown, style, "tensorstore_basic")
    assert found[:3] == ["9.0", "2", "1"] if style == "csv" else found[0] == "9.00 [8.00, 10.00], n = 2, 1 invalid"


@STYLES
def test_only_invalid_samples(style: str, study: StudyOnDisk, show: Show) -> None:
    """There is no median, and the table says why."""
    invalid = {(0, "save"): "wrong", (1, "save"): "wrong"}
    study.log("tensorstore_basic", save=[8, 9], invalid=invalid)
    found = cells(show(study.root, style), style, "tensorstore_basic")

    assert found[:3] == ["", "0", "2"] if style == "csv" else found[0] == "2 invalid"


@STYLES
def test_an_invalid_warm_up(style: str, study: StudyOnDisk, show: Show) -> None:
    """It changes no number, and is told all the same, with its reason."""
    study.log("tensorstore_basic", save=[1000, 8], warm=[1, 1], warmups=1, invalid={(0, "warm"): "differs"})
    shown = show(study.root, style)

    note = "tensorstore_basic: r01-tensorstore_basic-disk-1x1: 1 invalid warm-up load sample(s): differs"
    assert note in notes(shown)
    found = cells(shown, style, "tensorstore_basic")
    assert found[:3] == ["8.0", "1", "0"] if style == "csv" else found[0] == "8.00, n = 1"


@STYLES
@pytest.mark.parametrize(
    ("fractions", "share"),
    [({1: 0.25, 2: 0.5}, "up to 50%"), ({1: float("nan"), 2: float("nan")}, "an unknown share")],
)
def test_loads_that_were_not_proven_cold(
    fractions: dict[int, float], share: str, style: str, study: StudyOnDisk, show: Show
) -> None:
    """They have a column of their own, and the table says how many there were."""
    study.log(
        "tensorstore_basic", save=[8] * 4, cold=[7, 0.1, 0.1, 9], unproven=fractions, invalid={(3, "cold"): "wrong"}
    )
    shown = show(study.root, style)

    note = f"tensorstore_basic: 2 load(s) not proven cold, in a column of their own: {share} of the pages was cached"
    assert note in notes(shown)
    if style == "csv":
        assert ",7.0,,,7.0,7.0,1,1,0.1,0.1,0.1,0.1,0.1,2,0,,,,,,0,0," in shown
    else:
        expected = ["7.00, n = 1, 1 invalid", "0.10 [0.10, 0.10], n = 2", "-"]
        assert expected == cells(shown, style, "tensorstore_basic")[1:4]


@STYLES
def test_a_study_without_the_reference(style: str, make_study: MakeStudy, show: Show) -> None:
    """The relative table says what it lacks; the others are as ever."""
    study = make_study(strategies=["tensorstore_basic", "tensorstore_t5x"])
    study.log("tensorstore_basic", save=[10])
    study.log("tensorstore_t5x", save=[5])
    shown = show(study.root, style)

    assert "the study has no torch_save to compare the others with" in shown
    assert {"csv": "T5X,0.5,"}.get(style, "+50.0 %") in shown


@STYLES
@pytest.mark.parametrize("absent", ["tensorstore_basic", "tensorstore_t5x"])
def test_a_study_without_one_of_the_tensorstores(absent: str, style: str, make_study: MakeStudy, show: Show) -> None:
    """The last table says which one it lacks; the relative table has the other."""
    [present] = {"tensorstore_basic", "tensorstore_t5x"} - {absent}
    study = make_study(strategies=["torch_save", present])
    study.log("torch_save", save=[2])
    study.log(present, save=[5])
    shown = show(study.root, style)

    assert f"the study has no {absent}" in shown
    assert {"csv": f"{present},1.5,"}.get(style, "+150.0 %") in shown


@STYLES
def test_only_failed_jobs(style: str, make_study: MakeStudy, show: Show) -> None:
    """Jobs that failed before their state was built leave a table without numbers, and all of their errors."""
    study = make_study()
    for label in ("torch_save", "tensorstore_basic", "tensorstore_t5x"):
        study.log(label, status="failed", error=f"no room for {label}", state={})
    shown = show(study.root, style)

    assert "state: no job got as far as building it" in shown
    assert [note.split(": ", 3)[1:] for note in notes(shown)] == [
        [f"r01-{label}-disk-1x1", "failed", f"no room for {label}"]
        for label in ("torch_save", "tensorstore_basic", "tensorstore_t5x")
    ]
    assert cells(shown, style, "torch_save")[0] == {"csv": ""}.get(style, "-")


@STYLES
def test_no_job_reported(style: str, make_study: MakeStudy, show: Show) -> None:
    """A plan alone is a table of jobs without a log."""
    study = make_study(rounds=2)

    assert [note.endswith("no log: planned, but it never reported") for note in notes(show(study.root, style))] == (
        [True] * 6
    )


def test_a_failed_job_without_a_state_beside_a_complete_one(study: StudyOnDisk) -> None:
    """The state is that of the jobs that got as far; the failed job keeps its row and its place."""
    study.log("tensorstore_basic", status="failed", error="early", state={})

    [found] = settings(analysis.load_results(study.root))

    assert found.state.startswith("tiny, 3 tensors, 0.500e9 parameters, float16, 1.00 GiB")
    assert [each.label for each in found.methods] == ["torch_save", "tensorstore_basic", "tensorstore_t5x"]


def test_an_unplanned_log_that_cannot_be_read(make_study: MakeStudy) -> None:
    """Without a plan nobody knows its target or method: its file name stands for it, in a table of its own."""
    study = make_study("known")
    study.log("torch_save", save=[1])
    study.paths.plan_json.unlink()
    (study.paths.logs / "stray.h5").write_text("no HDF5")

    unknown, known = sorted(settings(analysis.load_results(study.root)), key=lambda each: each.target == "disk")

    assert (unknown.target, unknown.nodes, unknown.tasks_per_node) == ("unknown", 0, 0)
    assert [(each.label, len(each[Operation.SAVE])) for each in unknown.methods] == [("stray", 0)]
    assert unknown.methods[0].problems[0].startswith(f"stray: unreadable: {study.paths.logs / 'stray.h5'}")
    assert [(each.label, each[Operation.SAVE].median_s) for each in known.methods] == [("torch_save", 1.0)]


def test_a_log_of_a_later_version(study: StudyOnDisk) -> None:
    """It is not guessed at: the job is there, and the note says which version it has."""
    path = study.log("tensorstore_basic", save=[1])
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    path.write_bytes(sealed(path.read_bytes()[512:]))

    [setting] = settings(analysis.load_results(study.root))
    [problem, _] = [problem for method in setting.methods for problem in method.problems]

    assert "r01-tensorstore_basic-disk-1x1: unreadable: " in problem
    assert "has version 99 of the timing log" in problem.replace("np.int64(99)", "99")


def test_a_log_under_the_name_of_another_job(study: StudyOnDisk) -> None:
    """A job whose log was overwritten by a copy of another's does not vanish from the table."""
    original = study.paths.log(study.job("torch_save").id)
    copy = study.paths.log(study.job("tensorstore_basic").id)
    copy.write_bytes(original.read_bytes())

    [found] = settings(analysis.load_results(study.root))
    method = found.method("tensorstore_basic")

    assert method is not None
    assert len(method[Operation.SAVE]) == 0
    other = "r01-torch_save-disk-1x1 of study tiny"
    assert list(method.problems) == [
        f"r01-tensorstore_basic-disk-1x1: unreadable: {copy} is the log of another job, {other}"
    ]
    assert len(found.methods[0][Operation.SAVE]) == 3
