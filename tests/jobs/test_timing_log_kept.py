"""Writing a timing log: it replaces the one before it whole, and no failure costs what is there."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import timing_log
from support.frozen_log import exactly, version_1


def test_write_leaves_one_file_for_all_to_read(tmp_path: Path) -> None:
    """A log replaces the one before it, leaves nothing beside it, and others may read it."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    log = version_1()
    log.samples = log.samples[:1]
    log.write(path)

    assert len(timing_log.read(path).samples) == 1
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_mode & 0o777 == 0o644


@contextmanager
def _largest_file(size_bytes: int) -> Iterator[None]:
    """As on a full disk: no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room_bytes", [0, 100, 5000, 20_000])
def test_full_disk_keeps_the_old_log(room_bytes: int, tmp_path: Path) -> None:
    """Where the disk is full the write fails with an OSError, the old log stays, and nothing else is left.

    HDF5 itself would end the process by a segmentation fault.
    """
    path = tmp_path / "log.h5"
    version_1().write(path)
    before = path.read_bytes()
    longer = version_1()
    longer.samples *= 500

    with _largest_file(room_bytes), pytest.raises(OSError, match="File too large"):
        longer.write(path)

    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())
    longer.write(path)
    assert len(timing_log.read(path).samples) == 2000


def test_failure_while_writing_keeps_the_old_log(tmp_path: Path) -> None:
    """A value that HDF5 can't store fails the write; the old log stays, and nothing else is left."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    broken = version_1()
    broken.provenance["host"] = object()

    with pytest.raises(TypeError):
        broken.write(path)

    assert exactly(version_1()) == exactly(timing_log.read(path))
    assert [path] == list(tmp_path.iterdir())


def test_directory_that_is_gone(tmp_path: Path) -> None:
    """A log whose directory is gone can't be written, and that is an OSError."""
    with pytest.raises(OSError, match="No such file or directory"):
        version_1().write(tmp_path / "gone" / "log.h5")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_directory_keeps_the_old_log(tmp_path: Path) -> None:
    """In a directory that became read-only the write fails with an OSError, and the old log stays."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            version_1().write(path)
    finally:
        tmp_path.chmod(0o700)

    assert exactly(version_1()) == exactly(timing_log.read(path))
