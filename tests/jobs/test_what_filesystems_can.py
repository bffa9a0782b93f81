"""What the package finds out about real filesystems is what is known of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.disk import mounts, renames
from ckpt.disk.filesystems import Kind
from jobs.node import proof
from support.filesystems import Filesystem, chosen

pytestmark = [
    pytest.mark.filesystems,
    pytest.mark.parametrize("filesystem", chosen(), ids=lambda each: each.name, indirect=True),
]


def test_can_exchange(filesystem: Filesystem, tmp_path: Path) -> None:
    """Whether two directories can be exchanged is found out, and nothing is left of the trial."""
    assert filesystem.exchanges is renames.can_exchange(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_what_can_be_proven(filesystem: Filesystem, tmp_path: Path) -> None:
    """Loads are proven cold on known local filesystems on disks alone; dirty pages are seen where cachestat does."""
    found = proof._of_node(tmp_path)

    assert filesystem.sees_pages is found.dirty_seen
    assert filesystem.proves_cold is (found.cold == proof.PROVEN), found.cold


def test_kind(filesystem: Filesystem, tmp_path: Path) -> None:
    """A network filesystem is known as one, whatever the kernel calls it."""
    assert filesystem.network is (mounts.mount_of(tmp_path).facts.kind is Kind.NETWORK)
