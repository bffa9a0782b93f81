"""`python -m jobs faults`: which cells it runs, what it keeps, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import faults_command
from jobs.errors import StudyError
from jobs.faults import cell, kept
from jobs.faults.budget import Budget
from jobs.faults.outcomes import FILE, FaultLog, read
from jobs.faults.processes import environment
from jobs.faults.subject import Subject
from jobs.faults_command import Selection, faults
from support.faults import require_strace
from support.faults_study import case, prints, program, subject, write_study

RESTED_S = 60


class Cells:
    """Stands in for the cells; the first line of each one's output is a right case."""

    def __init__(self) -> None:
        self.run: list[tuple[str, str, str]] = []
        self.lines: Callable[[str, str, str], list[str]] = lambda *_: [prints(case("right"))]

    def command(self, of: Subject, fault: str, work: Path, budget: Budget) -> list[str]:
        """The program of a cell."""
        assert list(work.iterdir()) == []
        assert budget.flips > 0
        self.run.append((of.method.label, of.use, fault))
        return program(*self.lines(*self.run[-1]))


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Cells:
    """What is run instead of real cells; nothing is analysed."""
    require_strace()
    stand_ins = Cells()
    monkeypatch.setattr(cell, "command", stand_ins.command)
    monkeypatch.setattr(faults_command, "analyse", lambda *_: 0)
    return stand_ins


def log_in(results: Path) -> FaultLog:
    """What a run kept."""
    return read(results / "small" / FILE)


def test_every_cell_is_tried(cells: Cells, tmp_path: Path) -> None:
    """Every method, in both uses, under every fault; kept in this order, whichever ends first."""
    study = write_study(tmp_path, "torch_save", "hdf5")
    assert faults(str(study), results=tmp_path) == 0
    log = log_in(tmp_path)
    names = [(kept.method, kept.use, kept.fault) for kept in log.cells]
    assert names[:5] == [
        ("torch_save", "alone", "power-cut"), ("torch_save", "alone", "failed-call"), ("torch_save", "alone", "kill"),
        ("torch_save", "alone", "bit-rot"), ("torch_save", "committed", "power-cut"),
    ]  # fmt: skip
    assert sorted(names) == sorted(cells.run)
    assert len(names) == 16
    assert {kept.verdict for kept in log.cells} == {"right"}
    assert log.versions.keys() >= {"python", "kernel", "torch", "ckpt-study", "h5py"}
    assert list((tmp_path / "target").iterdir()) == []


def test_the_smallest_case_of_the_worst_verdict_is_kept(cells: Cells, tmp_path: Path) -> None:
    """And all are counted."""
    output = [case("silent", 3, "late"), case("detected", 1, "first"), case("silent", 2, "early"), case("right")]
    cells.lines = lambda *_: [prints(*output)]
    faults(str(write_study(tmp_path, "torch_save")), results=tmp_path)
    kept = log_in(tmp_path).cells[0]
    assert (kept.right, kept.detected, kept.silent, kept.case) == (1, 1, 2, "early")


def test_a_cell_that_cannot_be_tried_has_its_reason(cells: Cells, tmp_path: Path) -> None:
    """Whether it reports that, or fails; and the next run tries it again, and no other."""
    cells.lines = lambda _, use, fault: (
        [prints(case("right"), {"skipped": "no such library"})] if use == "alone"
        else ["import sys", "sys.exit('no idea')"] if fault == "kill" else [prints(case("right"))]
    )  # fmt: skip
    study = write_study(tmp_path, "torch_save")
    faults(str(study), results=tmp_path)
    skipped = {(kept.use, kept.skipped) for kept in log_in(tmp_path).cells if kept.skipped}
    assert skipped == {("alone", "no such library"), ("committed", "it failed with exit code 1: no idea")}
    assert [kept.cases for kept in log_in(tmp_path).cells] == [0, 0, 0, 0, 1, 1, 0, 1]
    cells.run.clear()
    faults(str(study), results=tmp_path)
    assert len(cells.run) == 5


