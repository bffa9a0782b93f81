"""`python -m analysis` as a person on a laptop types it: into pipes, with mistakes."""

from __future__ import annotations

import os
import pty
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import analysis
from support.studies import StudyOnDisk

REPOSITORY = Path(analysis.__file__).parents[1]

# Cyclopts reads the arguments of this process: of pytest, it thinks, and warns; of `command`, in fact.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")

Command = Callable[..., tuple[Any, str, str]]

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m analysis` in this process: its exit code, what it printed, and what it complained about."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
        monkeypatch.setenv("COLUMNS", "1000")  # a row on one line
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / "analysis" / "__main__.py"), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("style", "excerpt"),
    [
        ((), "│ 87.60 [80.00, 100.00], n = 3 │"),
        (("--format", "text"), "│ 87.60 [80.00, 100.00], n = 3 │"),
        (("--format", "markdown"), "| 87.60 [80.00, 100.00], n = 3 |"),
        (("--format", "latex"), r"\num{87.60} {[}\num{80.00}, \num{100.00}{]}, n = \num{3}"),
        (("--format", "html"), '<td class="number">87.60 [80.00, 100.00], n = 3</td>'),
        (("--format=csv",), ",87.6,80.0,100.0,80.0,100.0,3,0,"),
    ],
)
def test_formats(style: tuple[str, ...], excerpt: str, three_methods: StudyOnDisk, command: Command) -> None:
    """Tables come as text unless another format is asked for."""
    code, printed, complaint = command("table", str(three_methods.root), *style)

    assert (code, complaint) == (0, "")
    assert excerpt in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "RESULTS", "--format", "xml"), '"xml"'),
        (("table",), "error: name at least one RESULTS"),
        (
            ("table", "RESULTS", "--reference", "torch"),
            "error: no method is called 'torch': name one",
        ),
        (("compare", "RESULTS"), "parameter B requires an argument"),
        (("compare", "RESULTS", "absent"), "error: absent does not exist"),
        (("table", "absent"), "error: absent does not exist"),
        (("table", "absent\nand more"), "does not exist"),
        (("merge", "--output", "merged.h5"), "error: name at least one RESULTS"),
        (("merge", "RESULTS"), "--output"),
        (("merge", "RESULTS", "--output", "absent/merged.h5"), "error: can't write absent/merged.h5"),
        (("draw", "RESULTS"), "draw"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    three_methods: StudyOnDisk,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was wrong is told without a traceback, and nothing is printed as if it were a result."""
    monkeypatch.chdir(tmp_path)
    given = [str(three_methods.root) if argument == "RESULTS" else argument for argument in arguments]

    code, printed, complaint = command(*given)

    assert (code, printed) == (2, "")
    assert message in " ".join(complaint.replace("│", "").split())


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(unbuffered: str, three_methods: StudyOnDisk) -> None:
    """`| head -1` closes the pipe, here before the first line: no message, and no failure."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "analysis", "table", str(three_methods.root)],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writing)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("style", ["text", "markdown", "csv", "latex", "html"])
@pytest.mark.parametrize("arguments", [("advise",), ("project", "--parameters", "405e9", "--nodes", "64")])
def test_advice_and_projections_come_in_all_formats(
    style: str, arguments: tuple[str, ...], three_methods: StudyOnDisk, command: Command
) -> None:
    """They are tables like the others."""
    code, printed, complaint = command(*arguments, str(three_methods.root), "--format", style)

    assert (code, complaint) == (0, "")
    assert ("torch\\_save" if style == "latex" else "torch_save") in printed


def test_the_options_of_advise(three_methods: StudyOnDisk, command: Command) -> None:
    """Each assumption can be stated, and stands in the output."""
    options = ("--mtbf-hours=4", "--step-time=2", "--restore=warm", "--restart-s=90", "--stall=call")
    code, printed, _ = command("advise", str(three_methods.root), *options)

    assert code == 0
    assert "With a failure every 4 h" in printed
    assert "Daly [steps of 2 s]" in printed
    assert "warm loads), and costs 90 s besides" in printed
    assert "for the strategy's call only" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("advise",), "error: name at least one RESULTS"),
        (("advise", "RESULTS", "--mtbf-hours", "-1"), "error: --mtbf-hours -1: expected a positive number"),
        (("advise", "RESULTS", "--mtbf-hours", "nan"), "error: --mtbf-hours nan"),
        (("advise", "RESULTS", "--restore", "hot"), "hot"),
        (("report", "RESULTS", "RESULTS"), "error: RESULTS is not one study's directory"),
        (("report", "RESULTS", "--step-time", "0"), "error: --step-time 0"),
        (("figures", "RESULTS"), "--output"),
        (("project", "RESULTS", "--nodes", "2"), "--parameters"),
        (("project", "RESULTS", "--parameters", "1e9", "--nodes", "0"), "error: --nodes 0: expected a number from 1"),
        (("project", "RESULTS", "--parameters", "-1", "--nodes", "2"), "error: --parameters -1"),
        (
            ("project", "RESULTS", "--parameters=1e9", "--nodes=2", "--shared-limit-gbps=0"),
            "error: --shared-limit-gbps 0",
        ),
    ],
)
def test_a_mistake_about_a_decision_is_one_message(
    arguments: tuple[str, ...], message: str, three_methods: StudyOnDisk, command: Command
) -> None:
    """What was wrong, what was expected; nothing is printed, and nothing written."""
    given = [str(three_methods.root) if argument == "RESULTS" else argument for argument in arguments]
    code, printed, complaint = command(*given)

    assert (code, printed) == (2, "")
    assert message in " ".join(complaint.replace("│", "").split())
    assert not (three_methods.root / "report").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_for_eyes(terminal: bool, three_methods: StudyOnDisk) -> None:
    """A bar on stderr where that is a terminal; a file or a pipe gets the tables and nothing else."""
    ours, theirs = pty.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "analysis", "table", str(three_methods.root)],
        stdout=subprocess.PIPE,
        stderr=theirs if terminal else subprocess.PIPE,
        text=True,
        check=True,
        env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    drawn = os.read(ours, 100_000).decode() if terminal else ended.stderr
    os.close(ours)

    assert ("reading logs" in drawn) == terminal
    assert ended.stdout.startswith("Storage: tiny")
