"""Small files that appear under their names only when they are complete."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ckpt.disk import durable
from ckpt.disk.durable import write_atomically

pytestmark = pytest.mark.every_filesystem


def test_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """An earlier file is replaced by a new one, text is stored as UTF-8, and no other file is left."""
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as old:
        write_atomically(path, "größer\n", sync=True)
        assert old.read() == "old"
    assert path.read_bytes() == "größer\n".encode()
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
def test_an_error_leaves_the_earlier_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step fails, the earlier file stays and the incomplete one is removed."""
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if step == "replace" else os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new", sync=True, mode=0o644)
    assert path.read_text() == "old"
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o644, 0o644), (0o600, 0o600)])
def test_permissions(mode: int | None, expected: int, tmp_path: Path) -> None:
    """The umask decides unless a mode is given."""
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"", sync=False, mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second writer that comes while the first is writing has a file of its own: each file is complete."""
    path = tmp_path / "file"
    fchmod = os.fchmod

    def second_writer(descriptor: int, mode: int) -> None:
        monkeypatch.setattr(os, "fchmod", fchmod)
        write_atomically(path, b"second", sync=False)
        assert path.read_bytes() == b"second"
        fchmod(descriptor, mode)

    monkeypatch.setattr(durable.os, "fchmod", second_writer)
    write_atomically(path, b"first", sync=False, mode=0o644)
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("sync", [True, False])
def test_syncs_when_asked(sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is synced once, before the file has its name; without `sync` not at all."""
    named: list[bool] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        named.append((tmp_path / "file").exists())
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", note)
    write_atomically(tmp_path / "file", b"x", sync=sync)
    assert named == [False] * sync


def test_a_filesystem_that_syncs_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That ends no save; a file that can't be synced does."""
    (tmp_path / "file").write_text("content")
    synced: list[str] = []

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or synced:
            raise OSError(errno.EINVAL, "Invalid argument")
        synced.append("file")

    monkeypatch.setattr(os, "fsync", refuse)
    durable.flush(tmp_path)
    assert synced
    with pytest.raises(OSError, match="Invalid argument"):
        durable.fsync_path(tmp_path / "file")
