"""Saves and loads states with DTensors: all ranks of a distributed job together, as files of PyTorch's DCP.

DTensors are saved by the ranks that hold their shards. Everything else in a state is rank 0's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ckpt import agreement, manifest
from ckpt.agreement import Part
from ckpt.disk import commit, durable
from ckpt.errors import CheckpointError
from ckpt.formats import dcp_errors, dcp_metadata
from ckpt.manifest import Manifest
from ckpt.process_group.meeting import Meeting
from ckpt.process_group.nodes import Nodes
from ckpt.reading import of_one
from ckpt.state import checksums, dtypes
from ckpt.state.layout import State, TensorLayout
from ckpt.writing import sizes_of, staged

if TYPE_CHECKING:
    from ckpt.dcp.planned import Apart, PlannedSave

_STRATEGY = "torch_dcp_direct"
"""The strategy by whose name one process loads the checkpoint."""

_T = TypeVar("_T")


def save(state: Any, final: Path, timeout_s: float) -> None:
    """Save a state with DTensors; every rank of torch.distributed's default process group calls this.

    Raises:
        CheckpointError: on every rank, as `ckpt.save` does.
    """
    ranks, part = agreement.reached("ckpt.save", state, final, timeout_s)
    write(plan(ranks, part), final)


@dataclass(frozen=True, slots=True)
class Planned:
    """A save on which the ranks have agreed, and that needs nothing of the program's state but `planner.data`."""

    ranks: Meeting
    part: Part
    planner: PlannedSave
    """Has the data that this rank may have to write; give it copies if the state may change before `write` ends."""


def plan(ranks: Meeting, part: Part) -> Planned:
    """Plan what every rank writes; every rank calls this.

    Raises:
        CheckpointError: on every rank, if one can't plan.
    """
    from ckpt.dcp.planned import PlannedSave

    mine: list[PlannedSave] = []
    tensors = part.sharded if ranks.rank else part.tensors
    ranks.share(lambda: mine.append(PlannedSave(tensors, is_coordinator=not ranks.rank)))
    return Planned(ranks, part, mine[0])


def write(
    planned: Planned,
    final: Path,
    notes: Mapping[str, Any] | None = None,
    nodes: Nodes | None = None,
    apart: Apart | None = None,
) -> None:
    """Write and commit a checkpoint; every rank calls this.

    Args:
        planned: what to write.
        final: the checkpoint's name.
        notes: kept in the manifest.
        nodes: where every node has a directory of that name of its own, in which its ranks' part of the checkpoint is
            committed; None if all ranks share one.
        apart: calls what writes this rank's files with `planner.data`; None to call it here.

    Raises:
        CheckpointError: on every rank. Of several nodes, some may have committed their parts.
    """
    ranks = planned.ranks
    if nodes is None:
        nodes = Nodes((0,) * ranks.size, ranks.rank)
    part = {"part": [nodes.number, nodes.count]} if nodes.count > 1 else {}
    with ExitStack() as stack:
        stagings: list[commit.Staging] = []  # a leader's

        def begin() -> str:
            stagings.append(stack.enter_context(staged(final)))
            return str(stagings[0].path)

        def publish() -> None:
            here = [file for rank, file in files if nodes.is_here(rank)]
            _manifest(planned.part, here, directory, {**(notes or {}), **part}).write(directory)
            stagings[0].flush()
            stack.close()

        begun = ranks.share(lambda: begin() if nodes.leads else None)
        directory = Path(begun[nodes.leader])
        ranks.share(lambda: _require(directory))
        files = ranks.collective(lambda: _write(planned, final, directory, apart))
        if nodes.count > 1:
            ranks.collective(lambda: _spread_metadata(directory, nodes, ranks.gloo))
        ranks.share(lambda: durable.sync_files([file for rank, file in files if rank == ranks.rank]))
        ranks.share(lambda: publish() if nodes.leads else None)


def load(into: Any, final: Path, fill: Callable[[Path, Path, Manifest | None], _T], timeout_s: float) -> _T:
    """Load into a state with DTensors; every rank of torch.distributed's default process group calls this.

    Args:
        into: the state.
        final: the checkpoint's path.
        fill: loads what this rank has of the state, and calls no other rank; takes what `reading.of_one` gives.
        timeout_s: how long to wait for the other ranks.

    Returns:
        What `fill` returned on this rank.

    Raises:
        CheckpointError: on every rank, as `ckpt.load` does; and if the ranks didn't load the same checkpoint.
    """
    ranks, _ = agreement.reached("ckpt.load", into, final, timeout_s)
    filled: list[_T] = []

    def load_here(path: Path, shown: Path, known: Manifest | None) -> str:
        filled.append(fill(path, shown, known))
        return fingerprint(path)

    if len(set(ranks.share(lambda: of_one(final, load_here)))) > 1:
        raise CheckpointError(
            f"{final} was replaced by another save while the ranks were loading it, and the state has parts of both: "
            "load it again"
        )
    return filled[-1]


def fingerprint(path: Path) -> str:
    """Return what tells a checkpoint from any other; DCP's metadata has a random number."""
    files = [path / name for name in (manifest.FILE, dcp_metadata.FILE)]
    return checksums.of_bytes(b"".join(file.read_bytes() for file in files if file.exists()))


def _require(directory: Path) -> None:
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory.parent} is another directory here than on rank 0: all ranks must save to a filesystem that "
            "they share"
        )


def _spread_metadata(directory: Path, nodes: Nodes, gloo: Any) -> None:
    """Let every node have the metadata that rank 0 wrote."""
    import torch.distributed as dist

    path = directory / dcp_metadata.FILE
    content = [path.read_bytes() if not nodes.rank else b""]
    dist.broadcast_object_list(content, src=0, group=gloo)
    if nodes.leads and nodes.rank:
        path.write_bytes(content[0])


def _write(planned: Planned, final: Path, directory: Path, apart: Apart | None) -> list[tuple[int, Path]]:
    """Let all ranks write their shards with DCP; returns the files of all, with their ranks, without the metadata."""
    from torch.distributed.checkpoint import state_dict_saver

    from ckpt.dcp.planned import PlannedWriter

    def here(function: Callable[[State], Any]) -> Any:
        return function(planned.planner.data)

    with dcp_errors.converted(f"can't save {final}", of_ranks=True):
        metadata = state_dict_saver.save(
            {},
            storage_writer=PlannedWriter(directory, apart or here),
            planner=planned.planner,
            process_group=planned.ranks.gloo,
        )
    names = {entry.relative_path for entry in metadata.storage_data.values()}
    return sorted((dcp_metadata.rank_of(name), directory / name) for name in names)


def _manifest(part: Part, written: list[Path], directory: Path, notes: Mapping[str, Any]) -> Manifest:
    return Manifest(
        strategy=_STRATEGY,
        options={},
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        tensors=tuple(TensorLayout(name, tuple(t.shape), dtypes.name_of(t)) for name, t in part.tensors.items()),
        checksums={},
        tied=part.tied,
        rest=part.rest,
        files=sizes_of(written, directory),
        notes=dict(notes),
    )
