"""What the tools of filesystems print that don't run here: what is read of it, and what is unknown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ckpt.disk.mounts import Mount
from jobs.node import known
from jobs.node.known import UnknownFactError
from jobs.node.storage import local, network, parallel

# As the manuals and users' pages of these filesystems show them; LUSTRE_DF, GPFS_DISKS and MOOSEFS_FILE are written
# from memory of such pages. None of these filesystems runs on the machines of these tests.
LUSTRE_DIRECTORY = (
    "stripe_count:  4 stripe_size:   1048576 pattern:       raid0 stripe_offset: -1 pool:          flash\n"
)

LUSTRE_FILE = """/mnt/testfs/file1
lmm_stripe_count:  2
lmm_stripe_size:   4194304
lmm_pattern:       raid0
lmm_layout_gen:    0
lmm_stripe_offset: 1
\tobdidx\t\t objid\t\t objid\t\t group
\t     1\t             2\t          0x2\t             0
\t     0\t             2\t          0x2\t             0
"""

LUSTRE_COMPONENTS = """/mnt/lustre/domfile
  lcm_layout_gen:    2
  lcm_mirror_count:  1
  lcm_entry_count:   2
    lcme_id:             1
    lcme_mirror_id:      0
    lcme_flags:          init
    lcme_extent.e_start: 0
    lcme_extent.e_end:   1048576
      lmm_stripe_count:  0
      lmm_stripe_size:   1048576
      lmm_pattern:       mdt
      lmm_layout_gen:    0
      lmm_stripe_offset: 0

    lcme_id:             2
    lcme_mirror_id:      0
    lcme_flags:          0
    lcme_extent.e_start: 1048576
    lcme_extent.e_end:   EOF
      lmm_stripe_count:  -1
      lmm_stripe_size:   4194304
      lmm_pattern:       raid0
      lmm_layout_gen:    0
      lmm_stripe_offset: -1
"""

LUSTRE_DF = """UUID                   1K-blocks        Used   Available Use% Mounted on
testfs-MDT0000_UUID      9174328     1020024     8154304  11% /mnt/testfs[MDT:0]
testfs-OST0000_UUID     94181368    56330708    37850660  59% /mnt/testfs[OST:0]
testfs-OST0001_UUID     94181368    56385748    37795620  59% /mnt/testfs[OST:1]

filesystem_summary:    188362736   112716456    75646280  59% /mnt/testfs
"""

GPFS_ATTRIBUTES = """file name:            FileA.txt
metadata replication: 1 max 2
data replication:     1 max 2
immutable:            no
appendOnly:           no
flags:
storage pool name:    data
fileset name:         home_user001
snapshot name:
creation time:        Wed Jul  6 00:54:27 2022
Misc attributes:      ARCHIVE
Encrypted:            no
"""

GPFS_FILESYSTEM = """flag                value                    description
------------------- ------------------------ -----------------------------------
 -B                 16777216                 Block size
"""

GPFS_DISKS = """
 File system   Disk name    NSD servers
---------------------------------------------------------------------------
 fs2           hd3n97       c5n97g.ppd.pok.ibm.com,c5n98g.ppd.pok.ibm.com
 fs2           hd4n97       c5n97g.ppd.pok.ibm.com,c5n98g.ppd.pok.ibm.com
 fs2           hd6n97       (directly attached)
"""

BEEGFS_FILE = """Entry type: file
EntryID: 55-628B3E1D-144
Metadata node: mds3-p2-m4 [ID: 324]
Stripe pattern details:
+ Type: RAID0
+ Chunksize: 512K
+ Number of storage targets: desired: 4; actual: 4
+ Storage targets:
  + 1203 @ oss-4-1-stor2 [ID: 12]
  + 2101 @ oss-4-2-stor1 [ID: 21]
