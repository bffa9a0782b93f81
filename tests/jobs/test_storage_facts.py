"""What a target lies on: real directories and mounts, and each real filesystem by its own facts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk.mounts import Mount, mount_of
from jobs import timing_log
from jobs.node.known import UnknownFactError
from jobs.node.run import run_job
from jobs.node.storage import local, network
from jobs.node.storage.facts import of_servers, of_storage, written_layout
from jobs.paths import StudyPaths
from jobs.plan import plan
from support.filesystems import HERE, Filesystem, Mounts


def test_a_filesystem_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is claimed of it: neither that it has no servers nor that it has no stripes."""
    monkeypatch.setattr(
        "ckpt.disk.mounts.mount_of", lambda _path: Mount("fuse.newfs", "newfs@somewhere", "rw", str(tmp_path))
    )
    facts = of_servers(tmp_path)

    reason = "unknown (fuse.newfs is not among the filesystems that this package knows how to ask)"
    assert {facts["filesystem_version"], facts["servers"], facts["layout"]} == {reason}


def test_the_directory_of_these_tests(tmp_path: Path) -> None:
    """Every fact about a real directory is a number or a text, and the devices go down to disks with their queues."""
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    facts = of_storage(tmp_path) | of_servers(tmp_path) | {"written_layout": written_layout(tmp_path)}

    assert all(isinstance(value, int | float | str) for value in facts.values())
    assert facts["capacity_bytes"] > facts["free_bytes"] > 0
    mount = mount_of(tmp_path)
    if mount.filesystem not in {"ext4", "xfs", "btrfs"} or facts["device"].startswith("unknown"):
        pytest.skip(f"{mount.filesystem} without a visible device")
    disks = [*json.loads(facts["device"])]
    while disks[0]["below"]:
        disks = disks[0]["below"]
    assert disks[0]["write_cache"] in {"write back", "write through"}
    assert disks[0]["rotational"] in {"0", "1"}
    assert facts["servers"] == "none: its files are on this machine"
    assert facts["written_layout"].startswith("extents=")


def test_a_checkpoint_without_files(tmp_path: Path) -> None:
    """On a node that wrote nothing there is no file to look at."""
    assert written_layout(tmp_path) == "unknown (the checkpoint has no file on this node)"


def test_the_layout_of_a_directory_on_ceph_is_that_of_the_nearest_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CephFS shows a layout on the directory where it was set; directories in it have it too."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    layouts = {tmp_path: "stripe_unit=4194304 stripe_count=2 object_size=4194304 pool=data"}

    def attribute(path: Path, name: str) -> str:
        if name == "ceph.dir.layout" and path in layouts:
            return layouts[path]
        raise UnknownFactError("none")

    monkeypatch.setattr(network, "attribute", attribute)
    mount = Mount("ceph", "10.0.0.1:6789,10.0.0.2:6789:/", "rw,name=user", str(tmp_path))

    expected = "stripe_unit=4194304, stripe_count=2, object_size=4194304, pool=data"
    assert network.ceph_layout(mount, inner) == expected
    assert network.ceph_servers(mount, inner) == "monitors=10.0.0.1:6789+10.0.0.2:6789"
    layouts.clear()
    assert network.ceph_layout(mount, inner).startswith("the default")


def test_an_nfs_mount_names_its_server() -> None:
    """Protocol, server and connections stand in the mount's options."""
    options = "rw,relatime,vers=4.2,rsize=1048576,wsize=1048576,hard,proto=tcp,nconnect=8,timeo=600,addr=192.168.1.5"
    mount = Mount("nfs4", "filer:/export/scratch", options, "/scratch")

    assert network.nfs_version(mount, Path("/scratch")).startswith("NFS 4.2, client of Linux ")
    assert network.nfs_servers(mount, Path("/scratch")) == "server=filer, addr=192.168.1.5, nconnect=8"


def test_what_mkfs_xfs_chose() -> None:
    """Stripe unit and width are those of the data, not of the log."""
    answer = """meta-data=/dev/md0               isize=512    agcount=16, agsize=524288 blks
         =                       sectsz=512   attr=2, projid32bit=1
         =                       crc=1        finobt=1, sparse=1, rmapbt=0
         =                       reflink=1    bigtime=1 inobtcount=1 nrext64=0
data     =                       bsize=4096   blocks=8388608, imaxpct=25
         =                       sunit=16     swidth=64 blks
naming   =version 2              bsize=4096   ascii-ci=0, ftype=1
log      =internal log           bsize=4096   blocks=16384, version=2
         =                       sectsz=512   sunit=1 blks, lazy-count=1
realtime =none                   extsz=4096   blocks=0, rtextents=0
"""
    assert local.xfs_facts(answer) == "bsize=4096, sunit=16, swidth=64, agcount=16, reflink=1, crc=1"


