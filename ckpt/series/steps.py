"""The checkpoints of a series by step: their names, what is known of them, and the link to the newest.

run/step-000000100/
run/step-000000200/
run/latest -> step-000000200
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from ckpt import manifest
from ckpt.disk import durable, versions
from ckpt.disk.pinned import pinned
from ckpt.errors import CheckpointError
from ckpt.manifest import Manifest

LATEST = "latest"

_NAME = re.compile(r"step-(\d{9,})")
_UNFINISHED_LINK = re.compile(r"\.latest\.[0-9a-f]{16}\.link")


def path_of(directory: Path, step: int) -> Path:
    """The name of a step's checkpoint."""
    return directory / f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name; None if it is no such name."""
    match = _NAME.fullmatch(name)
    step = int(match[1]) if match else None
    return step if step is not None and path_of(Path(), step).name == name else None


def steps_in(directory: Path) -> list[int]:
    """The steps that have a checkpoint's name in a directory, whole or not, the oldest first."""
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(step for name in names if (step := step_of(name)) is not None)


def whole(path: Path) -> Manifest:
    """Read the manifest of a checkpoint whose files are all there.

    Raises:
        CheckpointError: if the checkpoint isn't one of this package, or is incomplete.
    """
    try:
        with pinned(path) as directory:
            known = manifest.read(directory.path)
            problems = known.problems(directory.path) if known else [f"it has no {manifest.FILE}"]
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error}") from error
    if known is None or problems:
        raise CheckpointError(f"{path} is incomplete: {'; '.join(problems[:3])}")
    return known


def all_whole(directory: Path) -> dict[int, Manifest]:
    """The manifests of the whole checkpoints in a directory, by step, the oldest first."""
    known = {}
    for step in steps_in(directory):
        try:
            known[step] = whole(path_of(directory, step))
        except CheckpointError:
            continue
    return known


def refuse_a_foreign_latest(directory: Path) -> None:
    """Refuse a directory in which `latest` is something else than a link.

    Raises:
        CheckpointError: if it is; or if `latest` is a checkpoint of its own, which `ckpt.save` made a link.
    """
    link = directory / LATEST
    if (os.path.lexists(link) and not link.is_symlink()) or versions.version_of(link):
        raise CheckpointError(
            f"{link} is not a link to one of the steps in {directory}, and would be replaced by one: move it away, or "
            "give the checkpoints another directory"
        )


def point_latest(directory: Path, step: int) -> None:
    """Let `latest` lead to a step's checkpoint, in a single step, durably.

    Raises:
        CheckpointError: if `latest` is something else than such a link.
        OSError: if the link can't be made.
    """
    refuse_a_foreign_latest(directory)
    target, link = path_of(directory, step).name, directory / LATEST
    if link.is_symlink() and str(link.readlink()) == target:
        return
    unfinished = directory / f".{LATEST}.{secrets.token_hex(8)}.link"
    unfinished.symlink_to(target)
    try:
        unfinished.replace(link)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    durable.fsync_path(directory)


def unfinished_links(directory: Path) -> list[Path]:
    """The links that a program left which ended while it moved `latest`."""
    return [path for path in directory.iterdir() if _UNFINISHED_LINK.fullmatch(path.name)]
