"""`python -m ckpt`, and what importing the room costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from ckpt.strategy import names


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ckpt` as on a terminal 120 columns wide."""
    return subprocess.run(
        [sys.executable, "-m", "ckpt", *arguments],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "120", "PYTHONUTF8": "1"},
    )


def test_strategies(file_regression: FileRegressionFixture) -> None:
    """Every strategy has a column with all its facts and its options."""
    done = run("strategies")
    assert (done.returncode, done.stderr) == (0, "")
    file_regression.check(done.stdout, encoding="utf-8")


@pytest.mark.parametrize(
    "arguments", [["strategy"], ["strategies", "--all"], ["strategies", "torch_save"], ["--version"]]
)
def test_mistakes(arguments: list[str]) -> None:
    """What can't be understood is told in a few lines, with exit code 2 and no traceback."""
    done = run(*arguments)
    assert done.returncode == 2
    assert arguments[-1] in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_help() -> None:
    """Without a command, and with --help, it says what the commands are."""
    for arguments in ([], ["--help"]):
        done = run(*arguments)
        assert done.returncode == 0
        assert "strategies" in done.stdout


def test_closed_pipe() -> None:
    """A reader that has seen enough, as `head` does, is told nothing."""
    command = f'"{sys.executable}" -m ckpt strategies | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_light_imports(fresh_python: Callable[..., str]) -> None:
    """Planning and listing work without the heavy libraries: nothing but what handles tensors imports them, and the
    room imports no other.
    """
    code = (
        "import importlib, pkgutil, sys, ckpt\n"
        "modules = {each.name for each in pkgutil.walk_packages(ckpt.__path__, 'ckpt.')} - {'ckpt.state','ckpt.tree'}\n"
        "for module in modules: importlib.import_module(module)\n"
        "from ckpt import layout, strategy\n"
        "known = layout.layout_of(layout.StateSpec('openllama-3b'))\n"
        "for name in strategy.names():\n"
        "    created = strategy.create(name)\n"
        "    assert created.facts and created.label and created.footprint(known).file_count\n"
        "print(*sorted(modules))\n"
        "print(*{'torch', 'tensorstore', 'transformers', 'submitit', 'jobs', 'analysis'} & sys.modules.keys())\n"
    )
    modules, heavy = fresh_python(code).splitlines()
    assert {f"ckpt.strategies.{name}" for name in names()} <= set(modules.split())
    assert heavy == ""


def test_a_library_that_is_missing(fresh_python: Callable[..., str]) -> None:
    """A strategy whose library is not installed says which one, and what to do, before anything is measured."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ckpt import strategy\n"
        "for name in strategy.names():\n"
        "    try: strategy.create(name).prepare()\n"
        "    except strategy.CheckpointError as error: print(error)\n"
    )
    told = fresh_python(code).splitlines()
    assert len(names()) == len(told)
    for name, line in zip(names(), told, strict=True):
        assert line.startswith(f"strategy {name} needs torch, which can't be imported here")
        assert "leave the strategy out" in line
