"""A checkpoint becomes visible whole or not at all, and never at the expense of another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt import commit
from ckpt.errors import CheckpointError


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
    staging = commit.begin(final)
    assert staging.parent == final.parent
    assert staging.name.startswith(".partial-")
    assert listing(staging) == []
    assert not final.exists()
    (staging / "state.pth").write_text("a checkpoint")
    commit.publish(staging, final)
    assert listing(weird_path) == ["step 1", "step 1/state.pth"]


def test_permissions(tmp_path: Path) -> None:
    """A checkpoint is as readable for others as any directory that its owner makes."""
    before = os.umask(0o027)
    try:
        staging = commit.begin(tmp_path / "final")
    finally:
        os.umask(before)
    assert oct(staging.stat().st_mode & 0o777) == "0o750"


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
    """Neither what has the name nor what was written is lost, and the message says where the latter lies."""
    final = tmp_path / "final"
    staging = commit.begin(final)
    (staging / "mine").write_text("my checkpoint")
    take(final)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=staging.name):
        commit.publish(staging, final)
    assert before == listing(tmp_path)


def test_two_writers(tmp_path: Path) -> None:
    """Two that write the same checkpoint don't meet before the end; the first to publish has the name."""
    final = tmp_path / "final"
    first, second = commit.begin(final), commit.begin(final)
    assert first != second
    (first / "from").write_text("first")
    (second / "from").write_text("second")
    commit.publish(second, final)
    with pytest.raises(CheckpointError):
        commit.publish(first, final)
    assert (final / "from").read_text() == "second"
    assert (first / "from").read_text() == "first"
