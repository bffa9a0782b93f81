"""Turns a trace of system calls into what a program changed in a directory (`jobs.faults.recording`)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import StudyError
from jobs.faults.recording import MARK, Operation, Recording, Sync

_LINE = re.compile(r"(\d+) +(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)\)\s+= (-?\d+|\?)(.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(AT_FDCWD|\d+)(?:<([^>]*)>)?")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _texts(arguments: str) -> list[bytes]:
    return [_bytes(text) for text in _TEXT.findall(arguments)]


class Reader:
    """Follows a program's descriptors and names, and turns its calls into operations."""

    def __init__(self, root: Path, recording: Recording) -> None:
        self._root, self._recording = str(root.resolve()), recording
        self._node_of: dict[int, int] = {}  # descriptor -> node
        self._at: dict[int, int] = {}  # descriptor -> position
        self._begun: dict[str, tuple[str, str, int]] = {}
        self._dirs: dict[int, dict[str, int]] = {}
        self._data: dict[int, bytearray] = {}
        self._cwd = str(Path.cwd())
        self._look(self._root)
        recording.entries = {node: dict(names) for node, names in self._dirs.items()}
        recording.contents = {node: bytes(data) for node, data in self._data.items()}

    def _look(self, path: str) -> int:
        """Take what lies there before the program begins."""
        status = os.lstat(path)
        node = self._new("d" if stat.S_ISDIR(status.st_mode) else "l" if stat.S_ISLNK(status.st_mode) else "f")
        match self._recording.kinds[node]:
            case "d":
                self._dirs[node].update({entry.name: self._look(str(entry)) for entry in sorted(Path(path).iterdir())})
            case "f":
                self._data[node] += Path(path).read_bytes()
            case "l":
                self._recording.links[node] = str(Path(path).readlink())
        return node

    def _new(self, kind: str) -> int:
        node = len(self._recording.kinds)
        self._recording.kinds[node] = kind
        if kind == "d":
            self._dirs[node] = {}
        elif kind == "f":
            self._data[node] = bytearray()
        return node

    def take(self, line: str) -> None:
        """Read a line of the trace."""
        steps = self._recording.steps
        if begun := _BEGUN.match(line):
            self._begun[begun[1]] = begun[2], begun[3], len(steps)
        elif resumed := _RESUMED.match(line):
            name, arguments, before = self._begun.pop(resumed[1])
            self._call(name, arguments + resumed[2], resumed[3], before)
        elif whole := _LINE.match(line):
            self._call(whole[2], whole[3], whole[4], len(steps))

    def _call(self, name: str, arguments: str, result: str, before: int) -> None:
        if name in {"open", "openat"} and (texts := _texts(arguments)) and texts[0].startswith(MARK.encode()):
            self._recording.steps.append(os.fsdecode(texts[0]).removeprefix(MARK))
            return
        if result == "?" or int(result) < 0 or name.startswith("syscall_"):  # one that strace doesn't know
            return
        handler = getattr(self, f"_{name.rstrip('0123456789')}", None) or getattr(self, f"_{name}")
        for step in handler(arguments, int(result)):
            if isinstance(step, Sync):
                self._recording.covers[len(self._recording.steps)] = before
            self._recording.steps.append(step)

    def _find(self, path: str) -> tuple[int, str, int | None] | None:
        """The directory, the name and the node of a path; None outside of what is recorded."""
        if matched := re.match(r"/proc/(?:self|\d+)/fd/(\d+)(?:/(.*))?$", path):
            node = self._node_of.get(int(matched[1]))
            parts = [part for part in (matched[2] or "").split("/") if part]
        elif path == self._root or path.startswith(f"{self._root}/"):
            node, parts = 0, [part for part in path.removeprefix(self._root).split("/") if part]
        else:
            return None
        if node is None:
            return None
        if not parts:
            return node, "", node
        for part in parts[:-1]:
            child = self._dirs[node][part]
            node = self._dirs[node][self._recording.links[child]] if child in self._recording.links else child
        return node, parts[-1], self._dirs[node].get(parts[-1])

    def _paths(self, arguments: str) -> list[str]:
        """The paths of a call that takes names, absolute."""
        paths, base = [], self._cwd
        for token in re.finditer(r'(AT_FDCWD|\d+)<([^>]*)>|"((?:\\x[0-9a-f]{2})*)"', arguments):
            if token[1]:
                text = token[2]
                base = os.fsdecode(_bytes(text)) if text.startswith("\\x") else text
                if token[1] != "AT_FDCWD" and int(token[1]) in self._node_of:
                    base = f"/proc/self/fd/{token[1]}"
            else:
                path = os.fsdecode(_bytes(token[3]))
                paths.append(path if path.startswith("/") else f"{base}/{path}")
                base = self._cwd
        return [path if path.startswith("/proc/") else os.path.normpath(path) for path in paths]

    def _openat(self, arguments: str, descriptor: int) -> Iterator[Operation]:
        self._node_of.pop(descriptor, None)
        entry = self._find(self._paths(arguments)[0])
        if entry is None:
            return
        directory, name, node = entry
        if node in self._recording.links:
            target = self._recording.links[node]
            node = self._dirs[directory].get(target)
        if node is None:
            node = self._new("f")
            self._dirs[directory][name] = node
            yield Operation("add", directory, name, node)
        elif "O_TRUNC" in arguments and self._data[node]:
            self._data[node].clear()
            yield Operation("truncate", node)
        self._node_of[descriptor] = node
        self._at[descriptor] = len(self._data[node]) if "O_APPEND" in arguments else 0

    _open = _creat = _openat

    def _mkdirat(self, arguments: str, _: int) -> Iterator[Operation]:
        if entry := self._find(self._paths(arguments)[0]):
            directory, name, _node = entry
            self._dirs[directory][name] = node = self._new("d")
            yield Operation("add", directory, name, node)

    _mkdir = _mkdirat

    def _unlinkat(self, arguments: str, _: int) -> Iterator[Operation]:
        entry = self._find(self._paths(arguments)[0])
        if entry and entry[2] is not None:
            directory, name, node = entry
            self._dirs[directory].pop(name)
            yield Operation("remove", directory, name, node or -1)

    _unlink = _rmdir = _unlinkat

    def _symlinkat(self, arguments: str, _: int) -> Iterator[Operation]:
        target = os.fsdecode(_texts(arguments)[0])
        if entry := self._find(self._paths(arguments)[-1]):
            directory, name, _node = entry
            self._dirs[directory][name] = node = self._new("l")
            self._recording.links[node] = target
            yield Operation("add", directory, name, node)

    _symlink = _symlinkat

    def _renameat(self, arguments: str, _: int) -> Iterator[Operation]:
        source, target = map(self._find, self._paths(arguments))
        if source is None or target is None:
            if source is not target:
                raise StudyError(f"the program renames what is outside of the directory that is recorded: {arguments}")
            return
        (a, x, node), (b, y, replaced) = source, target
        assert node is not None
        if "RENAME_EXCHANGE" in arguments:
            assert replaced is not None
            self._dirs[a][x], self._dirs[b][y] = replaced, node
            yield Operation("exchange", a, x, node, b, y, replaced)
        else:
            self._dirs[a].pop(x)
            self._dirs[b][y] = node
            yield Operation("rename", a, x, node, b, y, replaced)

    _rename = _renameat

    def _refused(self, arguments: str, _: int) -> Iterator[Operation]:
        raise StudyError(f"the program uses a call that a recording can't have: {arguments[:200]}")

    _link = _linkat = _copy_file_range = _truncate = _refused

    def _number(self, arguments: str) -> int:
        matched = _DESCRIPTOR.match(arguments)
        assert matched is not None
        return int(matched[1])

    def _changed(self, descriptor: int, offset: int, data: bytes) -> Iterator[Operation]:
        content = self._data[self._node_of[descriptor]]
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
        yield Operation("write", self._node_of[descriptor], offset=offset, data=data)

    def _write(self, arguments: str, written: int) -> Iterator[Operation]:
        descriptor = self._number(arguments)
        if descriptor in self._node_of:
            data = b"".join(_texts(arguments))[:written]
            yield from self._changed(descriptor, self._at[descriptor], data)
            self._at[descriptor] += written

    _writev = _write

    def _pwrite(self, arguments: str, written: int) -> Iterator[Operation]:
        descriptor = self._number(arguments)
        if descriptor in self._node_of:
            numbers = re.sub(r", (?:RWF_\w+|0)$", "", arguments) if "iov" in arguments else arguments
            offset = int(numbers.rpartition(",")[2])
            yield from self._changed(descriptor, offset, b"".join(_texts(arguments))[:written])

    _pwritev = _pwrite

    def _sendfile(self, arguments: str, copied: int) -> Iterator[Operation]:
        target, source = (int(matched[1]) for matched in re.finditer(r"(\d+)<[^>]*>", arguments))
        if target in self._node_of:
            start = re.search(r"\[(\d+)\]", arguments)
            if start is None:
                raise StudyError(f"the program copies without an offset, which a recording can't have: {arguments}")
            data = bytes(self._data[self._node_of[source]][int(start[1]) :][:copied])
            yield from self._changed(target, self._at[target], data)
            self._at[target] += copied

    def _ftruncate(self, arguments: str, _: int) -> Iterator[Operation]:
        node = self._node_of.get(self._number(arguments))
        if node is not None:
            size = int(arguments.rpartition(",")[2])
            content = self._data[node]
            del content[size:]
            content.extend(bytes(size - len(content)))
            yield Operation("truncate", node, offset=size)

    def _fallocate(self, arguments: str, _: int) -> Iterator[Operation]:
        node = self._node_of.get(self._number(arguments))
        if node is not None:
            mode, offset, length = arguments.rsplit(", ", 3)[1:]
            if mode == "0":
                content = self._data[node]
                content.extend(bytes(max(0, int(offset) + int(length) - len(content))))
                yield Operation("extend", node, offset=int(offset) + int(length))

    def _fsync(self, arguments: str, _: int) -> Iterator[Sync]:
        node = self._node_of.get(self._number(arguments))
        if node is not None:
            yield Sync(node)

    _fdatasync = _fsync

    def _syncfs(self, _: str, __: int) -> Iterator[Sync]:
        yield Sync(None)

    def _close(self, arguments: str, _: int) -> Iterator[Operation]:
        self._node_of.pop(self._number(arguments), None)
        return iter(())

    def _dup(self, arguments: str, copy: int) -> Iterator[Operation]:
        descriptor = self._number(arguments)
        if descriptor in self._node_of:
            self._node_of[copy], self._at[copy] = self._node_of[descriptor], self._at.get(descriptor, 0)
        return iter(())

    def _fcntl(self, arguments: str, copy: int) -> Iterator[Operation]:
        return self._dup(arguments, copy) if "F_DUPFD" in arguments else iter(())

    def _lseek(self, arguments: str, position: int) -> Iterator[Operation]:
        self._at[self._number(arguments)] = position
        return iter(())
