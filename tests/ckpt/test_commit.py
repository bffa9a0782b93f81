"""A checkpoint becomes visible whole or not at all, and never at the expense of another."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt.disk import commit, durable, leftovers
from ckpt.disk.pinned import identity
from ckpt.errors import CheckpointError

pytestmark = pytest.mark.every_filesystem


def _take_by_directory(final: Path) -> None:
    final.mkdir()
    (final / "other").write_text("another checkpoint")


TAKERS: dict[str, Callable[[Path], None]] = {
    "a checkpoint": _take_by_directory,
    "an empty directory": Path.mkdir,
    "a file": Path.touch,
    "a dangling link": lambda final: final.symlink_to("nowhere"),
}


def listing(directory: Path) -> list[str]:
    """Everything below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_begin_and_publish(weird_path: Path) -> None:
    """Until it is published a checkpoint lies beside its name, under one that says that it is none."""
    final = weird_path / "step 1"
    with commit.begin(final) as staging:
        assert staging.path.parent == final.parent
        assert staging.path.name.startswith(".partial-")
        assert listing(staging.path) == []
        assert not final.exists()
        (staging.path / "state.pth").write_text("a checkpoint")
        staging.publish()
    assert listing(weird_path) == ["step 1", "step 1/state.pth"]


def test_permissions(tmp_path: Path) -> None:
    """A checkpoint is as readable for others as any directory that its owner makes."""
    before = os.umask(0o027)
    try:
        with commit.begin(tmp_path / "final") as staging:
            mode = staging.path.stat().st_mode
    finally:
        os.umask(before)
    assert oct(mode & 0o777) == "0o750"


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_begin_where_the_name_is_taken(take: Callable[[Path], None], tmp_path: Path) -> None:
    """A name that anything has is refused before anything is written."""
    final = tmp_path / "final"
    take(final)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match="exists already"):
        commit.begin(final)
    assert before == listing(tmp_path)


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_publish_where_the_name_was_taken_meanwhile(take: Callable[[Path], None], tmp_path: Path) -> None:
    """What has the name stays as it is; what was written is removed, and the message says so."""
    final = tmp_path / "final"
    with commit.begin(final) as staging:
        (staging.path / "mine").write_text("my checkpoint")
        take(final)
        with pytest.raises(CheckpointError, match="what lies there stays, what this save wrote is removed"):
            staging.publish()
    expected = tmp_path / "expected"
    expected.mkdir()
    take(expected / "final")
    assert listing(expected) == [path for path in listing(tmp_path) if not path.startswith("expected")]


@pytest.mark.every_filesystem(only="exchanges")
@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
def test_two_savers(exists: bool, tmp_path: Path) -> None:  # pytest's parameter
    """Two that write the same checkpoint don't meet before the end: the first to publish has the name, the other one
    an error that says so, and nothing is left beside.
    """
    final = tmp_path / "final"
    if exists:
        final.mkdir()
    first, second = (commit.begin(final, replaces=identity(final)) for _ in range(2))
    with first, second:
        assert first.path != second.path
        (first.path / "from").write_text("first")
        (second.path / "from").write_text("second")
        second.publish()
        with pytest.raises(CheckpointError, match="another save"):
            first.publish()
    assert listing(tmp_path) == ["final", "final/from"]
    assert (final / "from").read_text() == "second"


@pytest.mark.every_filesystem(only="exchanges")
def test_the_old_checkpoint_was_removed_meanwhile(tmp_path: Path) -> None:
    """Who removes the checkpoint that a save is to replace does not take the new one with it."""
    final = tmp_path / "final"
    final.mkdir()
    with commit.begin(final, replaces=identity(final)) as staging:
        (staging.path / "from").write_text("new")
        final.rmdir()
        staging.publish()
    assert listing(tmp_path) == ["final", "final/from"]


