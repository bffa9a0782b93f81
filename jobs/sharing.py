"""Targets that lie on one disk, or on one volume of the same servers: their rates are those of the same hardware."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ckpt.disk import mounts
from ckpt.disk.answering import silence
from ckpt.disk.filesystems import Kind
from jobs.errors import TargetError
from jobs.node import targets
from jobs.node.storage.facts import storage_below
from jobs.plan.study import Target
from jobs.timing_log import devices

REMEDY = (
    "their rates are those of the same hardware, and jobs on them would disturb each other: name another `path`, or "
    "compare filesystems and not devices"
)

_ANSWER_S = 5.0
"""How long a plan waits for a filesystem that it only looks at to warn."""


def directories(studied: Mapping[str, Target]) -> dict[str, Path]:
    """The directories of the targets whose path can be known here."""
    known: dict[str, Path] = {}
    for name, target in studied.items():
        with suppress(TargetError):
            known[name] = targets.resolve(name, target, os.environ)
    return known


def shared(where: Mapping[str, Path]) -> dict[str, list[str]]:
    """What several targets lie on, in words -> their names; the axes of one target are meant to share it.

    Args:
        where: target -> its directory, whose filesystem answers.
    """
    together = devices.in_common({name: storage_below(directory) for name, directory in where.items()})
    return {what: names for what, names in together.items() if len({name.partition("+")[0] for name in names}) > 1}


def warnings(studied: Mapping[str, Target]) -> list[str]:
    """What can be known here of the targets' storage; on a login node, of filesystems alone that nodes share."""
    if len({name.partition("+")[0] for name in studied}) < 2:
        return []
    everywhere = shutil.which("sbatch") is None
    where = directories(studied)
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda directory: _is_seen(directory, everywhere=everywhere), where.values())
        seen = {name: where[name] for name, is_seen in zip(where, looks, strict=True) if is_seen}
    return [f"{' and '.join(names)} lie on {what}: {REMEDY}" for what, names in shared(seen).items()]


def _is_seen(directory: Path, *, everywhere: bool) -> bool:
    """Whether a directory is here, and what it lies on is the same on a node."""
    if silence(directory, _ANSWER_S) or not directory.is_dir():
        return False
    return everywhere or mounts.mount_of(directory).facts.kind is Kind.NETWORK
