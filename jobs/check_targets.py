"""What would go wrong on a study's targets, as far as this node can see."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckpt.disk import mounts
from ckpt.disk.answering import NOTICE_S
from ckpt.disk.filesystems import Kind
from ckpt.disk.room import room_of, words
from jobs import sharing
from jobs.errors import TargetError
from jobs.findings import Finding
from jobs.node import targets
from jobs.plan import commands
from jobs.plan.study import Target


def findings(studied: Mapping[str, Target], largest: Mapping[str, Sequence[int]]) -> Iterator[Finding]:
    """Look at targets from here; one whose filesystem hangs keeps no other waiting.

    Args:
        studied: name -> target.
        largest: name -> the most bytes, and the most files, of a checkpoint there.
    """
    with ThreadPoolExecutor(len(studied)) as pool:
        looks = pool.map(lambda name: _target_here(name, studied[name], *largest[name]), studied)
        alone = dict(zip(studied, looks, strict=True))
    yield from alone.values()
    usable = {name: target for name, target in studied.items() if alone[name].level != "problem"}
    where = sharing.directories(usable)
    for what, names in sharing.shared(where).items():
        lies = f"lies on {what}, as other targets do"
        yield from (Finding("unknown", lies, sharing.REMEDY, about=f"target {name!r}") for name in names)
    for name, directory in where.items():
        yield from _side_by_side(name, usable[name], directory)


def _side_by_side(name: str, target: Target, directory: Path) -> Iterator[Finding]:
    """Notice a target that the study calls node-local and that nodes share."""
    mount = mounts.mount_of(directory)
    if target.on_each_node and mount.facts.kind is Kind.NETWORK:
        what = f"is node-local by the study, and lies on {mount.filesystem}, which nodes share"
        remedy = (
            "its jobs may run side by side and disturb each other: name a `path` on the node, or leave `node_local` out"
        )
        yield Finding("unknown", what, remedy, about=f"target {name!r}")


def _target_here(name: str, target: Target, size_bytes: int, file_count: int) -> Finding:
    try:
        directory = targets.resolve(name, target, os.environ)
        targets.must_answer(name, directory, NOTICE_S)
        targets.check(name, target, directory, size_bytes, file_count)
        _programs(name, target)
    except TargetError as error:
        return Finding("problem", error.what, error.remedy)
    mount = mounts.mount_of(directory)
    room = room_of(directory, mount)
    what, about = f"{directory} is {mount.filesystem}, {words(room, mount)}", f"target {name!r}"
    if room.bricks and size_bytes // max(1, file_count) > min(room.bricks):
        remedy = "make room on the fullest brick"
        return Finding("unknown", f"{what}: a checkpoint's file may not fit", remedy, about=about)
    return Finding("ok", what, about=about)


def _programs(name: str, target: Target) -> None:
    """Make sure that the programs of a target's commands are there.

    Raises:
        TargetError: naming the first that isn't.
    """
    for command in (*target.prepare, *target.between):
        program = commands.words(command, target.axes)[0]
        if not shutil.which(program):
            raise TargetError(
                f"target {name!r} has the command {command!r}, and there is no program {program} here",
                "install it, write its whole path, or correct the command",
            )
