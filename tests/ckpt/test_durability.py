"""Durable means durable: what was synced, and when, is read from a trace of the system calls, not believed.

A script saves with every strategy as `jobs.node.trial` does, under strace. The trace is replayed on a model of a disk
that knows what a power cut would lose.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt.registry import create, names
from ckpt.strategy import Strategy, Syncs
from support.traces import NAMES, SYNCS, WRITES, Traced, replay

STRATEGIES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in names()] + [
    ("tensorstore_basic", {"compressor": "none"}),
    ("tensorstore_t5x_real", {"dtype": "native", "gzip_level": 0}),
    ("hdf5", {"layout": "chunked"}),
    ("orbax", {"ocdbt": False, "compression": False}),
    ("zarr_python", {"compression": "none"}),
    ("torch_save", {"crc": False}),
    ("torch_dcp", {"thread_count": 2, "single_file_per_rank": False}),
    ("torch_dcp", {"serialization": "safetensors"}),
]
LABELS = [create(name, options).label for name, options in STRATEGIES]
ALL_LABELS = [*LABELS, "plain files", "DirectWriter", "replacing"]

SCRIPT = """
import contextlib, json, os, sys
from pathlib import Path
import torch
import torch.distributed.checkpoint as dcp
import ckpt
from ckpt.dcp import DirectWriter
from ckpt.disk import commit
from ckpt import registry

strategies, root = json.loads(sys.argv[1]), Path(sys.argv[2])
state = {"a.b": torch.randn(130, 3).half(), "c": torch.randn(5), "empty": torch.empty(0, 2), "0-d": torch.tensor(1.0)}

def mark(*words):  # an open that fails tells the trace where the script is
    with contextlib.suppress(FileNotFoundError):
        os.open("/ckpt-mark/" + "/".join(words), os.O_RDONLY)

def write_files(directory):
    for parent in (directory, directory / "one", directory / "one" / "two", directory / "empty"):
        parent.mkdir(exist_ok=True)
        if parent.name != "empty":
            for number in range(20):
                (parent / f"file {number}").write_bytes(b"x" * 100 * number)

def checkpoint(label, save, syncs_files):
    final = root / label / "final"
    final.parent.mkdir()
    mark(label, "begin")
    with commit.begin(final) as staging:
        save(staging.path)
        mark(label, "saved")
        staging.flush(files=not syncs_files)
        mark(label, "flushed")
        staging.publish()
        mark(label, "published")

for name, options in strategies:
    chosen = registry.create(name, options)
    chosen.prepare()
    checkpoint(chosen.label, lambda directory: chosen.save(state, directory), chosen.capabilities.syncs_files)
checkpoint("plain files", write_files, False)

publish = commit.Staging.publish

def between_marks(label):
    def marked(staging):
        mark(label, "saved")
        publish(staging)
        mark(label, "published")

    commit.Staging.publish = marked
    mark(label, "begin")

final = root / "DirectWriter" / "final"
final.parent.mkdir()
between_marks("DirectWriter")
dcp.save(state, storage_writer=DirectWriter(final, files=2), no_dist=True)
commit.Staging.publish = publish

final = root / "replacing" / "final"
ckpt.save({"old": state}, final)
between_marks("replacing")
ckpt.save({"new": state}, final)
"""


def unavailable(why: str) -> None:
    """Skip the test and say why; fail it where everything has to be there."""
    if os.environ.get("CKPT_REQUIRE_ALL"):
        pytest.fail(why)
    pytest.skip(why)


def missing_library(strategy: Strategy) -> str:
    """The first module that a strategy of an extra needs and that isn't installed; empty if none."""
    modules = strategy.requires if strategy.extra == "peers" else ()
    return next((module for module in modules if importlib.util.find_spec(module.partition(".")[0]) is None), "")


class Traces(dict[str, Traced]):
    """What was traced, by label; whoever asks for a strategy whose library isn't installed is skipped."""

    def __missing__(self, label: str) -> Traced:
        name, _, _ = label.partition("+")
        unavailable(f"{name} needs {missing_library(create(name))}, which isn't installed: pip install '.[peers]'")
        raise KeyError(label)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Traced]:
    """Save with every strategy under strace, once."""
    if shutil.which("strace") is None:
        unavailable("strace is missing, so that no fsync can be counted: install strace")
    root = tmp_path_factory.mktemp("traced")
    trace = root / "trace"
    calls = ",".join(f"?{name}" for name in sorted(WRITES | SYNCS | NAMES))
    strace = ["strace", "-f", "-y", "-qq", "-s", "0", "--signal=none", "-e", f"trace={calls}", "-o", str(trace)]
    if subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        unavailable("strace can't trace here (ptrace is forbidden), so that no fsync can be counted")
    installed = [(name, options) for name, options in STRATEGIES if not missing_library(create(name, options))]
    script = [sys.executable, "-c", SCRIPT, json.dumps(installed), str(root)]
    done = subprocess.run(
        [*strace, *script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return Traces(replay(trace.read_text(errors="surrogateescape").splitlines(), root))


@pytest.mark.parametrize("label", ALL_LABELS)
class TestDurability:
    """What the trace says about each strategy."""

    def test_the_trace_saw_every_byte(self, label: str, traced: dict[str, Traced]) -> None:
        """Every file was created and written by calls that were traced, or the rest would prove nothing."""
        found = traced[label]
        files = {str(path) for path in found.final.rglob("*") if path.is_file() and path.stat().st_size}
        assert files
        assert files == found.files_with_data

    def test_synced_before_the_rename(self, label: str, traced: dict[str, Traced]) -> None:
        """When the checkpoint gets its name, in one rename, every file and directory of it has been synced since it
        last changed.
        """
        assert traced[label].renames_to_final == 1
        assert traced[label].unsynced_before_rename == set()

    def test_synced_after_the_rename(self, label: str, traced: dict[str, Traced]) -> None:
        """When `publish` returns, the name itself is on stable storage, and nothing was written behind it."""
        assert traced[label].unsynced_when_published == set()

    def test_written_beside_its_name(self, label: str, traced: dict[str, Traced]) -> None:
        """Nothing is created anywhere but in the one staging directory."""
        staging = {Path(path).relative_to(traced[label].final.parent).parts[0] for path in traced[label].created}
        assert len(staging) == 1
        assert staging.pop().startswith(".partial-")


@pytest.mark.parametrize(("name", "options"), STRATEGIES, ids=LABELS)
def test_who_syncs_the_files(name: str, options: dict[str, str], traced: dict[str, Traced]) -> None:
    """A strategy that claims to sync its files has synced each when `save` returns; one that
    claims some has left others, or a part of them; one that claims none has synced none, or the claim would be
    missing.
    """
    strategy = create(name, options)
    found = traced[strategy.label]
    files = {str(path.relative_to(found.final)) for path in found.final.rglob("*") if path.is_file()}
    unsynced = found.unsynced_files_when_saved
    syncs = strategy.capabilities.syncs
    if syncs is Syncs.SOME_FILES:
        assert set() < unsynced <= files
        assert found.files_synced_once
    else:
        assert (set() if syncs is Syncs.ALL_FILES else files) == unsynced


@pytest.mark.parametrize(("name", "options"), STRATEGIES, ids=LABELS)
def test_who_writes_aside(name: str, options: dict[str, Any], traced: dict[str, Traced]) -> None:
    """A strategy that claims atomic files creates each under another name and renames it; one that doesn't, writes in
    place.
    """
    strategy = create(name, options)
    assert strategy.capabilities.atomic_files == (not traced[strategy.label].created_as)