def test_a_directory_that_was_taken_away_is_not_published(tmp_path: Path) -> None:
    """A staging directory that was removed and made anew, as some libraries do, is no longer the save's own."""
    final = tmp_path / "final"
    with commit.begin(final) as staging:
        staging.path.rmdir()
        staging.path.mkdir()
        with pytest.raises(CheckpointError, match="was removed while it was being written"):
            staging.publish()
    assert listing(tmp_path) == []


def test_a_new_directory_is_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of a directory and its lock another save may lock it, or remove it: the save takes another."""
    final = tmp_path / "final"
    attempts: list[Path] = []
    thieves: list[int] = []
    lock = leftovers.lock

    def slow_lock(descriptor: int) -> leftovers.Lock:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        attempts.append(path)
        if len(attempts) == 1:  # another save holds it
            thieves.append(os.open(path, os.O_RDONLY))
            assert lock(thieves[0]) is leftovers.Lock.TAKEN
        if len(attempts) == 2:  # another save has removed it
            path.rmdir()
        return lock(descriptor)

    monkeypatch.setattr(leftovers, "lock", slow_lock)
    with commit.begin(final) as staging:
        assert [staging.path] == attempts[2:]
        monkeypatch.undo()
        left, used = leftovers.of(final)
        assert leftovers.Use.WRITING is leftovers.use_of(left if left.path == staging.path else used)
    os.close(thieves[0])


class TestFailingSync:
    """The last sync of a save fails: the name is there, and nobody knows whether it will last."""

    @pytest.fixture
    def fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Syncing the parent directory fails, once a checkpoint has its name."""
        sync = durable.fsync_path

        def failing(path: Path | str) -> None:
            if Path(path) == tmp_path and (tmp_path / "final" / "new").exists():
                raise OSError(errno.EIO, "Input/output error")
            sync(path)

        monkeypatch.setattr(durable, "fsync_path", failing)
        yield
        monkeypatch.undo()

    @pytest.mark.usefixtures("fails")
    def test_the_message(self, tmp_path: Path) -> None:
        """It names what lies there: the new checkpoint."""
        with commit.begin(tmp_path / "final") as staging:
            (staging.path / "new").touch()
            with pytest.raises(CheckpointError, match="final is the new checkpoint, but its directory could not be"):
                staging.publish()
        assert listing(tmp_path) == ["final", "final/new"]

    @pytest.mark.every_filesystem(only="exchanges")
    @pytest.mark.usefixtures("fails")
    def test_the_old_one_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was replaced is removed by the next save, which can sync, and not before."""
        final = tmp_path / "final"
        final.mkdir()
        (final / "old").touch()
        with commit.begin(final, replaces=identity(final)) as staging:
            (staging.path / "new").touch()
            with pytest.raises(CheckpointError, match=f"is kept in {staging.path}"):
                staging.publish()
        assert listing(staging.path) == ["old"]
        assert listing(final) == ["new"]
        commit.begin(final, replaces=identity(final)).discard()
        assert listing(staging.path) == ["old"]
        monkeypatch.undo()
        commit.begin(final, replaces=identity(final)).discard()
        assert listing(tmp_path) == ["final", "final/new"]


@pytest.mark.every_filesystem(only="exchanges")
def test_an_interrupt_between_the_exchange_and_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint is not removed before the exchange is durable: a power cut would leave neither."""
    final = tmp_path / "final"
    final.mkdir()
    events: list[str] = []
    sync, remove = durable.fsync_path, shutil.rmtree

    def interrupted_once(path: Path | str) -> None:
        if Path(path) == tmp_path:
            events.append("sync")
            if len(events) == 1:
                raise KeyboardInterrupt
        sync(path)

    def noted(path: Path, **options: bool) -> None:
        events.append("remove")
        remove(path, **options)

    staging = commit.begin(final, replaces=identity(final))
    monkeypatch.setattr(durable, "fsync_path", interrupted_once)
    monkeypatch.setattr(shutil, "rmtree", noted)
    with pytest.raises(KeyboardInterrupt), staging:
        staging.publish()
    assert ["sync", "sync", "remove"] == events
