"""The devices below a target, as a log has them: down to the disks, and targets that share one."""

from __future__ import annotations

import json

import pytest

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


def test_what_targets_have_in_common_is_found() -> None:
    """Two targets with a common disk are one group, whatever else each lies on."""
    below = {"a": ["vda"], "b": ["vda", "vdb"], "c": ["vdc"], "d": []}

    assert devices.in_common(below) == {"vda": ["a", "b"]}
