"""Wrote the frozen checkpoints beside it, with the product's code at commit 22c7ba1.

    git worktree add /tmp/earlier 22c7ba1
    PYTHONPATH=/tmp/earlier:tests python tests/ckpt/data/frozen/write.py [label ...]

Each archive is a checkpoint: `LABEL.tar.gz` by `ckpt.save`, `LABEL-2-ranks.tar.gz` by two processes, each with the
rows that it owns. An archive that exists is kept. For a strategy that this commit lacks, run a copy of this script that
imports the modules of the commit that brings the strategy.
"""

from __future__ import annotations  # noqa: I001  # modules of the earlier commit, not found here, sort as others'

import gzip
import multiprocessing
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

import ckpt
from ckpt.layout import TensorLayout
from ckpt.ranks import StoreRanks
from ckpt.sharding import Division, Part
from ckpt.strategy import create
from support.frozen import CASES, RANKS_CASES, flat_state, nested_state, rows_of_rank

RANKS = 2
TIMEOUT_S = 60


def layout() -> tuple[TensorLayout, ...]:
    """The tensors of the flat state."""
    return tuple(
        TensorLayout(
            name,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            same_as="embedding" if name == "head" else None,
        )
        for name, tensor in flat_state().items()
    )


def write_rank(rank: int, port: int, name: str, options: dict[str, Any], directory: Path) -> None:
    """Write one rank's rows."""
    store = TCPStore("127.0.0.1", port, is_master=False)
    ranks = StoreRanks(store, [(number, f"host-{number}") for number in range(RANKS)], rank, TIMEOUT_S, "all")
    strategy = create(name, options)
    strategy.prepare()
    if strategy.uses_process_group:
        ranks.use_process_group()
    part = Part(Division.of(layout(), "dim0", RANKS), rank)
    state = rows_of_rank(rank, RANKS)
    assert list(state) == [each.whole.name for each in part.writes]
    strategy.save_together(state, directory, part, ranks)


def write_ranks(name: str, options: dict[str, Any], directory: Path) -> None:
    """Write one checkpoint from several processes."""
    directory.mkdir()
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=write_rank, args=(rank, server.port, name, options, directory)) for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, (name, options)


def pack(directory: Path, archive: Path) -> None:
    """Pack a checkpoint; equal checkpoints make equal archives."""

    def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        tar.add(directory, "checkpoint", filter=without_owner)  # a directory's entries in order


def main(labels: list[str]) -> None:
    """Write the checkpoints of these labels, or all."""
    beside = Path(__file__).parent
    for name, options in CASES:
        label = create(name, options).label
        archives = {False: beside / f"{label}.tar.gz", True: beside / f"{label}-{RANKS}-ranks.tar.gz"}
        for by_ranks, archive in archives.items():
            if (
                archive.exists()
                or (labels and label not in labels)
                or (by_ranks and (name, options) not in RANKS_CASES)
            ):
                continue
            with tempfile.TemporaryDirectory() as directory:
                checkpoint = Path(directory) / "checkpoint"
                if by_ranks:
                    write_ranks(name, options, checkpoint)
                else:
                    ckpt.save(nested_state(), checkpoint, name, **options)
                pack(checkpoint, archive)
            print(archive.name, archive.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])