"""

BEEGFS_8_DIRECTORY = """Entry type: directory
EntryID: root
ParentID:
Stripe pattern details:
+ Type: RAID0
+ Chunksize: 1M
+ Number of storage targets: desired: 4
+ Storage Pool: 1  (default)
"""

MOOSEFS_FILE = """/mnt/mfs/shard.safetensors:
\tchunk 0: 0000000000000201_00000001 / (id:513 ver:1)
\t\tcopy 1: 192.168.1.14:9422 (status:VALID)
\t\tcopy 2: 192.168.1.15:9422 (status:VALID)
\tchunk 1: 0000000000000202_00000001 / (id:514 ver:1)
\t\tcopy 1: 192.168.1.14:9422 (status:VALID)
\t\tcopy 2: 192.168.1.16:9422 (status:VALID)
"""

GLUSTER_FILE = (
    "((<DISTRIBUTE:gv-dht> (<REPLICATE:gv-replicate-0> <POSIX(/bricks/1):node1:/bricks/1/file> "
    "<POSIX(/bricks/1):node2:/bricks/1/file>)))"
)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (parallel.lustre_stripes(LUSTRE_DIRECTORY), "stripe_count=4, stripe_size=1048576, pattern=raid0, pool=flash"),
        (parallel.lustre_stripes(LUSTRE_FILE), "stripe_count=2, stripe_size=4194304, pattern=raid0"),
        (
            parallel.lustre_stripes(LUSTRE_COMPONENTS),
            (
                "0-1048576: stripe_count=0, stripe_size=1048576, pattern=mdt; "
                "1048576-EOF: stripe_count=-1, stripe_size=4194304, pattern=raid0"
            ),
        ),
        (
            parallel.gpfs_attributes(GPFS_ATTRIBUTES),
            "data_replicas=1, metadata_replicas=1, pool=data, fileset=home_user001, attributes=ARCHIVE",
        ),
        (parallel.gpfs_facts(GPFS_FILESYSTEM), "16777216"),
        (parallel.gpfs_disks(GPFS_DISKS), "nsds=3, servers=c5n97g.ppd.pok.ibm.com+c5n98g.ppd.pok.ibm.com"),
        (parallel.beegfs_stripes(BEEGFS_FILE), "type=RAID0, chunk_size=512K, targets=4, targets_used=4"),
        (parallel.beegfs_stripes(BEEGFS_8_DIRECTORY), "type=RAID0, chunk_size=1M, targets=4, pool=1"),
        (network.moosefs_chunks(MOOSEFS_FILE), "chunks=2, copies=2, chunkservers=3"),
        (network.gluster_pathinfo(GLUSTER_FILE), "placement=distribute+replicate, bricks=2"),
    ],
)  # fmt: skip
def test_what_tools_print_is_read(shown: str, expected: str) -> None:
    """Of what the tools of parallel filesystems print, what decides how fast a checkpoint is."""
    assert shown == expected


@pytest.mark.parametrize(
    "parse",
    [
        parallel.lustre_stripes, parallel.gpfs_attributes, parallel.gpfs_facts, parallel.gpfs_disks,
        parallel.beegfs_stripes, network.moosefs_chunks, network.gluster_pathinfo, local.xfs_facts,
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["", "no such file or directory\n", "a: b\n-c  d\n"])
def test_an_answer_in_another_form_is_unknown(parse: object, answer: str) -> None:
    """A tool of a later release may print anything: then the fact is unknown, and never something else's value."""
    with pytest.raises(UnknownFactError):
        parse(answer)  # type: ignore[operator]


def tool(directory: Path, name: str, script: str) -> None:
    """Put a program of that name into a directory."""
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_a_lustre_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers, stripes of the directory and of a written file come from `lfs`, asked as it expects."""
    tool(
        tmp_path, "lfs",
        f'case "$1 $2" in "df /"*) cat <<"E"\n{LUSTRE_DF}E\n;; "getstripe -d") cat <<"E"\n{LUSTRE_DIRECTORY}E\n;; '
        f'"getstripe /"*) cat <<"E"\n{LUSTRE_FILE}E\n;; *) exit 9;; esac',
    )  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    mount = Mount("lustre", "10.0.0.1@o2ib:10.0.0.2@o2ib:/testfs", "rw,flock", "/mnt/testfs")

    assert parallel.lustre_servers(mount, tmp_path) == "mgs=10.0.0.1@o2ib:10.0.0.2@o2ib, mdts=1, osts=2"
    assert parallel.lustre_layout(mount, tmp_path).startswith("stripe_count=4")
    assert parallel.lustre_written(mount, tmp_path / "file").startswith("stripe_count=2")


def test_why_a_fact_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user reads which program is missing, failed and why, or did not answer."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool(tmp_path, "fails", "echo first >&2; echo no such device >&2; exit 3")
    tool(tmp_path, "hangs", "exec sleep 60")
    monkeypatch.setattr(known, "ANSWER_S", 0.2)

    assert known.known(lambda: known.ask("no-such-lfs")) == "unknown (the program no-such-lfs is not installed here)"
    assert known.known(lambda: known.ask("fails", "-d")) == "unknown (fails -d failed: no such device)"
    assert known.known(lambda: known.ask("hangs")) == "unknown (hangs did not answer within 0.2 s)"
    assert known.known(lambda: known.text("/no/such/file")) == "unknown (there is no /no/such/file here)"
