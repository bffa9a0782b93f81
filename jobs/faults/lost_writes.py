"""What is lost when a file's sync fails: the kernel drops what it could not write, and reports that once.

A call that strace lets fail leaves the file as it is, so a save that ignores the error would look right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MOVES = "rename,renameat,renameat2"
"""Must be in the log, beside the syncs."""

_LINE = re.compile(r"(\d+) +(.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_UNFINISHED = " <unfinished ...>"
_FAILED_SYNC = re.compile(r"(?:fsync|fdatasync)\(\d+<([^>]*)>\).*\(INJECTED\)")
_MOVED = re.compile(r"rename\w*\((.*)\) += 0")
_NAME = re.compile(r'(?:<([^>]*)>, )?"([^"]*)"')


def lose(log: Path) -> None:
    """Fill the files whose sync strace let fail with zeros, wherever they were moved since; directories stay.

    Args:
        log: strace's, with paths for descriptors.
    """
    lost: set[Path] = set()
    for call in _calls(log):
        if failed := _FAILED_SYNC.match(call):
            lost.add(Path(failed[1]))
        elif moved := _MOVED.match(call):
            source, target = (Path(directory, name) for directory, name in _NAME.findall(moved[1]))
            lost = {target / path.relative_to(source) if path.is_relative_to(source) else path for path in lost}
    for path in lost:
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))


def _calls(log: Path) -> Iterator[str]:
    """The calls in the order of their ends; strace writes two lines of one that others overlap."""
    begun: dict[str, str] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if not (whole := _LINE.match(line)):
            continue
        process, call = whole.groups()
        if call.endswith(_UNFINISHED):
            begun[process] = call.removesuffix(_UNFINISHED)
        elif resumed := _RESUMED.match(call):
            yield begun.pop(process, "") + resumed[1]
        else:
            yield call
