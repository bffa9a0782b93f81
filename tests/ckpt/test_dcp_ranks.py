"""`DirectWriter` and `DirectReader` on several ranks over gloo: sharded and replicated tensors, resharding, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.dcp_ranks import Processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Processes that save and load together."""
    with Processes(tmp_path_factory.mktemp("ranks")) as processes:
        yield processes


@pytest.mark.parametrize("writer", ["direct", "torch"])
def test_every_sharding_and_resharding(tmp_path: Path, ranks: Processes, writer: str) -> None:
    """What four ranks saved is loaded on four, two, three and one, by PyTorch's reader and the direct one, with the
    tensors sharded otherwise than they were.
    """
    ranks("save", 4, tmp_path, writer)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    for count in (4, 2, 3, 1):
        ranks("load", count, tmp_path, "direct")
    if writer == "direct":
        ranks("load", 2, tmp_path, "torch")


def test_saved_on_fewer_ranks(tmp_path: Path, ranks: Processes) -> None:
    """A checkpoint of two ranks is loaded on four."""
    ranks("save", 2, tmp_path, "direct")
    ranks("load", 4, tmp_path, "verifying")


def test_a_rank_that_fails(tmp_path: Path, ranks: Processes) -> None:
    """If a rank can't write, the save fails on every rank, and the checkpoint of before stays, alone."""
    ranks("save", 2, tmp_path, "direct")
    before = (tmp_path / "it" / ".metadata").read_bytes()
    for failing in ("0", "1"):
        ranks("fail", 2, tmp_path, failing)
        assert (tmp_path / "it" / ".metadata").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["it"]
    ranks("load", 2, tmp_path, "direct")


def test_cached_plans(tmp_path: Path, ranks: Processes) -> None:
    """DCP can keep plans from save to save, to other names."""
    ranks("save_again", 2, tmp_path, "direct")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "other"]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_asynchronous_saves(tmp_path: Path, ranks: Processes, kind: str) -> None:
    """`async_save` takes the writer with a thread and with a process, several times, and saves what was staged."""
    ranks("save_asynchronously", 4, tmp_path, kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "other"]
    ranks("load", 2, tmp_path, "direct")
