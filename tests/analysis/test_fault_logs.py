"""The files of faults that `python -m analysis` reads: which ones, without what, and damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.errors import ResultsError
from analysis.logs.faults import fault_logs, required_fault_logs
from jobs.faults.outcomes import ALONE, FILE, KILL, Cell
from support.command_lines import run_module
from support.fault_logs import fault_log, write_fault_log

REPOSITORY = Path(analysis.__file__).parents[1]


def test_what_a_study_wrote_is_read(tmp_path: Path) -> None:
    """From its directory, from a directory of studies, and from the file; a file that is named twice counts once."""
    logs = [fault_log(study=name) for name in ("a", "b")]
    files = [write_fault_log(log, tmp_path / log.study) for log in logs]

    assert fault_logs([tmp_path / "a"]) == logs[:1]
    assert fault_logs([tmp_path]) == logs
    assert fault_logs([files[1]]) == logs[1:]
    assert fault_logs([tmp_path / "b", tmp_path, files[1]]) == [logs[1], logs[0]]


def test_several_studies_have_a_table_each(tmp_path: Path) -> None:
    """Their anchors in HTML differ."""
    for name in ("a", "b"):
        write_fault_log(fault_log(study=name), tmp_path / name)

    ended = run_module("analysis", "faults", str(tmp_path), "--format", "html")

    assert [ended.stdout.count(f'id="table-{number}"') for number in (1, 2, 3)] == [1, 1, 0]
    assert ended.stdout.index("Faults: a on disk") < ended.stdout.index("Faults: b on disk")


def changed(**fields: Any) -> bytes:
    """A file with other values at its top."""
    return json.dumps(asdict(fault_log()) | fields).encode()


def with_cells(*cells: Cell) -> bytes:
    """A file with these cells."""
    return json.dumps(asdict(fault_log(*cells))).encode()


DAMAGED = {
    "cut": (lambda: changed()[:-40], "Unterminated string"),
    "empty": (lambda: b"", "Expecting value"),
    "not UTF-8": (lambda: b"\xff\xfe", "can't decode"),
    "deeply nested": (lambda: b"[" * 200_000, "recursion"),
    "another kind of file": (lambda: b'{"jobs": []}', "study: Field required"),
    "a list": (lambda: b"[]", "dictionary"),
    "a number for a name": (lambda: changed(study=5), "study: Input should be a valid string"),
    "versions in words": (lambda: changed(versions="torch 2"), "versions"),
    "cells that are none": (lambda: changed(cells=[{"method": "a"}]), "cells.0.use: Field required"),
    "a negative number": (lambda: with_cells(Cell("a", ALONE, KILL, -1)), "a, alone, kill: a number of cases"),
    "a cell twice": (lambda: with_cells(*[Cell("a", ALONE, KILL, 1)] * 2), "it has 2 cells of a, alone, kill"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_message(content: Callable[[], bytes], reason: str, tmp_path: Path) -> None:
    """It names the file, what is wrong with it, and the command that writes it anew."""
    path = tmp_path / FILE
    path.write_bytes(content())

    with pytest.raises(ResultsError) as raised:
        fault_logs([tmp_path])

    message = str(raised.value)
    assert message.startswith(f"{path} is damaged")
    assert reason in message
    assert message.endswith("run that command again")
    assert "`python -m jobs faults STUDY`" in message
    assert "\n" not in message


def test_a_file_that_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    """As a directory of that name can't be."""
    (tmp_path / FILE).mkdir()

    with pytest.raises(ResultsError, match=r"can't read .*faults\.json: Is a directory"):
        fault_logs([tmp_path])


def test_results_without_the_file_name_the_command_that_writes_it(tmp_path: Path) -> None:
    """Where they must have it; other files are none."""
    (tmp_path / "merged.h5").write_bytes(b"")

    assert fault_logs([tmp_path, tmp_path / "merged.h5"]) == []
    with pytest.raises(ResultsError, match=r"no faults\.json in .*: `python -m jobs faults STUDY` tries"):
        required_fault_logs([tmp_path])
    with pytest.raises(ResultsError, match="name at least one RESULTS"):
        required_fault_logs([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("faults",), "error: name at least one RESULTS"),
        (("faults", "absent"), "error: absent does not exist"),
        (("faults", "empty"), "error: no faults.json in empty: `python -m jobs faults STUDY`"),
        (("faults", "damaged"), "error: damaged/faults.json is damaged"),
        (("faults", "damaged", "--format", "json"), '"json"'),
        (("report", "damaged"), "error: damaged/faults.json is damaged"),
        (("report", "empty"), "error: no timing logs in empty"),
    ],
)
def test_a_mistake_ends_with_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message and no traceback, and nothing is printed or written as if it were a result."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / FILE).write_text("{")

    ended = run_module("analysis", *arguments)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in " ".join(ended.stderr.replace("│", "").split())
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("report*"))


def test_it_runs_on_a_laptop(tmp_path: Path) -> None:
    """Without torch, Slurm's libraries and those of strategies; the file's module needs pandas as little."""
    write_fault_log(fault_log(), tmp_path)
    blocked = {"torch", "transformers", "tensorstore", "safetensors", "submitit", "psutil"}
    script = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import jobs.faults.outcomes
assert "pandas" not in sys.modules
sys.argv = ["analysis", "faults", {str(tmp_path)!r}]
runpy.run_module("analysis", run_name="__main__", alter_sys=True)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "3 of 412" in ended.stdout
