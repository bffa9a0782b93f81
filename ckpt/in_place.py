"""Loads a checkpoint into a state that exists: its tensors and arrays are filled where they are, without a second copy.

Everything is compared before the first byte is changed: names, shapes, dtypes, and what shares memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ckpt.errors import CheckpointError
from ckpt.manifest import Manifest
from ckpt.reading import checker, reader_of, require_complete
from ckpt.state import dtypes, memory, ties
from ckpt.state.layout import TensorLayout
from ckpt.strategy import CheckTensor, Strategy
from ckpt.tree import dtensors, nested

_STAGED_BYTES = 32 * 2**20
"""The most memory for tensors that can't be read into, unless one is larger: they are copied."""

_MOST_NAMED = 5

_DCP = ("torch_dcp", "torch_dcp_direct")


@dataclass(frozen=True, slots=True)
class Filled:
    """The outcome of a load into a state that exists."""

    state: Any
    """The state as the checkpoint has it: its containers and plain values, with the tensors that were given.

    It has None for a tensor that wasn't given.
    """
    missing: tuple[str, ...]
    """The names of given tensors that the checkpoint lacks; they are unchanged."""
    unexpected: tuple[str, ...]
    """The names of tensors in the checkpoint that weren't given; they were not read."""


def fill(
    path: Path, shown: Path, known: Manifest | None, *, into: Any, strict: bool, verify: bool, options: dict[str, Any]
) -> Filled:
    """Load a checkpoint into the tensors and arrays of a state; see `ckpt.load`.

    Args:
        path: of the checkpoint.
        shown: the path for messages.
        known: its manifest; None of what another program wrote.
        into: the state.
        strict: raise an error if the names differ.
        verify: compare every tensor's checksum with the manifest's.
        options: of the strategy.

    Raises:
        CheckpointError: as `ckpt.load` does.
    """
    if known is None:
        raise CheckpointError(
            f"{shown} was written by another program, and only checkpoints of ckpt.save can be loaded into a state "
            "that exists: load it without `into`, or convert it with `python -m ckpt convert`"
        )
    require_complete(path, known)
    given = nested.leaves_of(into)
    stored = {tensor.name: tensor for tensor in known.tensors}
    owner_of = {name: known.tied.get(name, name) for name in (*stored, *known.tied)}
    missing = tuple(name for name in given.tensors if name not in owner_of)
    unexpected = tuple(name for name in owner_of if name not in given.tensors)
    if strict and (missing or unexpected):
        raise CheckpointError(_difference(shown, missing, unexpected))
    targets = {name: tensor for name, tensor in given.tensors.items() if name in owner_of}
    _compare(shown, targets, {name: stored[owner_of[name]] for name in targets})
    if copied := [name for name in given.copied if name in targets]:
        raise CheckpointError(
            f"{_listed(copied)} of the state can't be filled: an array must be C-contiguous and writable, and of the "
            "native byte order; no tensor was changed"
        )
    _refuse_overlaps(targets, owner_of)
    check = checker(known.checksums, path) if verify and known.checksums else None
    reader = reader_of(known, options, verify=verify)
    with _partly_overwritten(path):
        left = targets if check or known.strategy not in _DCP else _fill_shards(path, targets, owner_of, verify=verify)
        _fill(reader, path, left, owner_of, check)
    _mark(targets.values())
    return Filled(nested.restore_with(known.rest, given.leaves), missing, unexpected)


def _fill(
    reader: Strategy,
    path: Path,
    targets: Mapping[str, torch.Tensor],
    owner_of: Mapping[str, str],
    check: CheckTensor | None,
) -> None:
    """Read straight into the tensors that allow it, and let the others be copies of what is read."""
    wanted: dict[str, list[torch.Tensor]] = {}  # by owner, without tied ones
    seen = set()
    for name, target in targets.items():
        identity = dtensors.identity(target) if dtensors.is_dtensor(target) else ties.identity(target)
        if identity not in seen:
            seen.add(identity)
            wanted.setdefault(owner_of[name], []).append(target)
    direct = {}
    for owner, tensors in wanted.items():
        tensors.sort(key=_is_readable_into, reverse=True)
        if _is_readable_into(tensors[0]):
            direct[owner] = tensors.pop(0).detach()
    _read(reader, path, direct, check)
    for owner, target in direct.items():
        _copy(target, wanted.pop(owner))
    for batch in _batches(wanted, all_at_once=not reader.capabilities.partial_load):
        _read_copies(reader, path, {owner: wanted[owner] for owner in batch}, check)


def _mark(changed: Iterable[torch.Tensor]) -> None:
    """Let autograd know that tensors were changed."""
    for target in changed:
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)


