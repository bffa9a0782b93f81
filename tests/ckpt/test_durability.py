"""Durable means durable: what was synced, and when, is read from a trace of the system calls, not believed.

A script saves with every strategy as `jobs.node.trial` does, under strace. The trace is replayed on a model of a disk
that knows what a power cut would lose.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ckpt.registry import create, names
from ckpt.strategy import Strategy, Syncs

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
LABELS = [create(name, options).label for name, options in STRATEGIES] + ["plain files", "replacing"]

SCRIPT = """
import contextlib, json, os, sys
from pathlib import Path
import torch
import ckpt
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

final = root / "replacing" / "final"
ckpt.save({"old": state}, final)
publish = commit.Staging.publish

def publish_between_marks(staging):
    mark("replacing", "saved")
    publish(staging)
    mark("replacing", "published")

commit.Staging.publish = publish_between_marks
mark("replacing", "begin")
ckpt.save({"new": state}, final)
"""

WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "sendfile"}
SYNCS = {"fsync", "fdatasync"}
NAMES = {
    "open",
    "openat",
    "creat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
}


@dataclass
class Node:
    """A file or a directory: how often it changed, and up to which change it lies on stable storage."""

    is_directory: bool
    changes: int = 0
    synced_changes: int = 0
    has_data: bool = False
    was_synced: bool = False


@dataclass
class Call:
    """One system call: its arguments as strace prints them, with the path of each descriptor."""

    name: str
    arguments: str
    result: str = ""
    syncs: tuple[Node, int] | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it did what it should."""
        return not self.result.startswith(("-1", "?"))

    @property
    def descriptor_path(self) -> str:
        """The path of the descriptor in the first argument."""
        found = re.match(r"\d+<(.*?)>", self.arguments)
        return found[1] if found else ""

    @property
    def paths(self) -> list[str]:
        """The paths in the arguments, absolute."""
        pairs = re.findall(r'(?:(?:AT_FDCWD|\d+)<(.*?)>, )?"(.*?)"', self.arguments)
        return [os.path.normpath(f"{base}/{path}" if path[0] != "/" else path) for base, path in pairs]