def test_a_part_is_printed_and_not_kept(cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that the table gives for a cell."""
    cells.lines = lambda *_: [prints(case("right"), case("silent", 2, "what went wrong"))]
    study = write_study(tmp_path, "torch_save", "hdf5")
    faults(str(study), selection=Selection("hdf5", "alone", "kill"), results=tmp_path)
    assert cells.run == [("hdf5", "alone", "kill")]
    assert "hdf5 alone kill: 1 right, 1 silent\n" in (printed := capsys.readouterr().out)
    assert "the smallest case of silent: what went wrong" in printed
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("options", "what"), [({"seed": 1}, "seed 0 there, and 1 now"), ({"flips": 3}, "options '' there, and '--flips 3'")]
)
def test_other_outcomes_are_not_joined(cells: Cells, options: dict[str, int], what: str, tmp_path: Path) -> None:
    """Of another seed or other numbers; unless everything begins anew."""
    study = write_study(tmp_path, "torch_save")
    faults(str(study), results=tmp_path)
    with pytest.raises(StudyError, match=what):
        faults(str(study), results=tmp_path, budget=Budget(**options))
    assert log_in(tmp_path).seed == 0
    cells.run.clear()
    faults(str(study), results=tmp_path, again=True, budget=Budget(**options))
    assert len(cells.run) == 8


def test_a_method_that_is_gone_is_no_reason_to_lose_its_outcomes(cells: Cells, tmp_path: Path) -> None:
    """The other study is refused."""
    faults(str(write_study(tmp_path, "torch_save")), results=tmp_path)
    with pytest.raises(StudyError, match="doesn't have now: torch_save"):
        faults(str(write_study(tmp_path, "hdf5")), results=tmp_path)
    assert len(cells.run) == 8


def test_a_damaged_file_is_refused(cells: Cells, tmp_path: Path) -> None:
    """It may hold outcomes."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / FILE).write_text('{"study": 1}')
    with pytest.raises(StudyError, match=r"can't be read .*--again"):
        faults(str(write_study(tmp_path, "torch_save")), results=tmp_path)
    assert cells.run == []


@pytest.mark.parametrize(
    ("changes", "selection", "what"),
    [
        ({}, {"method": "torch"}, "no method 'torch'; it has torch_save"),
        ({}, {"target": "there"}, "no target 'there'; it has here"),
        ({"more": '[targets.two]\npath = "."'}, {}, "several targets: choose one by --target; it has here, two"),
        ({"model": "llama-3-8b"}, {}, 'such as model = "llama-50k"'),
    ],
)
def test_wrong_names(cells: Cells, changes: Any, selection: Any, what: str, tmp_path: Path) -> None:
    """One message each, before anything runs."""
    with pytest.raises(StudyError, match=what):
        faults(str(write_study(tmp_path, "torch_save", **changes)), selection=Selection(**selection), results=tmp_path)
    assert cells.run == []


def test_without_strace(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package; bit rot needs none."""
    monkeypatch.setattr("shutil.which", lambda _: None)
    study = write_study(tmp_path, "torch_save")
    with pytest.raises(StudyError, match="install the package strace"):
        faults(str(study), results=tmp_path)
    faults(str(study), selection=Selection(fault="bit-rot"), results=tmp_path)
    assert len(cells.run) == 2


def test_an_interrupt_ends_all_processes(cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that cells have started; what was tried is kept, and nothing is left on the target."""
    pids = tmp_path / "pids"
    waiting = [
        "import os, subprocess, time",
        "child = subprocess.Popen(['sleep', '600'])",
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}} {{child.pid}}\\n')",
        prints(case("right")),
        "time.sleep(600)",
    ]
    cells.lines = lambda _, use, fault: [prints(case("right"))] if (use, fault) == ("alone", "power-cut") else waiting

    def interrupt() -> None:
        while not (pids.exists() and log_in(tmp_path).cells):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        faults(str(write_study(tmp_path, "torch_save")), results=tmp_path)
    assert "1 of 8 cells were tried\n" in (printed := capsys.readouterr().out)
    assert "the same command tries the others" in printed
    assert [(tried.use, tried.fault) for tried in log_in(tmp_path).cells] == [("alone", "power-cut")]
    assert list((tmp_path / "target").iterdir()) == []
    left = {int(pid) for pid in pids.read_text().split()}
    end_s = time.monotonic() + RESTED_S
    while any(is_running(pid) for pid in left):
        assert time.monotonic() < end_s
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_cell_ends_with_what_reads_it(tmp_path: Path) -> None:
    """When the command is killed, no cell goes on."""
    command = cell.command(subject("torch_save", "alone"), "bit-rot", tmp_path, Budget())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(RESTED_S) == -signal.SIGKILL


def test_a_second_run_in_one_results_directory(cells: Cells, tmp_path: Path) -> None:
    """It is refused before anything is tried: both would write the same file. A part writes none, and may run."""
    study = str(write_study(tmp_path, "torch_save"))
    with kept.locked(tmp_path / "small"):
        with pytest.raises(StudyError, match=f"another `python -m jobs faults` is writing to {tmp_path}/small: wait"):
            faults(study, results=tmp_path)
        assert cells.run == []
        faults(study, selection=Selection(fault="kill"), results=tmp_path)
        faults(study, results=tmp_path / "other")
    faults(study, results=tmp_path)
    assert len(cells.run) == 2 + 8 + 8


def test_what_a_killed_run_left(cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next run on its target removes it, and nothing of a run that lives, of another host, or of anybody else."""
    study = str(write_study(tmp_path, "torch_save"))
    target = tmp_path / "target"
    run = [
        "import sys, pathlib, time",
        "from jobs.faults.work_directory import made_in",
        f"with made_in(pathlib.Path({str(target)!r})) as directory:",
        " (directory / '000').mkdir()",
        " print(directory, flush=True)",
        " time.sleep(600)",
    ]
    elsewhere, foreign = target / "ckpt-faults-elsewhere", target / "ckpt-faults-foreign"
    for directory, note in ((elsewhere, "python -m jobs faults on another-host\n"), (foreign, "")):
        directory.mkdir()
        (directory / "made-by-ckpt-study").write_text(note)
    with (
        subprocess.Popen(program(*run), stdout=subprocess.PIPE, text=True, env=environment()) as killed,
        subprocess.Popen(program(*run), stdout=subprocess.PIPE, text=True, env=environment()) as living,
    ):
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, living) if process.stdout)
        killed.kill()
        killed.wait()
        faults(study, results=tmp_path)
        assert f"removed {left}, which a run that was killed had left\n" in capsys.readouterr().out
        assert {used, elsewhere, foreign} == set(target.iterdir())
        living.terminate()
    assert len(cells.run) == 8


def test_the_command_repeats_a_run(cells: Cells, tmp_path: Path) -> None:
    """With the options that are not the usual ones."""
    study = write_study(tmp_path, "torch_save")
    faults(str(study), selection=Selection(target="here"), budget=Budget(seed=4, kills=3), results=tmp_path)
    log = log_in(tmp_path)
    assert log.command == f"python -m jobs faults {study} --target here --seed 4 --kills 3"
    assert log.command_of(log.cells[0]).endswith("--method torch_save --use alone --fault power-cut")
    assert cells.run
    assert json.loads((tmp_path / "small" / FILE).read_text())["seed"] == 4
