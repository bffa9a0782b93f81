"""Tensors joined from fragments in several files, and errors about a file that is missing or another checkpoint's.

The files of a checkpoint that many ranks wrote can be mixed with those of another one by hand, or lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.errors import CheckpointError
from ckpt.state import memory
from ckpt.state.sharding import Fragment, Partition, Shard, rows_of

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State


def join(share: tuple[Shard, ...], fragments: Mapping[str, Sequence[torch.Tensor]]) -> State:
    """A share's tensors, in its order, from their fragments in the order of the rows; tied ones as one tensor."""
    import torch

    whole = {
        name: memory.own(found[0] if len(found) == 1 else torch.cat(list(found))) for name, found in fragments.items()
    }
    return {each.whole.name: whole[each.whole.owner] for each in share}


def select(known: Iterable[str], names: Collection[str] | None, directory: Path) -> list[str]:
    """Which of the known tensors to load, in their order: those of these names, or all.

    Raises:
        CheckpointError: if a name isn't known.
    """
    found = list(known)
    if names is None:
        return found
    names = set(names)
    missing = sorted(names - set(found))
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(f"{directory} has no tensor {shown}: `python -m ckpt inspect` lists those it has")
    return [name for name in found if name in names]


def require(path: Path) -> None:
    """Make sure that a file of a checkpoint is there.

    Raises:
        CheckpointError: if it isn't.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is no complete checkpoint: it lacks {path.name}")


def refuse_shards(shard_mib: int, partition: Partition) -> None:
    """Each of several ranks writes one file, whatever its size.

    Raises:
        CheckpointError: if it should write more.
    """
    if shard_mib and partition.count > 1:
        raise CheckpointError(
            f"shard_mib = {shard_mib} divides what one rank writes, but here {partition.count} ranks write a file "
            "each: leave shard_mib out, or take one rank"
        )


def rows_told(saved: Shard) -> tuple[int, int] | None:
    """What a file says of a part of a tensor: its first row, and how many the tensor has; nothing of a whole one."""
    return None if saved.is_whole else (saved.start, rows_of(saved.whole))


def compare(path: Path, fragment: Fragment, shape: Sequence[int], dtype: str, rows: Sequence[int] | None) -> None:
    """What a file holds must be what a rank of this partition saved.

    Raises:
        CheckpointError: if it holds something else.
    """
    expected = fragment.saved.layout
    found = (tuple(shape), dtype, tuple(rows) if rows else None)
    if found != (expected.shape, expected.dtype, rows_told(fragment.saved)):
        told = f" from row {rows[0]} of {rows[1]}" if rows else ""
        raise CheckpointError(
            f"{path} belongs to another checkpoint: of tensor {expected.name!r} it holds {dtype} {list(shape)}{told}, "
            f"expected {expected.dtype} {list(expected.shape)}, rows {fragment.saved.start} to {fragment.saved.stop} "
            f"of {rows_of(fragment.saved.whole)}"
        )