def read_trace(lines: list[str]) -> Iterator[tuple[str, Call]]:
    """Every call twice, when it starts and when it ends, in the order that strace saw."""
    pending: dict[str, Call] = {}
    for line in lines:
        if found := re.match(r"(\d+) +<\.\.\. \w+ resumed>.*\)\s+= (.*)", line):
            call = pending.pop(found[1])
            call.result = found[2]
            yield "end", call
        elif found := re.match(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", line):
            pending[found[1]] = Call(found[2], found[3])
            yield "start", pending[found[1]]
        elif found := re.match(r"(\d+) +(\w+)\((.*)\)\s+= (.*)", line):
            call = Call(found[2], found[3], found[4])
            yield "start", call
            yield "end", call


class Disk:
    """What has changed since it was new, and what of that a power cut would lose."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.created: list[str] = []

    def below(self, directory: str) -> dict[str, Node]:
        """A directory and all that it holds."""
        return {path: node for path, node in self.nodes.items() if f"{path}/".startswith(f"{directory}/")}

    def unsynced(self, directory: str) -> dict[str, Node]:
        """What a power cut would lose of a directory: a file's data, a directory's entries."""
        return {path: node for path, node in self.below(directory).items() if node.synced_changes < node.changes}

    def apply(self, moment: str, call: Call) -> None:
        """Let a call start or end."""
        node = self.nodes.get(call.descriptor_path)
        if call.name in WRITES and node:
            node.changes += 1  # at both moments: a sync between them covers nothing
            node.has_data = True
        elif call.name in SYNCS and node and moment == "start":
            call.syncs = node, node.changes
        elif call.name in SYNCS and call.syncs and call.succeeded:
            node, changes = call.syncs
            node.synced_changes = max(node.synced_changes, changes)
            node.was_synced = True
        elif call.name in NAMES and moment == "end" and call.succeeded:
            self._change_names(call)

    def _change_names(self, call: Call) -> None:
        *source, target = call.paths
        if source and "RENAME_EXCHANGE" in call.arguments:
            first, second = self.below(source[0]), self.below(target)
            for path in [*first, *second]:
                self.nodes.pop(path)
            self.nodes |= {target + path.removeprefix(source[0]): node for path, node in first.items()}
            self.nodes |= {source[0] + path.removeprefix(target): node for path, node in second.items()}
        elif source:
            moved = self.below(source[0])
            for path in [*moved, *self.below(target)]:
                self.nodes.pop(path, None)
            self.nodes |= {target + path.removeprefix(source[0]): node for path, node in moved.items()}
        elif call.name.startswith(("unlink", "rmdir")):
            self.nodes.pop(target, None)
        elif call.name.startswith("mkdir") or ("O_CREAT" in call.arguments and target not in self.nodes):
            self.nodes[target] = Node(is_directory=call.name.startswith("mkdir"), changes=1)
            self.created.append(target)
        else:  # an open that creates nothing
            return
        for path in (*source, target):
            self.nodes.setdefault(str(Path(path).parent), Node(is_directory=True)).changes += 1


@dataclass
class Traced:
    """What the trace says about one checkpoint; paths are relative to its directory."""

    final: Path
    created: list[str] = field(default_factory=list)
    unsynced_files_when_saved: set[str] = field(default_factory=set)
    files_synced_once: bool = False
    """Whether some file had been synced when `save` returned, if perhaps too early."""
    unsynced_before_rename: set[str] = field(default_factory=set)
    unsynced_when_published: set[str] = field(default_factory=set)
    files_with_data: set[str] = field(default_factory=set)
    renames_to_final: int = 0
    created_as: set[str] = field(default_factory=set)
    """The files that were created under the names that they have in the end."""

    def look(self, mark: str, disk: Disk) -> None:
        """Note what the disk holds when the script makes a mark."""
        parent = str(self.final.parent)
        if mark == "saved":
            self.files_synced_once = any(
                node.was_synced for node in disk.below(parent).values() if not node.is_directory
            )
            files = {path for path, node in disk.unsynced(parent).items() if not node.is_directory}
            self.unsynced_files_when_saved = {str(Path(*Path(path).relative_to(parent).parts[1:])) for path in files}
        elif mark == "published":
            self.unsynced_when_published = set(disk.unsynced(parent))
            self.files_with_data = {path for path, node in disk.below(str(self.final)).items() if node.has_data}
            self.created = list(disk.created)
            inside = {str(Path(*Path(path).relative_to(parent).parts[1:])) for path in disk.created}
            files = {str(path.relative_to(self.final)) for path in self.final.rglob("*") if path.is_file()}
            self.created_as = inside & files


def replay(lines: list[str], root: Path) -> dict[str, Traced]:
    """Let everything happen again on a `Disk`; look at it at each of the script's marks, and before the rename."""
    disk, current, found = Disk(), Traced(root), {}
    for moment, call in read_trace(lines):
        if call.name == "openat" and call.paths[0].startswith("/ckpt-mark/"):
            label, mark = call.paths[0].split("/")[2:]
            if mark == "begin" and moment == "start":
                disk, current = Disk(), Traced(root / label / "final")
                found[label] = current
            current.look(mark, disk)
            continue
        if call.name.startswith("rename") and call.paths[1] == str(current.final) and moment == "start":
            current.renames_to_final += 1
            current.unsynced_before_rename = set(disk.unsynced(call.paths[0]))
        disk.apply(moment, call)
    return found


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


@pytest.mark.parametrize("label", LABELS)
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


@pytest.mark.parametrize(("name", "options"), STRATEGIES, ids=LABELS[:-2])
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


@pytest.mark.parametrize(("name", "options"), STRATEGIES, ids=LABELS[:-2])
def test_who_writes_aside(name: str, options: dict[str, Any], traced: dict[str, Traced]) -> None:
    """A strategy that claims atomic files creates each under another name and renames it; one that doesn't, writes in
    place.
    """
    strategy = create(name, options)
    assert strategy.capabilities.atomic_files == (not traced[strategy.label].created_as)