def test_the_translators_of_a_gluster_client() -> None:
    """Replicas, dispersion and shards are what the client's graph says; options as GlusterFS names them."""
    replicated = [("cluster/distribute", {}), *[("cluster/replicate", {})] * 2, *[("protocol/client", {})] * 6]
    sharded = [("features/shard", {"shard-block-size": "64MB"}), ("performance/io-cache", {}), ("protocol/client", {})]
    dispersed = [("cluster/disperse", {"redundancy": "2"}), *[("protocol/client", {})] * 6]

    assert network.gluster_graph(replicated) == (
        "placement=distribute+replicate, bricks=6, replicate_sets=2, set_size=3"
    )
    assert network.gluster_graph(sharded) == "placement=one brick, bricks=1, shard_block_size=64MB, client=io-cache"
    assert network.gluster_graph(dispersed) == (
        "placement=disperse, bricks=6, disperse_sets=1, set_size=6, redundancy=2"
    )


LAYOUTS = {
    "xfs": ("bsize=4096, sunit=0, swidth=0,", "extents="),
    "btrfs": ("data=single, metadata=dup, devices=1, checksum=crc32c, compression=none", "extents="),
    "btrfs-zstd": ("data=single, metadata=dup, devices=1, checksum=crc32c, compression=zstd", "extents="),
    "ext4": ("block_size=4096, stripe_blocks=0", "extents="),
    "overlay": ("upperdir=/", "extents="),
    "gluster": ("placement=distribute, bricks=2, client=", "placement=distribute, bricks=1"),
    "cephfs": ("stripe_unit=4194304, stripe_count=1,", "stripe_unit=4194304, stripe_count=1, object_size=4194304,"),
}


@pytest.mark.every_filesystem(only="shows_layout")
def test_every_filesystem_names_itself(tmp_path: Path, filesystem: Filesystem) -> None:
    """On each of them version, servers and layout are known, of directory and file; and devices, where local."""
    if filesystem is HERE:
        pytest.skip("whatever this machine has")
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    with (tmp_path / "file").open("rb") as file:
        os.fsync(file.fileno())
    facts = of_servers(tmp_path) | {"written_layout": written_layout(tmp_path)}

    assert [fact for name, fact in facts.items() if fact.startswith("unknown") and name != "device"] == []
    of_directory, of_file = LAYOUTS.get(filesystem.name, LAYOUTS["ext4"])
    assert facts["layout"].startswith(of_directory)
    assert facts["written_layout"].startswith(of_file)
    if filesystem.compresses:
        assert facts["written_layout"].endswith("compressed=100%")
    if filesystem.network:
        assert facts["device"] == "unknown (its devices are the servers')"
        assert not facts["servers"].startswith("none")
    else:
        assert json.loads(facts["device"])
        assert facts["servers"].startswith("none")


@pytest.mark.filesystems
def test_what_prepare_sets_is_seen_in_a_written_file(
    mounts: Mounts, tiny: dict[str, Any], planned: Callable[[Mapping[str, Any]], StudyPaths]
) -> None:
    """An axis of compressions on Btrfs: each job's files are stored as its target says."""
    directory = Path(tempfile.mkdtemp(dir=mounts.start("btrfs-zstd")))
    tiny["targets"] = {
        "btrfs": {
            "path": str(directory),
            "prepare": "btrfs property set {directory} compression {compression}",
            "axes": {"compression": ["none", "zstd"]},
        }
    }
    tiny["trials"] = {"repeats": 1, "warmups": 0, "ceiling": False, "metadata": False}
    paths = planned(tiny)
    stored, layouts = {}, {}
    for job in plan.from_json(paths.plan_json.read_text(), "plan.json").jobs:
        assert run_job(str(paths.root), job.id) == "complete"
        storage = timing_log.read(paths.log(job.id)).storage
        stored[job.target], layouts[job.target] = storage["written_layout"], storage["layout"]
    directory.rmdir()

    assert "compression=none" in layouts["btrfs+compression=none"], "as it was when checkpoints were written"
    assert "compressed=0%" in stored["btrfs+compression=none"]
    assert "compressed=100%" in stored["btrfs+compression=zstd"]
