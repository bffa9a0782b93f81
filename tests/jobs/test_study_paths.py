"""Relative paths in a study file: which directory they are taken from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.node import targets
from jobs.plan import study_file
from support.study_files import write


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".", "elsewhere"),
        ("below/it", "elsewhere/below/it"),
        ("/absolute", "/absolute"),
        ("$SCRATCH/x", "$SCRATCH/x"),
        ("${SCRATCH}", "${SCRATCH}"),
        ("~/x", "~/x"),
    ],
)
def test_relative_target(path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target's relative path is taken from the current directory, and what the node knows is left to the node."""
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    monkeypatch.chdir(cwd)

    read = study_file.read(write(tmp_path, targets=f'[targets.here]\npath = "{path}"'))

    assert expected.replace("elsewhere", str(cwd)) == read.targets["here"].path


def test_relative_target_below_a_dollar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `$` in the name of the current directory is a `$`, and no variable."""
    cwd = tmp_path / "a $HOME"
    cwd.mkdir()
    monkeypatch.chdir(cwd)

    read = study_file.read(write(tmp_path))

    assert cwd == targets.resolve("here", read.targets["here"], os.environ)


def test_model_beside_the_study(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's relative path is taken from the study's directory, wherever the command is typed."""
    monkeypatch.chdir("/")

    read = study_file.read(write(tmp_path, state=f'[state]\nmodel = "{model.relative_to(tmp_path)}"'))

    assert str(model) == read.state.model
