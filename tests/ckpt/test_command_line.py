"""`python -m ckpt`, and what importing the room costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from ckpt.registry import create, names
from support.command_lines import run_module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ckpt` in this process, as on a terminal 120 columns wide."""
    return run_module("ckpt", *arguments)


def run_alone(*arguments: str, columns: int = 120) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ckpt", *arguments],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": str(columns), "PYTHONUTF8": "1"},
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_strategies(columns: int, file_regression: FileRegressionFixture) -> None:
    """Every strategy has a row in each table; the tables fit the terminal, and no word is broken."""
    done = run_alone("strategies", columns=columns)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= columns
    readers = {word for name in names() for word in create(name).facts()["other_readers"].split()}
    assert readers | {*names(), "checksum"} <= set(done.stdout.split())
    file_regression.check(done.stdout, encoding="utf-8")


@pytest.mark.parametrize("name", names())
def test_one_strategy(name: str) -> None:
    """A strategy's own page has all its facts, its options, and what they mean."""
    done = run("strategies", name)
    assert done.returncode == 0
    created = create(name)
    words = " ".join(done.stdout.replace("│", " ").split())
    assert all(" ".join(fact.split()) in words for fact in created.facts().values())
    assert all(f"{option} = " in words for option in created.options)


def test_save_load_inspect_convert(tmp_path: Path) -> None:
    """A checkpoint by hand: saved, looked at, loaded, loaded in part, saved in another way; the digest stays."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    saved = run("save", "llama-15m", first, "--tensors", "3", "--option", "shard_mib=1", "--option", "checksum=true")
    assert (saved.returncode, saved.stderr) == (0, "")
    digest = saved.stdout.split()[-1]
    assert digest == run_alone("load", first, "--option", "verify=true").stdout.split()[-1]
    assert "1 tensors" in run("load", first, "model.embed_tokens.weight").stdout
    converted = run("convert", first, second, "--strategy", "tensorstore_tuned", "--option", "compression=zstd")
    assert (converted.returncode, converted.stderr) == (0, "")
    assert digest == run("load", second).stdout.split()[-1]
    shown = run("inspect", second)
    assert "tensorstore_tuned, 3 tensors" in shown.stdout
    assert json.loads(run("inspect", second, "--json").stdout)["options"]["compression"] == "zstd"
    (tmp_path / "second" / "zarr.json").unlink()
    incomplete = run("inspect", second)
    assert incomplete.returncode == 1
    assert "incomplete: zarr.json" in incomplete.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["strategy"],
        ["strategies", "--all"],
        ["strategies", "torch_sav"],
        ["--version"],
        ["load", "/no/such/directory"],
        ["inspect", "/no/such/directory"],
        ["convert", "/no/such/one", "/no/such/directory"],
        ["save", "no-such-model", "/proc/x"],
        ["save", "llama-15m", "/proc/x", "--option", "verify"],
        ["save", "llama-15m", "/proc/x", "--tensors", "1", "--strategy", "torch-save"],
        ["save", "llama-15m", "/proc/nothing/x", "--tensors", "1"],
    ],
    ids=" ".join,
)
def test_mistakes(arguments: list[str]) -> None:
    """What can't be understood is told in a few lines, with exit code 2 and no traceback."""
    done = run(*arguments)
    assert done.returncode == 2
    told = " ".join((done.stdout + done.stderr).split())
    assert any(argument in told for argument in arguments[1:] or arguments)
    assert "Traceback" not in done.stdout + done.stderr


def test_help() -> None:
    """Without a command, and with --help, it says what the commands are."""
    for arguments in ([], ["--help"]):
        done = run_alone(*arguments)
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
        "import importlib, sys, ckpt; from pathlib import Path\n"
        "trees = ('nested', 'walk', 'build', 'containers', 'plain', 'views', 'dtensors')\n"
        "trees = {f'ckpt.tree.{name}' for name in trees}\n"
        "dcp = {f'ckpt.formats.{name}' for name in ('dcp_planners', 'dcp_files', 'dcp_entries', 'torch_archives')}\n"
        "workload = {'ckpt.workload.values', 'ckpt.workload.building'}\n"
        "states = {'ckpt.in_place', 'ckpt.agreement', 'ckpt.together', 'ckpt.state.compare'}\n"
        "tensors = {*states, *dcp, *workload, *trees}\n"
        "whole = 'ckpt.testing', 'ckpt.dcp', 'ckpt.callbacks'\n"
        "room = Path(ckpt.__file__).parent\n"
        "paths = [file.relative_to(room.parent).with_suffix('') for file in room.rglob('*.py')]\n"
        "modules = {'.'.join(path.parts).removesuffix('.__init__') for path in paths} - tensors\n"
        "modules = {module for module in modules if not module.startswith(whole)}\n"
        "for module in modules: importlib.import_module(module)\n"
        "from ckpt.workload import spec; from ckpt import registry; from ckpt.state.sharding import Partition\n"
        "known = spec.layout_of(spec.StateSpec('openllama-3b'))\n"
        "for name in registry.names():\n"
        "    created = registry.create(name)\n"
        "    assert created.facts() and created.label\n"
        "    assert created.footprint(Partition.single(known)).file_count\n"
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
        "from ckpt import registry; from ckpt.errors import CheckpointError\n"
        "for name in registry.names():\n"
        "    try: registry.create(name).prepare()\n"
        "    except CheckpointError as error: print(error)\n"
    )
    told = fresh_python(code).splitlines()
    assert len(names()) == len(told)
    for name, line in zip(names(), told, strict=True):
        assert line.startswith(f"strategy {name} needs torch, which can't be imported here")
        assert "leave the strategy out" in line
