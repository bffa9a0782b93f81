"""Bit rot: one bit of a checkpoint that was saved is another, and a program restarts from it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import StudyError
from jobs.faults.budget import Budget
from jobs.faults.outcomes import Outcome
from jobs.faults.restarting import Restarts
from jobs.faults.subject import NEW, Subject, judge

HEADER_BYTES = 4096
"""Formats have headers and indices at the beginning or the end of a file; a file of up to twice that is one alone."""

_SHARE_OF_HEADERS = 0.25
"""Of the bits: headers are small, and a bit there changes names, shapes and places of data."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file.

    Attributes:
        file: its path.
        start: its first byte.
        size_bytes: its size.
        what: in words.
        is_header: whether a header or an index may lie there.
    """

    file: Path
    start: int
    size_bytes: int
    what: str
    is_header: bool


def outcomes(subject: Subject, work: Path, budget: Budget) -> Iterator[Outcome]:
    """Flip one bit at a time in the files of a checkpoint, and restart.

    Args:
        subject: what saves.
        work: an empty directory.
        budget: its seed and `flips` choose the bits, in all files by their size, a quarter in headers or more.

    Raises:
        StudyError: if the checkpoint can't be restarted from as it is.
    """
    subject.save(subject.state_at(NEW), NEW, work)
    with Restarts(subject) as worker:
        whole = worker.restart(work)
        if whole.step != NEW:
            raise StudyError(f"a restart from a whole checkpoint goes wrong, so no bit can be tried: {whole.what}")
        for part, offset, bit in drawn(parts(work), budget.flips, budget.seed):
            _flip(part.file, offset, bit)
            restart = worker.restart(work)
            _flip(part.file, offset, bit)
            name = part.file.relative_to(work)
            fault = f"bit {bit} of byte {offset:,} of {name} ({part.what}) flipped"
            yield judge(restart, saved=True, fault=fault, size=1)


def parts(root: Path) -> list[Part]:
    """List the parts of all files below a directory."""
    listed = []
    for file in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        size_bytes = file.stat().st_size
        if size_bytes <= 2 * HEADER_BYTES:
            listed.append(Part(file, 0, size_bytes, "a small file", is_header=True))
            continue
        end = size_bytes - HEADER_BYTES
        listed += [
            Part(file, 0, HEADER_BYTES, "its first 4 KiB", is_header=True),
            Part(file, HEADER_BYTES, end - HEADER_BYTES, "its middle", is_header=False),
            Part(file, end, HEADER_BYTES, "its last 4 KiB", is_header=True),
        ]
    return [part for part in listed if part.size_bytes]


def drawn(of: Sequence[Part], flips: int, seed: int) -> Iterator[tuple[Part, int, int]]:
    """Draw different bits: yields the part, the byte in its file, and the bit in the byte."""
    chance = random.Random(seed)  # noqa: S311  # drawn bits, no secrets
    headers = [part for part in of if part.is_header]
    done: set[tuple[Path, int, int]] = set()
    flips = min(flips, 8 * sum(part.size_bytes for part in headers))
    while len(done) < flips:
        among = headers if len(done) < flips * _SHARE_OF_HEADERS else of
        (part,) = chance.choices(among, [part.size_bytes for part in among])
        offset, bit = part.start + chance.randrange(part.size_bytes), chance.randrange(8)
        if (part.file, offset, bit) not in done:
            done.add((part.file, offset, bit))
            yield part, offset, bit


def _flip(file: Path, offset: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1 << bit]))
