"""The states in which a power cut may leave a directory while a program changes it, made from a recording.

Four models of filesystems, from the kindest to the least that POSIX promises:

everything      what was done is there: the process was killed, and the machine goes on
synced          only what a later sync covered
journalled      names in order, up to some moment; of unsynced data nothing, all, a part, or zeros: ext4, XFS
unordered       any part of what wasn't synced: names and 4 KiB blocks alike
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.faults.recording import Operation, Recording, Sync

EVERYTHING, SYNCED, JOURNALLED, UNORDERED = "everything", "synced", "journalled", "unordered"

_BLOCK_BYTES = 4096

Tear = float | None
"""Of a write: None if all of it is there; 0 for zeros; else the probability with which a block of it is."""


@dataclass(frozen=True)
class State:
    """A directory after a power cut.

    Attributes:
        model: of the filesystem, one of the four.
        step: how many steps of the recording had been made.
        content: the files, links and empty directories, by their paths: bytes, a link's target, or None.
    """

    model: str
    step: int
    content: dict[str, bytes | str | None]

    def write(self, root: Path) -> None:
        """Make the directory, which must not exist."""
        root.mkdir()
        for name, value in self.content.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if value is None:
                path.mkdir(exist_ok=True)
            elif isinstance(value, str):
                path.symlink_to(value)
            else:
                path.write_bytes(value)


def states(recording: Recording, seed: int = 0, single: int | None = None, least: int = 0) -> Iterator[State]:
    """Yield every state, equal ones once for every moment.

    Args:
        recording: what the program did.
        seed: of the parts that are drawn.
        single: at every moment, for how many of the operations that no sync covers there is a state without this one
            only, and one with this one only; they are drawn at random. None for all.
        least: how many to yield at least; further ones are drawn, where many operations wait for a sync more than where
            few do.
    """
    return _States(recording, random.Random(seed), single).all(least)  # noqa: S311  # drawn states, no secrets


def last_state(recording: Recording) -> State:
    """Return what the program left, with nothing lost."""
    return _States(recording, random.Random(0), None).last()  # noqa: S311


class _States:
    def __init__(self, recording: Recording, chance: random.Random, single: int | None) -> None:
        self._recording, self._chance, self._single = recording, chance, single
        self._steps = recording.steps
        self._covered = [self._covered_at(number) for number in range(len(self._steps))]

    def _covered_at(self, number: int) -> int:
        """The step of the first sync that covers an operation; after the last one if none does."""
        operation = self._steps[number]
        for later in range(number + 1, len(self._steps)):
            sync = self._steps[later]
            if not isinstance(sync, Sync) or not isinstance(operation, Operation):
                continue
            nodes = operation.directories or {operation.node}
            if self._recording.covers[later] > number and (sync.node is None or sync.node in nodes):
                return later
        return len(self._steps)

    def all(self, least: int) -> Iterator[State]:
        count = 0
        for step in range(len(self._steps) + 1):
            for state in self._after(step):
                yield state
                count += 1
        moments = [self._split(step) for step in range(len(self._steps) + 1)]
        unsynced = [len(pending) for _done, _synced, pending in moments]
        missing = max(0, least - count) if any(unsynced) else 0
        for step in self._chance.choices(range(len(moments)), unsynced, k=missing) if missing else ():
            _done, synced, pending = moments[step]
            yield self._part(step, synced, pending, self._chance.random())

    def _split(self, step: int) -> tuple[list[int], list[int], list[int]]:
        """The operations that had been made by then, and those of them that a sync covers, and that none does."""
        done = [number for number in range(step) if isinstance(self._steps[number], Operation)]
        synced = [number for number in done if self._covered[number] < step]
        return done, synced, [number for number in done if self._covered[number] >= step]

    def _after(self, step: int) -> Iterator[State]:
        done, synced, pending = self._split(step)
        yield self._state(EVERYTHING, step, done)
        yield self._state(SYNCED, step, synced)
        yield from self._journalled(step, done, pending)
        yield from self._unordered(step, synced, pending)

    def last(self) -> State:
        step = len(self._steps)
        return self._state(EVERYTHING, step, [n for n in range(step) if isinstance(self._steps[n], Operation)])

    def _operation(self, number: int) -> Operation:
        operation = self._steps[number]
        assert isinstance(operation, Operation)
        return operation

    def _journalled(self, step: int, done: Sequence[int], pending: Sequence[int]) -> Iterator[State]:
        """Any sync commits the names before it; data reach the disk with their own sync, or whenever they like."""
        syncs = [number for number in range(step) if isinstance(self._steps[number], Sync)]
        committed = self._recording.covers[syncs[-1]] if syncs else 0
        data = [number for number in pending if self._operation(number).kind == "write"]
        names = [number for number in done if self._operation(number).kind != "write"]
        for cut in sorted({committed, step, *(self._chance.randint(committed, step) for _ in range(2))}):
            kept = [number for number in names if number < cut]
            fixed = [number for number in done if number not in data and number not in names]
            for tear in (None, 0.0, 0.5, 1.0):
                chosen = data if tear != 0.5 else data[: self._chance.randint(0, len(data))]
                torn: dict[int, Tear] = dict.fromkeys(chosen, tear) if tear in {0.0, 0.5} else {}
                yield self._state(JOURNALLED, step, [*fixed, *kept, *(chosen if tear is not None else ())], torn)

    def _unordered(self, step: int, synced: Sequence[int], pending: Sequence[int]) -> Iterator[State]:
        for share in (0.2, 0.5, 0.8):
            yield self._part(step, synced, pending, share)
        single = pending if self._single is None else self._chance.sample(pending, min(self._single, len(pending)))
        for number in single:
            yield self._state(UNORDERED, step, [*synced, *(other for other in pending if other != number)])
            yield self._state(UNORDERED, step, [*synced, number])

    def _part(self, step: int, synced: Sequence[int], pending: Sequence[int], share: float) -> State:
        """Keep about such a share of what no sync covers, and of half of those a part only."""
        some = [number for number in pending if self._chance.random() < share]
        torn: dict[int, Tear] = {number: self._chance.random() for number in some if self._chance.random() < 0.5}
        return self._state(UNORDERED, step, [*synced, *some], torn)

    def _state(self, model: str, step: int, chosen: Sequence[int], torn: dict[int, Tear] | None = None) -> State:
        directories = {node: dict(names) for node, names in self._recording.entries.items()}
        contents = {node: bytearray(data) for node, data in self._recording.contents.items()}
        for number in sorted(chosen):
            operation = self._operation(number)
            if operation.is_of_names:
                _change_names(directories, operation)
            else:
                self._change_content(contents, operation, (torn or {}).get(number))
        return State(model, step, dict(self._paths(0, "", directories, contents)))

    def _change_content(self, contents: dict[int, bytearray], operation: Operation, tear: Tear) -> None:
        content = contents.setdefault(operation.node, bytearray())
        if operation.kind == "truncate":
            del content[operation.offset :]
        end = operation.offset + len(operation.data)
        content.extend(bytes(max(0, end - len(content))))
        for start in range(0, len(operation.data), _BLOCK_BYTES):
            block = operation.data[start : start + _BLOCK_BYTES]
            if tear is None or self._chance.random() < tear:
                content[operation.offset + start : operation.offset + start + len(block)] = block

    def _paths(
        self, node: int, prefix: str, directories: dict[int, dict[str, int]], contents: dict[int, bytearray]
    ) -> Iterator[tuple[str, bytes | str | None]]:
        for name, child in sorted(directories.get(node, {}).items()):
            path = f"{prefix}{name}"
            match self._recording.kinds[child]:
                case "l":
                    yield path, self._recording.links[child]
                case "f":
                    yield path, bytes(contents.get(child, b""))
                case _:
                    yield path, None
                    yield from self._paths(child, f"{path}/", directories, contents)


def _change_names(directories: dict[int, dict[str, int]], operation: Operation) -> None:
    """Let an operation change the directories; what it needs may not be there."""
    names = directories.setdefault(operation.node, {})
    if operation.kind == "add":
        names[operation.name] = operation.child
    elif operation.kind == "remove":
        names.pop(operation.name, None)
    elif operation.kind == "exchange":
        assert operation.replaced is not None
        names[operation.name] = operation.replaced
        directories.setdefault(operation.target, {})[operation.new_name] = operation.child
    else:
        if names.get(operation.name) == operation.child:
            del names[operation.name]
        directories.setdefault(operation.target, {})[operation.new_name] = operation.child
