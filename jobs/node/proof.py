"""What can be proven on a target: that a save is durable, and that a load comes from the device.

The page cache shows both, where the kernel counts its pages, where no other cache lies between it and a disk, and
where fsync reaches that disk. So proof takes a filesystem that is known to be local, on devices that are known, and a
probe whose own pages are seen. Everything else is unproven, with the reason.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ckpt.disk import durable, mounts, page_cache
from ckpt.disk.block_devices import BlockDevice, all_devices, devices_below
from ckpt.disk.filesystems import Kind, facts
from ckpt.disk.mounts import Mount
from ckpt.disk.page_cache import Sight
from jobs.node import received, usage
from jobs.node.groups import ProcessGroups

PROVEN = "proven"

_Claim = Literal["durability", "cold"]

COLD_BELOW = 0.01
"""A load counts as cold if less than this fraction of the checkpoint's pages was cached before it."""

_PROBE_BYTES = 64 * 1024
_PROBES = 2
"""Somebody's sync may clean a probe's pages before they are counted, but not twice."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a node can prove of its target.

    Attributes:
        dirty_seen: whether the kernel counts pages that aren't on storage yet.
        resident_seen: the system call that counts pages in the page cache; empty if none does.
        reads_counted: whether the process's counter of bytes fetched from storage knows what it reads here.
        durability: `PROVEN`, or why a save can't be proven durable.
        cold: `PROVEN`, or why a load can't be proven to come from the device.
        beyond: whether the node reads what another one wrote through a client of its own: whatever it reads isn't in
            this node's caches, and may be in the servers'.
    """

    dirty_seen: bool = False
    resident_seen: str = ""
    reads_counted: bool = False
    durability: str = "not examined"
    cold: str = "not examined"
    beyond: bool = False

    @property
    def sight(self) -> Sight:
        """What the kernel shows."""
        calls: dict[str, Literal["cachestat", "mincore"]] = {"cachestat": "cachestat", "mincore": "mincore"}
        return Sight(self.dirty_seen, calls.get(self.resident_seen, ""))

    @property
    def committed(self) -> str:
        """A committed save's `durability` in the log."""
        return "committed" if self.durability == PROVEN else "committed-unproven"

    def cache(self, resident: float) -> str:
        """A cold load's `cache` in the log, given what fraction of its pages is in this node's page cache."""
        if resident < COLD_BELOW and self.cold == PROVEN:
            return "cold"
        return "client-cold" if self.beyond and not resident >= COLD_BELOW else "cold-unproven"


def examine(directory: Path, groups: ProcessGroups, *, shifted: bool) -> Proof:
    """Find out what this node can prove of a directory; every process of the job calls it.

    Args:
        directory: where the checkpoints will lie; one process of every node writes a small file there and removes it.
        groups: of the job.
        shifted: whether every process loads what another node wrote.
    """
    mine = asdict(_of_node(directory)) if groups.node.rank == 0 else None
    proof: Proof = groups.node.broadcast(mine, received.row(Proof))
    if not shifted or mounts.mount_of(directory).facts.kind is not Kind.NETWORK:
        return proof
    sent = groups.world.all_gather((str(groups.process.node), _client(directory)))
    clients = set(groups.world.read(sent, received.pair(received.text, received.text)))
    nodes, different = {node for node, _ in clients}, {client for _, client in clients}
    return replace(proof, beyond=len(nodes) == len(different) == len(clients))


def storage_facts(directory: Path, proof: Proof) -> dict[str, Any]:
    """Describe the proof for the log's `/storage`."""
    mount = mounts.mount_of(directory)
    weaker = _weakening(mount)
    return {
        "durability_proof": proof.durability,
        "cold_proof": proof.cold,
        "fsync_guarantee": mount.facts.fsync + (f"; less with the mount option {weaker}" if weaker else ""),
    }


def _of_node(directory: Path) -> Proof:
    seen = _probe(directory)
    durability = next(_doubts("durability", directory), "")
    if not durability and not seen.dirty_seen:
        durability = "the kernel showed no dirty page of a file that was just written (cachestat came with Linux 6.5)"
    cold = next(_doubts("cold", directory), "")
    if not cold and not seen.resident_seen:
        cold = "the kernel showed no cached page of a file that was just written"
    return replace(seen, durability=durability or PROVEN, cold=cold or PROVEN)


