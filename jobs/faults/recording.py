"""What a program changed in a directory, as operations of a filesystem, and what it brought to stable storage.

An operation has taken place when its call returned; a sync covers the operations that had by the time it began.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

MARK = "/ckpt-mark/"
"""A program opens a file that isn't there, below this name, to mark where it is."""


def mark(name: str) -> None:
    """Let a recording of this program have a mark."""
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(MARK + name, os.O_RDONLY))


@dataclass(frozen=True, slots=True)
class Operation:
    """A change of a directory or of a file's content; files, directories and links are numbers.

    Attributes:
        kind: `add` or `remove` (an entry), `rename`, `exchange`, `write`, `truncate`, `extend`.
        node: the directory, or the file.
        name: of the entry.
        child: what the entry leads to.
        target: a rename's other directory.
        new_name: a rename's other name.
        replaced: what had that name.
        offset: in the file; the new size for `truncate` and `extend`.
        data: what is written.
    """

    kind: str
    node: int
    name: str = ""
    child: int = -1
    target: int = -1
    new_name: str = ""
    replaced: int | None = None
    offset: int = 0
    data: bytes = b""

    @property
    def is_of_names(self) -> bool:
        """Whether it changes a directory, and not a file's content."""
        return self.kind in {"add", "remove", "rename", "exchange"}

    @property
    def directories(self) -> set[int]:
        """The directories that it changes."""
        return {self.node, self.target} - {-1} if self.is_of_names else set()


@dataclass(frozen=True, slots=True)
class Sync:
    """A call that brings a file, a directory's entries, or everything to stable storage."""

    node: int | None
    """None for everything."""


@dataclass
class Recording:
    """What a program did.

    Attributes:
        steps: operations and syncs, in the order in which they returned, and marks.
        covers: by the step of a sync, how many steps had returned when it began.
        kinds: `d`, `f` or `l`, by node.
        links: where links lead to.
        entries, contents: the directory before the program began.
    """

    steps: list[Operation | Sync | str] = field(default_factory=list)
    covers: dict[int, int] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    links: dict[int, str] = field(default_factory=dict)
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
