"""Those who store a filesystem's files, as witnesses: what has reached them, and what they have read from their disks.

The counters are the kernel's, of a device or of the servers' processes, and the package reads none of them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ckpt.disk import block_devices, page_cache
from ckpt.disk.page_cache import Sight
from jobs.node import proof
from jobs.node.groups import ProcessGroups
from jobs.node.proof import examine
from jobs.node.trial import Trial
from support.bench import Bench, FakeClock, new_bench
from support.filesystems import Mounts
from support.two_nodes import TwoNodes

MIB = 2**20
STATE_BYTES = 32 * MIB
LITTLE_BYTES = 4 * MIB
"""More than a filesystem's own journal and metadata, and much less than the state."""

_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Counts:
    """What a witness counted so far."""

    written_bytes: int
    """What has arrived there."""
    read_bytes: int
    """What was read from its disks."""
    unsynced_bytes: int
    """What it has in its page cache at this moment, and not on its disks."""
    sent_bytes: int = 0
    """What a server has sent to its clients, where it counts that."""

    def __sub__(self, before: Counts) -> Counts:
        """What was written, read and sent since then, and what is unsynced now."""
        written, read = self.written_bytes - before.written_bytes, self.read_bytes - before.read_bytes
        return Counts(written, read, self.unsynced_bytes, self.sent_bytes - before.sent_bytes)


class Witness(ABC):
    """Somebody who stores files for a mounted filesystem."""

    @abstractmethod
    def counts(self) -> Counts:
        """Read the counters."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what is in its page cache, so that it has to read its disks."""


def witness_of(name: str, mounts: Mounts) -> Witness:
    """The witness of one of the filesystems of this test run, which is started."""
    directory = mounts.start(name)
    if name == "gluster":
        gluster = mounts.root / "gluster"
        pids = [int(path.read_text()) for path in (gluster / "run" / "vols" / "gluster").glob("*.pid")]
        return Servers(pids, lambda: (path for path in gluster.glob("brick*/**/*") if ".glusterfs" not in path.parts))
    if name == "cephfs":
        pids = [int(path.read_text().split()[0]) for path in (mounts.root / "pid").glob("ceph-osd-*")]
        return Servers(pids, lambda: (mounts.root / "ceph").glob("osd.*/block"))
    return Device(directory)


class Device(Witness):
    """The loop device below a local filesystem; its image is another filesystem's file."""

    def __init__(self, directory: Path) -> None:
        [loop] = block_devices.devices_below(directory)
        self._image, self._stat = Path(loop.image), Path("/sys/block") / loop.name / "stat"

    def counts(self) -> Counts:
        """Count its sectors, and the pages of the image that aren't on the disk below."""
        read_bytes, written_bytes = transferred_bytes(self._stat)
        return Counts(written_bytes, read_bytes, unsynced_bytes(self._image))

    def forget(self) -> None:
        """Drop the image's pages."""
        page_cache.evict_file(self._image)


class Servers(Witness):
    """The processes of servers, and the files in which they store others.

    Args:
        pids: the processes.
        files: lists the files.
    """

    def __init__(self, pids: list[int], files: Callable[[], Iterator[Path]]) -> None:
        assert pids
        self._pids, self._files = pids, files

    def counts(self) -> Counts:
        """Count what the processes wrote to files and fetched from disks, and what of the files isn't on disks."""
        texts = [Path(f"/proc/{pid}/io").read_text() for pid in self._pids]
        counters = [dict(line.split(": ") for line in text.splitlines()) for text in texts]
        written, read = (sum(int(each[name]) for each in counters) for name in ("write_bytes", "read_bytes"))
        return Counts(written, read, sum(unsynced_bytes(path) for path in self._stored()))

    def forget(self) -> None:
        """Drop the files' pages."""
        for path in self._stored():
            page_cache.evict_file(path)

    def _stored(self) -> list[Path]:
        return [path for path in self._files() if path.is_file() and not path.is_symlink()]


def transferred_bytes(stat: Path) -> tuple[int, int]:
    """What a block device has read and written so far, by its `stat` in /sys/block."""
    fields = stat.read_text().split()
    return int(fields[2]) * _SECTOR_BYTES, int(fields[6]) * _SECTOR_BYTES


def unsynced_bytes(path: Path) -> int:
    """What of a file this kernel has in its page cache, and not on a disk."""
    pages = page_cache.dirty_pages_of([path], Sight(dirty=True, resident=""))
    assert pages is not None, "this kernel has no cachestat"
    return pages * page_cache._PAGE_BYTES


class WatchingClock(FakeClock):
    """A clock that stands still, and has a witness's counters read whenever the package asks for the time."""

    def __init__(self, witness: Witness) -> None:
        super().__init__([])
        self._witness = witness
        self.counts: list[Counts] = []
        """The counts at each reading: of a save before the call, and after call, sync and commit; around each load."""

    def __call__(self) -> float:
        """The time, in seconds."""
        self.counts.append(self._witness.counts())
        return super().__call__()


def watched_bench(directory: Path, witness: Witness) -> Bench:
    """A trial loop in a directory, with what can be proven there, and with a clock that reads the counters.

    No filesystem can compress its state.
    """
    bench = new_bench(directory)
    content = bytearray(os.urandom(STATE_BYTES))
    bench.state = dict(zip("ab", torch.frombuffer(content, dtype=torch.float32).chunk(2), strict=True))
    bench.proof = examine(directory, ProcessGroups.alone(), shifted=False)
    bench.clock = WatchingClock(witness)
    return bench


def counts_of(bench: Bench) -> list[Counts]:
    """What the clock noted."""
    assert isinstance(bench.clock, WatchingClock)
    return bench.clock.counts


@dataclass(frozen=True)
class Observed:
    """A save or a load: what the log calls it, and what was counted meanwhile."""

    word: str
    """The log's `durability` or `cache`."""
    counts: Counts


def save(bench: Bench) -> Observed:
    """Save, and observe it."""
    trial = Trial(0, bench.subject(), bench.context(), warmup=False)
    trial.save(bench.scratch / "trial-0")
    (total,) = [sample for sample in trial.samples if sample.phase == "total"]
    assert total.valid, total.reason
    before, *_, committed = counts_of(bench)[-4:]
    return Observed(total.durability, committed - before)


def load(bench: Bench, *, cold: bool) -> Observed:
    """Load what was saved, and observe it."""
    trial = Trial(0, bench.subject(), bench.context(), warmup=False)
    trial.load(bench.scratch / "trial-0", cold=cold)
    (sample,) = trial.samples
    assert sample.valid, sample.reason
    before, after = counts_of(bench)[-2:]
    return Observed(sample.cache, after - before)


def on_another_node(bench: Bench, mount_point: Path, witness: Witness) -> Bench:
    """The same trial loop where another client has mounted the filesystem of `bench.target`'s parent directory."""
    target = mount_point / bench.target.parent.name / bench.target.name
    other = replace(bench, target=target, scratch=target / bench.scratch.name, log=bench.log)
    other.clock = WatchingClock(witness)
    first = TwoNodes(("1", proof._client(bench.target)))
    other.proof = examine(target, replace(ProcessGroups.alone(), world=first), shifted=True)
    return other
