"""A checkpoint in parts, where every node has local storage of its own: their way to the shared directory, and back.

run/step-000000100.part-0/      # copied by a node; its manifest is the last file
run/step-000000100.part-1/
run/step-000000100/             # put together from all of them, and committed as a save is
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt import manifest
from ckpt.disk import durable
from ckpt.disk.copying import Pace, copy_files
from ckpt.disk.pinned import pinned
from ckpt.errors import CheckpointError
from ckpt.formats import dcp_metadata
from ckpt.manifest import Manifest
from ckpt.series import saving, steps
from ckpt.state import checksums
from ckpt.writing import staged

WHOLE = 0, 1
"""The part that a whole checkpoint is, as `Manifest.part` has it."""

_NAME = re.compile(r"step-(\d{9,})\.part-\d+")
_VIEW = ".restoring-"

_LOOK_S = 0.5

_LATE_S = 70
"""A network filesystem may show another node's files so much later."""


def mark(checkpoint: Path) -> str:
    """What all parts of one save have in common, and no other save has; empty if there is nothing of that name."""
    for name in (dcp_metadata.FILE, manifest.FILE):
        try:
            return checksums.of_bytes((checkpoint / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CheckpointError(f"can't read {checkpoint}: {error}") from error
    return ""


def copy(checkpoint: Path, directory: Path, step: int, pace: Pace) -> None:
    """Copy a node's part of a step's checkpoint to the shared directory, durably.

    Raises:
        CheckpointError: if it isn't whole, there isn't room for it, or the copy is to stop.
        OSError: if it can't be copied.
    """
    with pinned(checkpoint) as source:
        known = steps.whole(source.path)
        saving.require_room(directory, sum(known.files.values()))
        durable.make_directories(directory)
        target = _path_of(directory, step, (known.part or WHOLE)[0])
        shutil.rmtree(target, ignore_errors=True)  # of an earlier save of this step
        target.mkdir()
        copy_files(source.path, target, known.files, pace)
        durable.flush(target)
        content = (source.path / manifest.FILE).read_bytes()
        durable.write_atomically(target / manifest.FILE, content, sync=True)


@dataclass
class Others:
    """The other nodes, from which rank 0's waits for their parts.

    Attributes:
        patience_s: how long nothing may come.
        have_ended: set when none of them is copying any more: what isn't here soon won't come.
    """

    patience_s: float
    have_ended: threading.Event = field(default_factory=threading.Event)

    def await_parts(self, directory: Path, step: int, checkpoint: Path, stop: threading.Event) -> None:
        """Wait until all parts of a step's checkpoint are in the shared directory.

        Args:
            directory: the shared one.
            step: the checkpoint's.
            checkpoint: this node's part.
            stop: ends waiting when it is set.

        Raises:
            CheckpointError: if they don't come.
        """
        number, count = steps.whole(checkpoint).part or WHOLE
        wanted, expected = set(range(count)) - {number}, mark(checkpoint)
        there_bytes, since_s = -1, time.monotonic()
        while missing := sorted(wanted - _whole(directory, step, expected).keys()):
            if (now_bytes := _bytes(directory, step)) != there_bytes:
                there_bytes, since_s = now_bytes, time.monotonic()
            longest_s = min(self.patience_s, _LATE_S) if self.have_ended.is_set() else self.patience_s
            if time.monotonic() - since_s > longest_s:
                listed = ", ".join(str(other + 1) for other in missing)
                raise CheckpointError(f"nothing came of part {listed} of {count}, which another node has to copy")
            if stop.wait(_LOOK_S):
                raise CheckpointError("the copy was interrupted")


def put_together(directory: Path, step: int, expected: str) -> None:
    """Commit a step's checkpoint from its parts, which are all in the shared directory.

    Args:
        directory: the shared one.
        step: the checkpoint's.
        expected: the mark of the parts.

    Raises:
        CheckpointError: if a part is missing, or the checkpoint can't be committed.
    """
    known = _whole(directory, step, expected)
    count = next(((part.part or WHOLE)[1] for part in known.values()), 0)
    if known.keys() != set(range(count)) or not known:
        raise CheckpointError(f"{directory} has {len(known)} of {count} parts of step {step}")
    final = steps.path_of(directory, step)
    with staged(final) as staging:
        for number, part in known.items():
            for name in part.files if not number else part.files.keys() - {dcp_metadata.FILE}:
                (_path_of(directory, step, number) / name).rename(staging.path / name)
        first = known[0]
        notes = {name: value for name, value in first.notes.items() if name != "part"}
        replace(first, files=manifest.files_of(staging.path), notes=notes).write(staging.path)
        staging.flush()
    for path in directory.iterdir():
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) <= step:  # nodes may be copying a later one
            shutil.rmtree(path, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove the parts and the views that an ended program left in a series' directory."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if _NAME.fullmatch(path.name) or path.name.startswith(_VIEW):
            shutil.rmtree(path, ignore_errors=True)


def view_of(local: Path, step: int) -> Path:
    """The directory in the local one from which a node's ranks load a step's checkpoint."""
    return local / f"{_VIEW}{steps.path_of(local, step).name}"


def make_view(local: Path, shared: Path, step: int) -> None:
    """Link to a node's files of a step's checkpoint where it has them, and else to those of the whole one.

    Raises:
        CheckpointError: if the shared directory doesn't have it whole.
        OSError: if it can't be made.
    """
    part, whole, view = steps.path_of(local, step), steps.path_of(shared, step), view_of(local, step)
    known = steps.whole(whole)
    remove_view(local, step)
    view.mkdir()
    for name, size_bytes in known.files.items():
        here = part / name
        is_here = here.is_file() and here.stat().st_size == size_bytes
        (view / name).symlink_to(here if is_here else whole / name)
    known.write(view)


def remove_view(local: Path, step: int) -> None:
    """Remove such a directory, if there is one."""
    shutil.rmtree(view_of(local, step), ignore_errors=True)


def _path_of(directory: Path, step: int, number: int) -> Path:
    return directory / f"{steps.path_of(directory, step).name}.part-{number}"


def _parts(directory: Path, step: int) -> list[Path]:
    return sorted(directory.glob(f"{steps.path_of(directory, step).name}.part-*"))


def _whole(directory: Path, step: int, expected: str) -> dict[int, Manifest]:
    """The manifests of the parts that are there, whole, of the save that is expected, by their numbers."""
    known = {}
    for path in _parts(directory, step):
        try:
            part = steps.whole(path)  # its manifest, which is small, comes last
            if mark(path) == expected:
                known[(part.part or WHOLE)[0]] = part
        except CheckpointError:
            continue
    return known


def _bytes(directory: Path, step: int) -> int:
    """How much of the parts is there; 0 if one disappears meanwhile."""
    try:
        return sum(sum(manifest.files_of(path).values()) for path in _parts(directory, step))
    except OSError:
        return 0
