"""A model so small that a job takes a second, a study of it, and the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import jobs
from jobs.paths import StudyPaths
from jobs.plan import plan, study_file
from support.commands import Commands
from support.models import write_config

if TYPE_CHECKING:
    from support.bench import Bench

HERE = Path(__file__).parent
ROOT = Path(jobs.__file__).parent.parent

_SITECUSTOMIZE = """\
import sys

import ckpt.strategies

ckpt.strategies.__path__.append({strategies!r})


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            print("tried to import", name, file=sys.stderr)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The config.json of a Llama of 21 tensors, 23 kB."""
    return write_model(tmp_path / "model" / "config.json")


def write_model(path: Path, **changes: Any) -> Path:
    """A tiny model's configuration."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "dtype": "float32"}
    return write_config(path, **sizes | {"max_position_embeddings": 64, "tie_word_embeddings": False} | changes)


@pytest.fixture
def changed_model(tmp_path: Path) -> Callable[..., Path]:
    """The tiny model with other values in its config.json."""
    return lambda **changed: write_model(tmp_path / "changed" / "config.json", **changed)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory to write checkpoints to."""
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def tiny(model: Path, target: Path) -> dict[str, Any]:
    """The content of a study file: one strategy, the tiny model, one target."""
    return {
        "name": "tiny",
        "strategies": ["torch_save"],
        "state": {"model": str(model)},
        # Some machines have their temporary files in memory: all but the speed is the same there.
        "targets": {"here": {"path": str(target), "allow_tmpfs": True}},
        "trials": {"repeats": 2, "warmups": 1},
    }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A trial loop with a state of 2 MiB, which is on a disk where tmp_path is."""
    from support.bench import new_bench  # which imports torch

    return new_bench(tmp_path)


@pytest.fixture
def on_disk(bench: Bench) -> None:
    """Only where pages can be evicted."""
    from ckpt.disk import mounts

    if mounts.mount_of(bench.target).in_memory:
        pytest.skip("temporary files lie in memory here, which has no page cache to evict from")


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[Mapping[str, Any]], StudyPaths]:
    """A study's directory as it is before the first job has run."""

    def make(content: Mapping[str, Any]) -> StudyPaths:
        paths = StudyPaths(tmp_path / "results" / content["name"])
        paths.logs.mkdir(parents=True)
        paths.slurm.mkdir()
        paths.plan_json.write_text(plan.to_json(plan.make_plan(study_file.parse(dict(content), "study.toml"))))
        return paths

    return make


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Nothing else can be called."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return Commands(directory)


@dataclass(frozen=True)
class Python:
    """Starts Python processes that see this checkout and, beside the real strategies, those in `strategies/`."""

    site: Path
    cwd: Path

    def environment(self, *, without: tuple[str, ...] = (), **variables: str) -> dict[str, str]:
        """The environment of a process in which the modules `without` can't be imported."""
        text = _SITECUSTOMIZE.format(strategies=str(HERE / "strategies"), absent=without)
        (self.site / "sitecustomize.py").write_text(text)
        return os.environ | {"PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}", "PYTHONUTF8": "1"} | variables

    def __call__(
        self, *arguments: str | Path, without: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` to its end."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=self.environment(without=without, **variables),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=900,
        )

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start `python ARGUMENTS`, and don't wait."""
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=self.environment(**variables),
            cwd=self.cwd,
            stdout=subprocess.DEVNULL,
        )


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Python processes that start in tmp_path."""
    site = tmp_path / "site"
    site.mkdir()
    return Python(site, tmp_path)


@pytest.fixture
def loop_study(tiny: dict[str, Any]) -> Iterator[Callable[..., dict[str, Any]]]:
    """A study with a loop of short idle steps; a loop sets the number of torch's threads, which is undone."""
    import torch

    from support.loop_jobs import LOOP

    def make(*ways: str, strategy: Any = "torch_save", **keys: Any) -> dict[str, Any]:
        quick = {"ceiling": False, "metadata": False}
        return tiny | {"strategies": [strategy], "trials": quick, "loop": LOOP | {"ways": ways} | keys}

    before = torch.get_num_threads()
    yield make
    torch.set_num_threads(before)


@pytest.fixture
def doctored(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """The strategy that goes wrong in its second save, in this process and in those that it starts."""
    from ckpt import registry, strategies

    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(Path(__file__).parent / "strategies")])
    monkeypatch.setattr(registry, "_own_names", lambda: frozenset({"doctored"}))
    registry.create("doctored").saves.clear()  # type: ignore[attr-defined]
    return lambda how: {"name": "doctored", "how": how}
