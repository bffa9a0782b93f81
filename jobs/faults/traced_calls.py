"""Turns a trace of system calls into what a program changed in a directory (`jobs.faults.recording`)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import StudyError
from jobs.faults.open_files import OpenFile, Tasks, number_in
from jobs.faults.recording import MARK, Operation, Recording, Sync

_LINE = re.compile(r"(\d+) +(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)\)\s+= (-?\d+|\?)(.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _texts(arguments: str) -> list[bytes]:
    return [_bytes(text) for text in _TEXT.findall(arguments)]


class Reader:
    """Follows a program's descriptors and names, and turns its calls and those of its children into operations."""

    def __init__(self, root: Path, recording: Recording) -> None:
        self._root, self._recording = str(root.resolve()), recording
        self._tasks = Tasks([])
        self._files = self._tasks.descriptors(0)  # of the task whose call is read
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

    def read(self, trace: Path) -> None:
        """Read a trace."""
        with trace.open(encoding="ascii", errors="replace") as lines:
            self._tasks = Tasks(lines)
        with trace.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                self._take(line.rstrip("\n"))

    def _take(self, line: str) -> None:
        steps = self._recording.steps
        if begun := _BEGUN.match(line):
            self._begun[begun[1]] = begun[2], begun[3], len(steps)
            self._mark(begun[2], begun[3])
        elif resumed := _RESUMED.match(line):
            name, arguments, before = self._begun.pop(resumed[1])
            self._call(int(resumed[1]), name, arguments + resumed[2], resumed[3], before)
        elif whole := _LINE.match(line):
            self._mark(whole[2], whole[3])
            self._call(int(whole[1]), whole[2], whole[3], whole[4], len(steps))

    def _mark(self, name: str, arguments: str) -> None:
        """Take a mark when its call begins: what other processes do until it returns comes after it."""
        if name in {"open", "openat"} and (texts := _texts(arguments)) and texts[0].startswith(MARK.encode()):
            self._recording.steps.append(os.fsdecode(texts[0]).removeprefix(MARK))

    def _call(self, task: int, name: str, arguments: str, result: str, before: int) -> None:
        if result == "?" or int(result) < 0 or name.startswith("syscall_"):  # one that strace doesn't know
            return
        self._files = self._tasks.descriptors(task)
        if self._tasks.take(task, name, arguments, int(result)):
            return
        handler = getattr(self, f"_{name.rstrip('0123456789')}", None) or getattr(self, f"_{name}")
        for step in handler(arguments, int(result)):
            if isinstance(step, Sync):
                self._recording.covers[len(self._recording.steps)] = before
            self._recording.steps.append(step)

    def _find(self, path: str) -> tuple[int, str, int | None] | None:
        """The directory, the name and the node of a path; None outside of what is recorded."""
        if matched := re.match(r"/proc/(?:self|\d+)/fd/(\d+)(?:/(.*))?$", path):
            node = self._files.node(int(matched[1]))
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
                if token[1] != "AT_FDCWD" and int(token[1]) in self._files:
                    base = f"/proc/self/fd/{token[1]}"
            else:
                path = os.fsdecode(_bytes(token[3]))
                paths.append(path if path.startswith("/") else f"{base}/{path}")
                base = self._cwd
        return [path if path.startswith("/proc/") else os.path.normpath(path) for path in paths]

    def _openat(self, arguments: str, descriptor: int) -> Iterator[Operation]:
        self._files.close([descriptor])
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
        file = OpenFile(node, appends="O_APPEND" in arguments)
        self._files.open(descriptor, file, closes_on_exec="O_CLOEXEC" in arguments)

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

    def _changed(self, node: int, offset: int, data: bytes) -> Iterator[Operation]:
        content = self._data[node]
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
        yield Operation("write", node, offset=offset, data=data)

    def _write(self, arguments: str, written: int) -> Iterator[Operation]:
        descriptor = number_in(arguments)
        if descriptor in self._files:
            file = self._files[descriptor]
            if file.appends:
                file.position = len(self._data[file.node])
            yield from self._changed(file.node, file.position, b"".join(_texts(arguments))[:written])
            file.position += written

    _writev = _write

    def _pwrite(self, arguments: str, written: int) -> Iterator[Operation]:
        node = self._files.node(number_in(arguments))
        if node is not None:
            numbers = re.sub(r", (?:RWF_\w+|0)$", "", arguments) if "iov" in arguments else arguments
            offset = int(numbers.rpartition(",")[2])
            yield from self._changed(node, offset, b"".join(_texts(arguments))[:written])

    _pwritev = _pwrite

    def _sendfile(self, arguments: str, copied: int) -> Iterator[Operation]:
        target, source = (int(matched[1]) for matched in re.finditer(r"(\d+)<[^>]*>", arguments))
        if target in self._files:
            start = re.search(r"\[(\d+)\]", arguments)
            if start is None:
                raise StudyError(f"the program copies without an offset, which a recording can't have: {arguments}")
            file = self._files[target]
            data = bytes(self._data[self._files[source].node][int(start[1]) :][:copied])
            yield from self._changed(file.node, file.position, data)
            file.position += copied

    def _ftruncate(self, arguments: str, _: int) -> Iterator[Operation]:
        node = self._files.node(number_in(arguments))
        if node is not None:
            size = int(arguments.rpartition(",")[2])
            content = self._data[node]
            del content[size:]
            content.extend(bytes(size - len(content)))
            yield Operation("truncate", node, offset=size)

    def _fallocate(self, arguments: str, _: int) -> Iterator[Operation]:
        node = self._files.node(number_in(arguments))
        if node is not None:
            mode, offset, length = arguments.rsplit(", ", 3)[1:]
            if mode == "0":
                content = self._data[node]
                content.extend(bytes(max(0, int(offset) + int(length) - len(content))))
                yield Operation("extend", node, offset=int(offset) + int(length))

    def _fsync(self, arguments: str, _: int) -> Iterator[Sync]:
        node = self._files.node(number_in(arguments))
        if node is not None:
            yield Sync(node)

    _fdatasync = _fsync

    def _syncfs(self, _: str, __: int) -> Iterator[Sync]:
        yield Sync(None)