def _fill_shards(
    path: Path, targets: Mapping[str, torch.Tensor], owner_of: Mapping[str, str], *, verify: bool
) -> dict[str, torch.Tensor]:
    """Read this rank's shards of DTensors from a checkpoint of DCP, and no more; returns the targets that are left."""
    wanted: dict[str, Any] = {}
    left = dict(targets)
    for name, target in dtensors.among(targets).items():
        first = wanted.setdefault(owner_of[name], target)
        if dtensors.identity(first) == dtensors.identity(target):
            del left[name]
    if wanted:
        from ckpt.dcp import dtensors as shards

        shards.fill(path, {owner: target.detach() for owner, target in wanted.items()}, verify=verify)
    return left


@contextmanager
def _partly_overwritten(path: Path) -> Iterator[None]:
    """Report with an error of a read that the state may have changed."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        text = str(error) if isinstance(error, CheckpointError) else f"can't read {path}: {error}"
        raise CheckpointError(
            f"{text}. The state may be overwritten in part: load a checkpoint into it before you use it"
        ) from error


def _read(reader: Strategy, path: Path, targets: dict[str, torch.Tensor], check: CheckTensor | None) -> None:
    reader.fill_checked(path, targets, check or (lambda *_: None))


def _read_copies(
    reader: Strategy, path: Path, wanted: Mapping[str, list[torch.Tensor]], check: CheckTensor | None
) -> None:
    """Read into memory of its own, which ends with the call, and copy that."""
    staged = {owner: memory.empty(_layout(owner, tensors[0])) for owner, tensors in wanted.items()}
    _read(reader, path, staged, check)
    for owner, tensor in staged.items():
        _copy(tensor, wanted[owner])


def _copy(source: torch.Tensor, targets: Iterable[torch.Tensor]) -> None:
    for target in targets:
        if dtensors.is_dtensor(target):
            from ckpt.dcp import dtensors as shards

            shards.copy_shard(target.detach(), source)
        else:
            target.detach().copy_(source)


def _is_readable_into(tensor: torch.Tensor) -> bool:
    """Return whether a file can be read into a tensor's memory."""
    is_plain = not dtensors.is_dtensor(tensor) and not tensor.is_conj() and not tensor.is_neg()
    return is_plain and tensor.device.type == "cpu" and tensor.is_contiguous()


def _layout(name: str, tensor: torch.Tensor) -> TensorLayout:
    return TensorLayout(name, tuple(tensor.shape), dtypes.name_of(tensor))


def _batches(wanted: Mapping[str, list[torch.Tensor]], *, all_at_once: bool) -> Iterator[list[str]]:
    """Divide tensors that are copied, so that little memory is needed."""
    batch: list[str] = []
    size_bytes = 0
    for owner, tensors in wanted.items():
        if batch and not all_at_once and size_bytes + tensors[0].nbytes > _STAGED_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(owner)
        size_bytes += tensors[0].nbytes
    if batch:
        yield batch


def _compare(shown: Path, targets: Mapping[str, torch.Tensor], stored: Mapping[str, TensorLayout]) -> None:
    """Compare shapes and dtypes."""
    differing = [
        f"{name!r} is {dtypes.name_of(target)} {list(target.shape)}, and {stored[name].dtype} "
        f"{list(stored[name].shape)} in the checkpoint"
        for name, target in targets.items()
        if (tuple(target.shape), dtypes.name_of(target)) != (stored[name].shape, stored[name].dtype)
    ]
    if differing:
        more = f"; and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
        raise CheckpointError(
            f"{shown} can't be loaded into this state: {'; '.join(differing[:_MOST_NAMED])}{more}. "
            "No tensor was changed"
        )


def _refuse_overlaps(targets: Mapping[str, torch.Tensor], owner_of: Mapping[str, str]) -> None:
    """Refuse two tensors of the checkpoint for the same memory: the last one read would win."""
    spans = sorted(
        (target.data_ptr(), target.data_ptr() + target.nbytes, owner_of[name], name)
        for name, target in targets.items()
        if target.numel() and _is_readable_into(target)
    )
    for (_, end, owner, name), (start, _, next_owner, next_name) in pairwise(spans):
        if start < end and owner != next_owner:
            raise CheckpointError(
                f"{name!r} and {next_name!r} share memory in the state, and are two tensors in the checkpoint: give "
                "one of them only, with strict=False; no tensor was changed"
            )


def _difference(shown: Path, missing: tuple[str, ...], unexpected: tuple[str, ...]) -> str:
    parts = [f"the checkpoint lacks {_listed(missing)}"] if missing else []
    parts += [f"the state lacks {_listed(unexpected)}"] if unexpected else []
    return (
        f"{shown} can't be loaded into this state: {'; '.join(parts)}. With strict=False, what both have is loaded; no "
        "tensor was changed"
    )


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(repr, names[:_MOST_NAMED])) + more
