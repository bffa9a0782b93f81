"""`devcluster filesystems`: real filesystems on one machine, and nodes with network clients of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log
from support.filesystems import SCRIPT, Mounts, mounts_of_this_run

pytestmark = pytest.mark.filesystems


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`devcluster filesystems …`."""
    return subprocess.run(
        [SCRIPT, *arguments], env=dict(environment), capture_output=True, text=True, timeout=600, check=False
    )


def mounted_below(root: Path) -> list[str]:
    """The mount points below a directory, as this process sees them."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{root}/")]


@pytest.fixture
def fs(mounts: Mounts) -> Iterator[dict[str, str]]:
    """The environment of a second set of filesystems, beside that of the other tests."""
    mounts.start("xfs")
    with mounts_of_this_run("2") as second:
        yield second.environment | {"DEVCLUSTER_FILESYSTEMS_SIZE": "320m", "DEVCLUSTER_FILESYSTEMS_RAM_SIZE": "64m"}


def test_two_sets_at_once(fs: dict[str, str], mounts: Mounts) -> None:
    """Two checkouts may test at once, network filesystems included; stopping one leaves the other alone."""
    mounts.start("gluster")
    root = Path(fs["DEVCLUSTER_FILESYSTEMS_ROOT"])
    started = run(fs, "start", "ext4-ram", "xfs", "gluster")
    assert 0 == started.returncode, started.stderr
    assert f"export DEVCLUSTER_FILESYSTEMS={root}/mnt\n" in started.stdout
    for name in ("ext4-ram", "xfs", "gluster"):
        (root / "mnt" / name / "file").write_text(name)
    status = run(fs, "status")
    assert 0 == status.returncode
    assert [name for name in ("ext4-ram", "xfs", "gluster") if f"{root}/mnt/{name} " not in status.stdout] == []

    assert 0 == run(fs, "stop").returncode
    assert mounted_below(root) == []
    assert not any(str(root) in Path(f"/sys/block/{loop}/loop/backing_file").read_text() for loop in attached())
    assert run(mounts.environment, "status").returncode == 0

    assert 0 == run(fs, "start", "xfs", "gluster").returncode
    assert ["xfs", "gluster"] == [(root / "mnt" / name / "file").read_text() for name in ("xfs", "gluster")]
    assert 0 == run(fs, "clean").returncode
    assert not root.exists()
    assert mounted_below(root) == []


def attached() -> list[str]:
    """The loop devices that have a file."""
    return [path.parent.parent.name for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def test_a_filesystem_in_use_is_kept(fs: dict[str, str]) -> None:
    """`clean` says what is in use and how to see by whom, removes nothing, and works afterwards."""
    root = Path(fs["DEVCLUSTER_FILESYSTEMS_ROOT"])
    assert 0 == run(fs, "start", "xfs").returncode
    with (root / "mnt" / "xfs" / "file").open("w") as file:
        file.write("kept")
        file.flush()
        refused = run(fs, "clean")
        assert 1 == refused.returncode
        assert f"{root}/mnt/xfs is in use. To see by whom, type: fuser -vm {root}/mnt/xfs\n" in refused.stderr
        assert "kept" == (root / "mnt" / "xfs" / "file").read_text()
    assert 0 == run(fs, "clean").returncode


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name is as short as the script wants it, unlike that of `tmp_path` in some test runs."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def test_what_others_made_is_never_removed(short_path: Path, fs: dict[str, str]) -> None:
    """A directory without the script's mark is neither used nor cleaned."""
    (short_path / "mine").write_text("mine")
    there = fs | {"DEVCLUSTER_FILESYSTEMS_ROOT": str(short_path)}
    for verb in (["start", "xfs"], ["clean"]):
        refused = run(there, *verb)
        assert 1 == refused.returncode
        assert "Type: " in refused.stderr or "type: " in refused.stderr
    assert "mine" == (short_path / "mine").read_text()
    assert 0 == run(there, "stop").returncode
    assert ["mine"] == [path.name for path in short_path.iterdir()]


