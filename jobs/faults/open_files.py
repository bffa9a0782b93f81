"""The open files of the processes in a trace: threads share their descriptors, and a fork begins with a copy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

_FORK = re.compile(r"(\d+) +(?:clone3?|v?fork)\((.*)")
_FORK_RESUMED = re.compile(r"(\d+) +<\.\.\. (?:clone3?|v?fork) resumed>")
_DESCRIPTOR = re.compile(r"(\d+)(?:<[^>]*>)?")
_FORKED = re.compile(r"\)\s+= (\d+)")


def number_in(arguments: str) -> int:
    """Return the descriptor with which a call's arguments begin."""
    matched = _DESCRIPTOR.match(arguments)
    assert matched is not None
    return int(matched[1])


@dataclass(slots=True)
class OpenFile:
    """A file as it was opened; descriptors that are copies of another share it, in other processes too."""

    node: int
    position: int = 0
    appends: bool = False


@dataclass(frozen=True, slots=True)
class _Descriptor:
    file: OpenFile
    closes_on_exec: bool


class Descriptors:
    """What the descriptors of a process lead to, of the files that are recorded."""

    def __init__(self, descriptors: dict[int, _Descriptor] | None = None) -> None:
        self._descriptors = dict(descriptors or {})

    def __contains__(self, number: int) -> bool:
        return number in self._descriptors

    def __getitem__(self, number: int) -> OpenFile:
        return self._descriptors[number].file

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._descriptors))

    def node(self, number: int) -> int | None:
        """Return the node that a descriptor leads to; None if it isn't recorded."""
        return self[number].node if number in self else None

    def open(self, number: int, file: OpenFile, *, closes_on_exec: bool) -> None:
        """Let a descriptor lead to a file."""
        self._descriptors[number] = _Descriptor(file, closes_on_exec)

    def close(self, numbers: Iterable[int]) -> None:
        """Take descriptors that are closed."""
        for number in numbers:
            self._descriptors.pop(number, None)

    def set_flag(self, number: int, *, closes_on_exec: bool) -> None:
        """Change whether a descriptor is closed when its process becomes another program."""
        if number in self:
            self._descriptors[number] = replace(self._descriptors[number], closes_on_exec=closes_on_exec)

    def seek(self, number: int, position: int) -> None:
        """Take that a descriptor is at a position of its file."""
        if number in self:
            self[number].position = position

    def exec(self) -> None:
        """Take that the process becomes another program."""
        self.close([number for number, descriptor in self._descriptors.items() if descriptor.closes_on_exec])

    def copy(self) -> Descriptors:
        """Return what a fork of the process has."""
        return Descriptors(self._descriptors)


class Tasks:
    """The processes and threads of a trace, by the numbers with which its lines begin."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Take a trace, to know whose child a task is: its first calls may come before its parent's fork returns."""
        self._parents: dict[int, tuple[int, bool]] = {}
        self._descriptors: dict[int, Descriptors] = {}
        begun: dict[str, str] = {}
        for line in lines:
            if resumed := _FORK_RESUMED.match(line):
                parent, arguments = resumed[1], begun.pop(resumed[1], "") + line
            elif fork := _FORK.match(line):
                parent, arguments = fork[1], fork[2]
                begun[parent] = arguments
            else:
                continue
            if forked := _FORKED.search(arguments):
                self._parents[int(forked[1])] = int(parent), "CLONE_FILES" in arguments

    def descriptors(self, number: int) -> Descriptors:
        """Return a task's descriptors; those of a new one are its parent's, as they are now."""
        if number not in self._descriptors:
            parent, shares = self._parents.get(number, (None, False))
            if parent is None:
                self._descriptors[number] = Descriptors()
            else:
                descriptors = self.descriptors(parent)
                self._descriptors[number] = descriptors if shares else descriptors.copy()
        return self._descriptors[number]

    def take(self, task: int, name: str, arguments: str, result: int) -> bool:
        """Take a call that has returned; returns whether it is one that only changes what descriptors lead to."""
        files = self.descriptors(task)
        match name:
            case "clone" | "clone3" | "fork" | "vfork":
                self.descriptors(result)  # its own from here on
            case "execve":
                files.exec()
            case "close":
                files.close([number_in(arguments)])
            case "close_range":
                _close_range(files, arguments)
            case "dup" | "dup2" | "dup3":
                _duplicate(files, arguments, result)
            case "fcntl" | "ioctl":
                _control(files, arguments, result)
            case "lseek":
                files.seek(number_in(arguments), result)
            case _:
                return False
        return True


def _close_range(files: Descriptors, arguments: str) -> None:
    first, last = map(int, arguments.split(", ")[:2])
    for number in [number for number in files if first <= number <= last]:
        if "CLOSE_RANGE_CLOEXEC" in arguments:
            files.set_flag(number, closes_on_exec=True)
        else:
            files.close([number])


def _control(files: Descriptors, arguments: str, result: int) -> None:
    if "F_DUPFD" in arguments:
        _duplicate(files, arguments, result)
    elif "F_SETFD" in arguments:
        files.set_flag(number_in(arguments), closes_on_exec="FD_CLOEXEC" in arguments)
    elif "FIOCLEX" in arguments or "FIONCLEX" in arguments:
        files.set_flag(number_in(arguments), closes_on_exec="FIOCLEX" in arguments)


def _duplicate(files: Descriptors, arguments: str, copy: int) -> None:
    descriptor = number_in(arguments)
    if copy == descriptor:
        return
    files.close([copy])
    if descriptor in files:
        files.open(copy, files[descriptor], closes_on_exec="CLOEXEC" in arguments)