def _probe(directory: Path) -> Proof:
    """Write a small file, and look whether the kernel sees what is known of it."""
    seen = Proof()
    for _ in range(_PROBES):
        with suppress(OSError), tempfile.NamedTemporaryFile(prefix=".pages-", dir=directory, buffering=0) as file:
            path = Path(file.name)
            file.write(os.urandom(_PROBE_BYTES))  # random, since compressing filesystems may store nothing of zeros
            sight = page_cache.probe(path)
            durable.fsync_path(path)
            page_cache.evict_file(path)
            before = usage.fetched_bytes()
            path.read_bytes()
            counted = before is not None and (usage.fetched_bytes() or 0) - before >= _PROBE_BYTES
            seen = Proof(sight.dirty, sight.resident, counted)
            if seen.dirty_seen:
                break
    return seen


def _client(directory: Path) -> str:
    """Name this node's client of a filesystem: its kernel and the mounted instance."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {directory.stat().st_dev}"
    return "unknown"


def _weakening(mount: Mount) -> str:
    return ", ".join(sorted(mount.facts.weakening_options & set(mount.options.split(","))))


def _doubts(claim: _Claim, path: Path) -> Iterator[str]:
    """Yield why fsync there would not prove that data are on a disk, or why a load might come from another cache."""
    mount = mounts.mount_of(path)
    if mount.facts.kind is Kind.STACKED:
        yield from _doubts_of_stack(claim, mount, path)
        return
    if mount.facts.kind is not Kind.LOCAL:
        yield _elsewhere(mount)
        return
    if claim == "durability" and (weaker := _weakening(mount)):
        yield f"{mount.filesystem} is mounted with {weaker}, so that fsync leaves data in the device's write cache"
    if claim == "cold" and mount.facts.other_caches:
        yield f"{mount.filesystem} may hold files in {mount.facts.other_caches}, which can't be seen"
    devices = devices_below(path)
    yield from _doubts_of_devices(mount, devices)
    for device in all_devices(devices):
        if device.kind == "loop":
            yield from (
                f"{device.name}'s image {device.image}: {doubt}" for doubt in _doubts(claim, Path(device.image))
            )
            if claim == "cold":
                yield from _doubts_of_image(device)


def _doubts_of_stack(claim: _Claim, mount: Mount, path: Path) -> Iterator[str]:
    if claim == "durability":
        yield f"the kernel counts no dirty pages on {mount.filesystem}"
        return
    below = _below_overlay(mount, path)
    yield from [_elsewhere(mount)] if below is None else _doubts(claim, below)


def _doubts_of_image(device: BlockDevice) -> Iterator[str]:
    """Yield what may hold pages of a loop device's image."""
    if not device.direct_io:
        yield f"{device.name} reads its image {device.image} through the page cache (losetup --direct-io=on)"
    if facts(device.image_filesystem).ignores_direct_io:
        yield f"{device.name}'s image {device.image} lies on {device.image_filesystem}, which may cache it"


def _doubts_of_devices(mount: Mount, devices: tuple[BlockDevice, ...]) -> Iterator[str]:
    if not devices:
        yield f"the devices below {mount.filesystem} can't be seen from here"
    for device in all_devices(devices):
        if device.kind == "loop" and device.image_filesystem == "unknown":
            yield f"{device.name}'s image {device.image} can't be seen from here"
        elif device.kind == "memory":
            yield f"{device.name} is memory"
        elif device.kind == "network":
            yield f"{device.name} lies on servers, whose memory can't be seen from here"
        elif not device.below and device.kind != "disk" and not device.image:
            yield f"what the device {device.name} lies on can't be seen from here"


def _elsewhere(mount: Mount) -> str:
    """Say where the files of a filesystem lie that isn't local."""
    name = mount.facts.name
    return {
        Kind.NETWORK: f"{name} keeps its files on servers, whose memory can't be seen from here",
        Kind.PROGRAM: f"{name} leaves its files to a program, which keeps them where the kernel can't see",
        Kind.STACKED: f"{name} lies on another filesystem, which can't be seen from here",
        Kind.MEMORY: f"{name} keeps its files in memory",
    }.get(mount.facts.kind, f"nothing is known of filesystems of the type {name}")


def _below_overlay(mount: Mount, path: Path) -> Path | None:
    """Where an overlay keeps a path's new files; None if it can't be seen, as from inside a container."""
    if not mount.upper:
        return None
    with suppress(OSError, ValueError):
        below = Path(mount.upper) / path.resolve().relative_to(mount.mount_point)
        return below if below.exists() else None
    return None
