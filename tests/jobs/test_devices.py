"""The devices below a target, as a log has them: down to the disks, and targets that share one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt.disk.block_devices import BlockDevice
from jobs import check
from jobs.plan.study import Target
from jobs.timing_log import devices

DISK = {"name": "vda", "kind": "disk", "below": []}
LOOP = {"name": "loop0", "kind": "loop", "image": "/images/ext4", "below": [DISK]}


def test_disks_lie_below_everything_else() -> None:
    """Loop devices, RAID and partitions are not the disks; what lies below them is."""
    raid = {"name": "md0", "kind": "md", "below": [{"name": "sda", "kind": "disk", "below": []}, LOOP]}

    assert devices.disks(devices.parsed(json.dumps([raid]))) == {"sda", "vda"}


def test_an_earlier_log_names_the_disk_alone() -> None:
    """Before devices were followed down, the log had one object: the disk, with its model."""
    assert devices.disks(devices.parsed('{"name": "nvme0n1", "model": "fast"}')) == {"nvme0n1"}


@pytest.mark.parametrize(
    "device", [None, 3, "unknown (LookupError)", "[", "[" * 10_000, "[1, {}]", '[{"name": 1}]', '{"kind": "disk"}']
)
def test_what_is_no_list_of_devices_names_none(device: object) -> None:
    """A log may hold any text: then no device is known."""
    assert devices.disks(devices.parsed(device)) == set()


def test_targets_on_one_disk_are_found() -> None:
    """Two targets with a common disk are one group, whatever else each lies on."""
    disks_of = {"a": ["vda"], "b": ["vda", "vdb"], "c": ["vdc"], "d": []}

    assert devices.on_one_disk(disks_of) == {"vda": ["a", "b"]}


def test_check_notices_targets_on_one_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two directories of one disk are named; the axes of one target, and a path that isn't there, are not."""
    monkeypatch.setattr(check.block_devices, "devices_below", lambda path: (BlockDevice(f"v{path.name[0]}", "disk"),))
    for name in ("da", "db", "e"):
        (tmp_path / name).mkdir()
    paths = {"a": "da", "b": "db", "b+n=1": "db", "other": "e", "absent": "$NO_SUCH_VARIABLE"}
    studied = {
        name: Target(path=path if path.startswith("$") else str(tmp_path / path)) for name, path in paths.items()
    }

    found = list(check._on_one_disk(studied))

    assert [finding.about for finding in found] == ["target 'a'", "target 'b'"]
    assert {finding.what for finding in found} == {"lies on the disk vd, as other targets do"}
