"""Saves states with DTensors: all ranks of a distributed job together, as files of PyTorch's DCP.

DTensors are saved by the ranks that hold their shards. Everything else in a state is rank 0's.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckpt import agreement
from ckpt.agreement import Part
from ckpt.disk import commit, durable
from ckpt.errors import CheckpointError
from ckpt.formats import dcp_errors
from ckpt.manifest import Manifest
from ckpt.process_group.meeting import Meeting
from ckpt.state import dtypes
from ckpt.state.layout import TensorLayout
from ckpt.writing import sizes_of, staged

_STRATEGY = "torch_dcp"
"""The strategy by whose name one process loads the checkpoint."""


def save(state: Any, final: Path, timeout_s: float) -> None:
    """Save a state with DTensors; every rank of torch.distributed's default process group calls this.

    Raises:
        CheckpointError: on every rank, as `ckpt.save` does.
    """
    ranks, part = agreement.reached("ckpt.save", state, final, timeout_s)
    with ExitStack() as stack:
        stagings: list[commit.Staging] = []  # rank 0's

        def begin() -> str:
            stagings.append(stack.enter_context(staged(final)))
            return str(stagings[0].path)

        def publish() -> None:
            _manifest(part, files, stagings[0].path).write(stagings[0].path)
            stagings[0].flush()
            stack.close()

        directory = Path(ranks.share_first(begin))
        ranks.share(lambda: _require(directory))
        files = ranks.collective(lambda: _write(part, final, directory, ranks))
        ranks.share(lambda: durable.sync_files([file for file in files if file.name.startswith(f"__{ranks.rank}_")]))
        ranks.share_first(publish)


def _require(directory: Path) -> None:
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory.parent} is another directory here than on rank 0: all ranks must save to a filesystem that "
            "they share"
        )


def _write(part: Part, final: Path, directory: Path, ranks: Meeting) -> list[Path]:
    """Let all ranks write their shards with DCP; returns the files of all, without the metadata."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    from ckpt.dcp.files_writer import FilesWriter, WriteOptions

    with dcp_errors.converted(f"can't save {final}", of_ranks=True):
        metadata = state_dict_saver.save(
            part.sharded if ranks.rank else part.tensors,
            storage_writer=FilesWriter(directory, WriteOptions()),
            planner=DefaultSavePlanner(flatten_state_dict=False),
            process_group=ranks.gloo,
        )
    return sorted({directory / entry.relative_path for entry in metadata.storage_data.values()})


def _manifest(part: Part, written: list[Path], directory: Path) -> Manifest:
    return Manifest(
        strategy=_STRATEGY,
        options={},
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        tensors=tuple(TensorLayout(name, tuple(t.shape), dtypes.name_of(t)) for name, t in part.tensors.items()),
        checksums={},
        tied=part.tied,
        rest=part.rest,
        files=sizes_of(written, directory),
    )
