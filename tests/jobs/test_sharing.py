"""Targets that lie on the same disk, or on the same servers, are noticed before they are compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ckpt.disk import block_devices, mounts
from ckpt.disk.block_devices import BlockDevice
from ckpt.disk.mounts import Mount
from jobs import check_targets, sharing
from jobs.node.storage import facts, network
from jobs.plan import study_file
from jobs.plan.study import Target
from support.filesystems import Mounts

LARGEST = (1, 1)


def studied(**paths: Path | str) -> dict[str, Target]:
    """Targets with these paths."""
    return {name.replace("__", "+"): Target(path=str(path), allow_tmpfs=True) for name, path in paths.items()}


def noticed(targets: Mapping[str, Target], level: str = "unknown") -> list[tuple[str, str]]:
    """What `check` says of targets on this machine: about which, and what."""
    findings = check_targets.findings(targets, dict.fromkeys(targets, LARGEST))
    return [(finding.about, finding.what) for finding in findings if finding.level == level]


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a directory that lies on such a device."""
    below: dict[Path, tuple[BlockDevice, ...]] = {}
    monkeypatch.setattr(block_devices, "devices_below", lambda path: below.get(path, ()))

    def make(name: str, *devices: BlockDevice) -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        below[path] = devices
        return path

    return make


def test_check_notices_targets_on_one_disk(disks: Callable[..., Path]) -> None:
    """Directories of one disk are named, also two targets of one path; the axes of a target, and no path, are not."""
    vda, vdb = BlockDevice("vda", "disk"), BlockDevice("vdb", "disk")
    loop = BlockDevice("loop3", "loop", (vda,), "/image", "ext4")
    plain, image, other = disks("plain", vda), disks("image", loop), disks("other", vdb)

    assert noticed(studied(a=plain, b=image, c__n=other, c__m=other, d="$NO_SUCH_VARIABLE")) == [
        ("target 'a'", "lies on the disk vda, as other targets do"),
        ("target 'b'", "lies on the disk vda, as other targets do"),
    ]
    assert [about for about, _ in noticed(studied(a=other, b=other))] == ["target 'a'", "target 'b'"]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (BlockDevice("rbd0", "network"), "the device rbd0"),
        (BlockDevice("dm-1", "dm"), "the device dm-1"),
        (BlockDevice("loop7", "loop", (), "/gone", "unknown"), "the device loop7"),
    ],
)
def test_a_device_that_leads_nowhere_is_the_bottom(device: BlockDevice, words: str, disks: Callable[..., Path]) -> None:
    """What lies below can't be seen; two directories on it share it all the same."""
    assert facts.storage_below(disks("a", device)) == {words}


def test_filesystems_that_name_neither_device_nor_server(disks: Callable[..., Path]) -> None:
    """Two directories of one mount share it, whatever it is."""
    [words] = facts.storage_below(disks("a"))
    assert words.startswith(f"the {mounts.mount_of(Path('/')).filesystem} at ")


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (
            Mount("lustre", "mgs1@tcp:mgs2@tcp:/scratch/sub", "rw", "/a"),
            "the Lustre filesystem scratch of mgs1@tcp:mgs2@tcp",
        ),
        (
            Mount("lustre", "mgs1@tcp:mgs2@tcp:/scratch", "rw", "/b"),
            "the Lustre filesystem scratch of mgs1@tcp:mgs2@tcp",
        ),
        (Mount("gpfs", "/dev/fs1", "rw", "/gpfs"), "the GPFS filesystem fs1"),
        (Mount("fuse", "mfs#master:9421/sub", "rw", "/mfs"), "the MooseFS of master:9421"),
        (Mount("cifs", "//server/share", "rw", "/cifs"), "the cifs //server/share"),
        (
            Mount("nfs4", "nas.site:/export", "rw,addr=10.0.0.5", "/nfs"),
            "the export /export of the NFS server 10.0.0.5",
        ),
        (Mount("nfs4", "nas:/export", "rw", "/nfs"), "the export /export of the NFS server nas"),
        (Mount("beegfs", "beegfs_nodev", "rw", "/beegfs"), "the beegfs at /beegfs"),
    ],
)
def test_a_volume_has_one_name(
    mount: Mount, words: str, disks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through whichever mount; where it can't be named, the mount itself is what targets may share."""
    monkeypatch.setattr(mounts, "mount_of", lambda _: mount)
    assert facts.storage_below(disks("a")) == {words}


def test_an_export_is_known_by_the_servers_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mounts of one export, of other directories in it and with other options, are one volume."""
    number = tmp_path.stat().st_dev
    major_minor = f"{os.major(number)}:{os.minor(number)}"
    table = f"NV SERVER PORT DEV FSID FSC\nv4 0a000005 801 {major_minor} 1f2e:0 no\nv4 0a000006 801 9:99 3:0 no"
    monkeypatch.setattr(network, "text", lambda _: table)
    names = {
        network.nfs_volume(Mount("nfs4", source, "rw,addr=10.0.0.5", "/nfs"), tmp_path)
        for source in ("nas:/export", "nas.site:/export/sub")
    }
    assert names == {"the export with the id 1f2e:0 of the NFS server 10.0.0.5"}


def test_plan_warns_of_what_it_sees(disks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that jobs run on: its disks too; on a login node what nodes share alone; never what isn't there."""
    vda = BlockDevice("vda", "disk")
    a, b = disks("a", vda), disks("b", vda)
    study = {"name": "s", "strategies": ["torch_save"], "state": {"model": "llama-15m"}}
    targets = {"a": {"path": str(a)}, "b": {"path": str(b)}, "c": {"path": "/no/such/directory"}}
    parsed = study_file.parse(study | {"targets": targets}, "study.toml").targets

    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert sharing.warnings(parsed) == [f"a and b lie on the disk vda: {sharing.REMEDY}"]
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/sbatch")
    assert sharing.warnings(parsed) == []


def test_a_node_local_target_that_nodes_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs would run side by side on the same servers."""
    monkeypatch.setattr(mounts, "mount_of", lambda _: Mount("nfs4", "nas:/export", "rw", "/nfs"))
    local = {"scratch": Target(path=str(tmp_path), node_local=True)}
    assert noticed(local) == [("target 'scratch'", "is node-local by the study, and lies on nfs4, which nodes share")]


@pytest.mark.filesystems
def test_real_filesystems_that_share(mounts: Mounts, second_client: Path) -> None:
    """Images and an overlay lie on this machine's disk; two clients of GlusterFS lie on one volume."""
    local = [mounts.start(name) for name in ("xfs", "btrfs-zstd", "ext4-buffered", "overlay")]
    memory, volume = mounts.start("ext4-ram"), mounts.start("gluster")
    below = [facts.storage_below(directory) for directory in local]

    assert len(set(below)) == 1, below
    assert facts.storage_below(memory).isdisjoint(below[0])
    assert facts.storage_below(volume) == facts.storage_below(second_client)
    address = mounts.environment["DEVCLUSTER_FILESYSTEMS_ADDRESS"]
    [words] = facts.storage_below(volume)
    assert words == f"the GlusterFS volume of the brick {address}:{mounts.root}/gluster/brick1 and 1 more"
    assert sharing.warnings(studied(one=volume, two=second_client))[0].startswith(f"one and two lie on {words}: ")
