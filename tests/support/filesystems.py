"""Real filesystems for tests: which there are, what each can do, and where they are mounted.

Tests with the marker `every_filesystem` run once in pytest's own temporary directory and once on each of these
filesystems; `every_filesystem(only="exchanges")` leaves out those that can't, as the fields of `Filesystem` say.
Those variants have the marker `filesystems`, need root, and start what they need by `devcluster filesystems`.
CKPT_FILESYSTEMS="cephfs xfs" chooses other filesystems than those of every run; CKPT_FILESYSTEMS=nfs is for tests that
`devcluster filesystems nfs` runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "slurm" / "devcluster" / "filesystems"


@dataclass(frozen=True)
class Filesystem:
    """What is known of a filesystem that `devcluster filesystems start` mounts."""

    name: str
    exchanges: bool = True  # two directories, in one step
    sees_pages: bool = True  # cachestat tells the cached and the dirty pages of its files
    direct: bool = True  # O_DIRECT passes this machine's page cache
    proves_cold: bool = True  # what isn't in the page cache comes from a disk
    counts_blocks: bool = True  # a hole in a file is no block of it
    locks_everywhere: bool = True  # a lock is seen by every host, as far as the mount can tell
    shows_layout: bool = True  # how it stores a file can be asked here
    network: bool = False
    compresses: bool = False


HERE = Filesystem("here")
"""pytest's own temporary directory; believed to be a local disk."""

_OVER_A_NETWORK = Filesystem(
    "", exchanges=False, sees_pages=False, proves_cold=False, locks_everywhere=False, network=True
)

FILESYSTEMS = {
    each.name: each
    for each in (
        Filesystem("ext4"),
        Filesystem("ext4-buffered", proves_cold=False),
        Filesystem("ext4-ram", proves_cold=False),
        Filesystem("xfs"),
        Filesystem("btrfs", direct=False),
        Filesystem("btrfs-zstd", direct=False, compresses=True),
        Filesystem("overlay", sees_pages=False),
        replace(_OVER_A_NETWORK, name="gluster"),
        replace(_OVER_A_NETWORK, name="cephfs", counts_blocks=False),
        replace(_OVER_A_NETWORK, name="nfs", sees_pages=True, shows_layout=False),
    )
}
IN_EVERY_RUN = "xfs btrfs-zstd ext4-buffered ext4-ram overlay gluster"


def chosen() -> list[Filesystem]:
    """The filesystems of this run."""
    return [FILESYSTEMS[name] for name in os.environ.get("CKPT_FILESYSTEMS", IN_EVERY_RUN).split()]


@dataclass
class Mounts:
    """Filesystems of this test run alone, each mounted when a test first asks for it."""

    root: Path
    address: str
    _up: set[str] = field(default_factory=set)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which `devcluster filesystems` means these."""
        return os.environ | {
            "DEVCLUSTER_FILESYSTEMS_ROOT": str(self.root),
            "DEVCLUSTER_FILESYSTEMS": str(self.root / "mnt"),
            "DEVCLUSTER_FILESYSTEMS_OWNER": str(os.getpid()),
            "DEVCLUSTER_FILESYSTEMS_ADDRESS": self.address,
        }

    def start(self, name: str, *, required: bool = True) -> Path:
        """Where it is mounted. Where it can't be, the test is skipped, or fails if nothing that is required may be."""
        if name == "nfs" and (directory := _nfs_of_this_kernel()):
            return directory
        if name not in self._up:
            if os.geteuid() != 0:
                do_without("mounting needs root")
            done = subprocess.run(
                [SCRIPT, "start", name], env=self.environment, capture_output=True, text=True, timeout=600, check=False
            )
            if "is not installed" in done.stderr:
                do_without(done.stderr, required=required)
            assert done.returncode == 0, done.stderr
            self._up.add(name)
        return self.root / "mnt" / name

    def on_nfs(self, *command: str | Path) -> str:
        """Run a command in a kernel of its own, where `root / "mnt" / "nfs"` is NFSv4.2; returns what it printed.

        Where that can't be, the test is skipped: its packages need not be installed.
        """
        if os.geteuid() != 0:
            do_without("mounting needs root", required=False)
        done = subprocess.run(
            [SCRIPT, "nfs", *command],
            env=self.environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if "is not installed" in done.stderr:
            do_without(done.stderr, required=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def signal_bricks(self, number: signal.Signals) -> None:
        """Stop the processes of GlusterFS' bricks, or let them go on."""
        for path in (self.root / "gluster" / "run" / "vols" / "gluster").glob("*.pid"):
            os.kill(int(path.read_text()), number)


def do_without(reason: str, *, required: bool = True) -> None:
    """Skip the test, or fail if nothing that is required may be skipped."""
    if required and os.environ.get("CKPT_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


def _nfs_of_this_kernel() -> Path | None:
    """Where NFS is mounted, if this is the kernel that `devcluster filesystems nfs` has started; else None."""
    directory = Path(os.environ.get("DEVCLUSTER_FILESYSTEMS_ROOT", "")) / "mnt" / "nfs"
    return directory if directory.is_mount() else None


@contextmanager
def mounts_of_this_run(which: str = "1") -> Iterator[Mounts]:
    """Mounts that go with the test run, even when it is killed. Each set has servers at an address of its own."""
    high, low = divmod(os.getpid(), 250)
    mounts = Mounts(Path(f"/tmp/ckpt-fs-{os.getpid()}-{which}"), f"127.{10 + high % 240}.{1 + low}.{which}")
    if _nfs_of_this_kernel():  # with process ids of its own: such a directory may be that of another test run
        yield mounts
        return
    try:
        yield mounts
    finally:
        done = subprocess.run(
            [SCRIPT, "clean"], env=mounts.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