def test_everything_goes_with_its_owner(fs: dict[str, str]) -> None:
    """When the process that they were started for has ended, however it ended, nothing stays mounted."""
    root = Path(fs["DEVCLUSTER_FILESYSTEMS_ROOT"])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        started = run(fs | {"DEVCLUSTER_FILESYSTEMS_OWNER": str(owner.pid)}, "start", "xfs", "overlay")
        assert 0 == started.returncode, started.stderr
        owner.kill()
    end = time.monotonic() + 30
    while mounted_below(root):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["start"], {}, "start what? Expected one or more of: ext4"),
        (["start", "zfs"], {}, "unknown filesystem 'zfs'; expected one or more of: ext4"),
        (["start", "nfs"], {}, "Type: devcluster filesystems nfs COMMAND"),
        (["path", "xfs"], {}, "Type: devcluster filesystems start xfs"),
        (["mount"], {}, "unknown verb 'mount'; expected install, start"),
        (["start", "xfs"], {"DEVCLUSTER_FILESYSTEMS_SIZE": "1t"}, "Type: export DEVCLUSTER_FILESYSTEMS_SIZE=8g"),
        (["start", "xfs"], {"DEVCLUSTER_FILESYSTEMS_SIZE": "1m"}, "xfs: mkfs.xfs failed: "),
        (["start", "xfs"], {"DEVCLUSTER_FILESYSTEMS_OWNER": "4194305"}, "expected the pid of a live process"),
    ],
    ids=["nothing", "unknown", "nfs", "not up", "verb", "size", "too small", "owner"],
)
def test_refusals(arguments: list[str], settings: dict[str, str], told: str, fs: dict[str, str]) -> None:
    """What can't be done is one message: what happened, what was expected, what to type."""
    refused = run(fs | settings, *arguments)
    assert 1 == refused.returncode
    assert told in refused.stderr
    assert mounted_below(Path(fs["DEVCLUSTER_FILESYSTEMS_ROOT"]) / "mnt") == []


@pytest.mark.slurm
def test_each_node_has_a_client_of_its_own(
    cluster_on_gluster: Any, mounts: Mounts, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    """Two nodes and the login node are three clients of the volume, also after a crash; what one node wrote another
    one reads, and verifies, from the servers; the study's commands run on each node.
    """
    cluster = cluster_on_gluster
    cluster.control("crash", "node2")
    cluster.control("revive", "node2")
    cluster.ask("srun", "-N2", "sh", "-c", "hostname > $DEVCLUSTER_SHARED/of-$(hostname)")
    shared = mounts.root / "mnt" / "gluster"
    assert ["node1", "node2"] == [(shared / f"of-{node}").read_text().strip() for node in ("node1", "node2")]
    clients = cluster.ask(
        "gluster",
        "--mode=script",
        f"--glusterd-sock={mounts.root}/gluster/sock",
        "volume",
        "status",
        "gluster",
        "clients",
    )
    assert ["3", "3"] == [line.split()[-1] for line in clients.splitlines() if line.startswith("Clients connected")]

    prepare, between = "sh -c 'hostname > note'", "sh -c 'cat $0/note; hostname' {directory}"
    study = write_study(
        "shifted", repeats=1, warmups=0, trials="read_shift = 1\nceiling = false",
        slurm="nodes = 2\ntasks_per_node = 1", targets=f'shared = {{ prepare = "{prepare}", between = "{between}" }}',
    )  # fmt: skip
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)
    assert 0 == done.returncode, done.stdout + done.stderr
    (path,) = (tmp_path / "shifted" / "logs").glob("*.h5")
    log = timing_log.read(path)
    assert {0, 1} == {sample.rank for sample in log.samples if sample.operation == "load" and sample.valid}
    assert "fuse.glusterfs" == log.storage["filesystem"]
    assert [("prepare", 0, ""), ("between", 0, "node1\nnode1"), ("between", 1, "node1\nnode2")] == [
        (hook.when, hook.rank, hook.output) for hook in log.hooks
    ]
