"""A trace of system calls, replayed on a model of a disk that knows what a power cut would lose."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
