"""What other filesystems do to a commit, played on the local one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ckpt.disk import commit
from ckpt.errors import CheckpointError


def test_a_directory_with_the_inode_number_of_the_one_that_was_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server may use the number again at once: the new directory isn't the save's own, and isn't published."""
    monkeypatch.setattr(commit, "identity", lambda _: (1, 1))
    with commit.begin(tmp_path / "final") as staging:
        staging.path.rmdir()
        staging.path.mkdir()
        with pytest.raises(CheckpointError, match="was removed while it was being written"):
            staging.publish()


def test_a_filesystem_that_counts_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every directory has 0 links, as with some programs of FUSE, that says nothing."""
    fstat = os.fstat

    def without_links(descriptor: int) -> os.stat_result:
        status = list(fstat(descriptor))
        status[stat.ST_NLINK] = 0
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", without_links)
    with commit.begin(tmp_path / "final") as staging:
        staging.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
