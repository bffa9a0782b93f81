"""A study on three targets of which two lie on one disk, with what jobs log of each."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from typing import Any

from jobs.timing_log import Ceiling, Hook, Metadata, TimingLog
from support.logs import GB, amended
from support.studies import MakeStudy, StudyOnDisk

DISK = {"name": "vda", "kind": "disk", "below": [], "model": "unknown (the disk has no model)", "rotational": "0"}

LOOP = {
    "name": "loop0", "kind": "loop", "image": "/images/scratch", "image_filesystem": "ext4", "direct_io": True,
    "below": [DISK],
}  # fmt: skip

SCRATCH: dict[str, Any] = {
    "filesystem": "xfs", "filesystem_version": "Linux 6.18", "source": "/dev/loop0",
    "options": "rw,noatime,logbsize=256k",
    "servers": "none: its files are on this machine", "layout": "bsize=4096, sunit=0",
    "written_layout": "extents=1", "device": json.dumps([LOOP]), "capacity_bytes": 10 * GB, "free_bytes": GB // 2,
    "fsync_guarantee": "data are on the device", "durability_proof": "proven", "cold_proof": "proven",
}  # fmt: skip

LOCAL: dict[str, Any] = {**SCRATCH, "filesystem": "ext4", "device": json.dumps([DISK]), "free_bytes": 9 * GB}

CLUSTER: dict[str, Any] = {
    "filesystem": "fuse.glusterfs", "filesystem_version": "10.3", "source": "server:/volume",
    "options": "rw,user_id=0,group_id=0,max_read=131072", "servers": "mounted_from=server:/volume, bricks=2, hosts=a+b",
    "layout": "bricks=2, distributed", "written_layout": "bricks=a:/brick1", "device": "unknown (no device is seen)",
    "capacity_bytes": 4000 * GB, "free_bytes": 1000 * GB, "fsync_guarantee": "the bricks have synced",
    "durability_proof": "the kernel counts no dirty pages on fuse.glusterfs",
    "cold_proof": "fuse.glusterfs may hold files in its servers' memory",
}  # fmt: skip

RATES = {"create": 500.0, "stat": 3000.0, "read": 900.0, "unlink": 180.0, "mkdir": 300.0, "rmdir": 250.0}


def ceilings(*, honoured: bool) -> list[Ceiling]:
    """Direct I/O at 2 GB/s and buffered at 1 GB/s, or all through the page cache."""
    return [
        Ceiling(
            when=when, operation=operation, size_bytes=GB, start_s=0.0, duration_s=1.0 if buffered else 0.5,
            direct=honoured and not buffered, buffered=buffered, resident_fraction=0.0,
        )
        for when in ("before", "after")
        for operation in ("write", "read")
        for buffered in (False, True)
    ]  # fmt: skip


def small_files() -> list[Metadata]:
    """What one rank did with a hundred files."""
    return [
        Metadata(
            when="before", operation=operation, count=100, size_bytes=4096, start_s=float(number),
            duration_s=100 / rate, rank=0, made_by=0, ranks=1,
        )
        for number, (operation, rate) in enumerate(RATES.items())
    ]  # fmt: skip


def hooks(number: int) -> list[Hook]:
    """A layout that is set once, and caches that are dropped after each of two saves; the last time that fails."""
    dropped = [0, 7] if number == 3 else [0, 0]
    runs = [
        ("prepare", -1, 0, 0.25, "lfs setstripe -c 8 {directory}"),
        *(("between", trial, code, number + trial / 4, "drop-caches {node}") for trial, code in enumerate(dropped)),
    ]
    return [
        Hook(
            when=when, trial=trial, command=f"{command} on {number}", start_s=trial + 5.0, duration_s=seconds,
            exit_code=code, output="", rank=0, study_command=command,
        )
        for when, trial, code, seconds, command in runs
    ]  # fmt: skip


def _with_facts(log: TimingLog, *, storage: dict[str, Any], named: str, honoured: bool) -> None:
    log.storage.update(storage)
    log.ceiling.extend(ceilings(honoured=honoured))
    log.metadata.extend(small_files())
    log.provenance.update(study=named, host="node1")


def _with_hooks(log: TimingLog, *, number: int) -> None:
    log.hooks.extend(hooks(number))


def study_of_three_targets(make_study: MakeStudy) -> StudyOnDisk:
    """Two methods on three targets, which the study names in an order of its own; two of them lie on one disk."""
    names = ("scratch", "local", "cluster")
    made = make_study(
        targets={name: {"path": f"/{name}"} for name in names}, rounds=3, strategies=["torch_save", "hdf5"]
    )
    named = json.dumps({"targets": dict.fromkeys(names)})
    for target, storage, seconds in (("scratch", SCRATCH, 1.0), ("local", LOCAL, 2.0), ("cluster", CLUSTER, 4.0)):
        for number in (1, 2, 3):
            for label, factor in (("torch_save", 1.0), ("hdf5", 1.5)):
                times = [seconds * factor * (1 + 0.01 * number), seconds * factor * (1.01 + 0.01 * number)]
                unproven = {0: 0.0, 1: 0.0} if target == "cluster" else {}
                path = made.log(label, on=target, number=number, save=times, cold=times, unproven=unproven)
                amended(path, partial(_with_facts, storage=storage, named=named, honoured=target != "local"))
                if (target, label) == ("cluster", "hdf5"):
                    amended(path, partial(_with_hooks, number=number))
    return made


def tables(shown: str) -> dict[str, list[dict[str, str]]]:
    """The rows of all tables in CSV, by name."""
    blocks = [[line for line in block.splitlines() if line[:1] != "#"] for block in shown.split("\n\n")]
    read = [list(csv.DictReader(io.StringIO("\n".join(block)))) for block in blocks]
    return {rows[0]["table"]: rows for rows in read if rows}
