"""The state that a study saves: built from a model's configuration, seeded, and identified by a digest."""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ckpt.errors import CheckpointError
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state.compare import as_bytes, flat
from ckpt.state.layout import Layout, State, layout_of_state, parameters, state_bytes
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.workload import values
from ckpt.workload.spec import StateSpec, layout_of, meta_layout, state_of
from ckpt.workload.values import Block, Piece, pieces

_Result = TypeVar("_Result")

_ALONE = SingleProcess()


def build(spec: StateSpec, part: RankShards | None = None) -> State:
    """The state that a study asks for, in memory of its own; or one rank's part of it: what `part.held` says.

    `part` is of a partition of `layout_of(spec)` among all ranks, not of a window.
    A part has the values that it has in the whole, and takes little more memory than its own size to build; so do
    real weights where `values.RealWeights` can read them by blocks, else the whole model is loaded first.

    Raises:
        CheckpointError: if the model can't be built, or what transformers builds isn't what was planned.
    """
    planned = layout_of(spec)
    if state_of(meta_layout(spec), spec) != planned:
        raise CheckpointError(
            f"transformers builds other tensors for {spec.model!r} than were planned: report it, with the "
            "model's config.json"
        )
    share = (part or _alone(planned)).held
    block = values.of(spec, planned)
    state: State = {}
    for each in share:
        tensor = each.whole
        if tensor.same_as is not None:
            state[tensor.name] = state[tensor.same_as]
        else:
            state[tensor.name] = torch.empty(each.layout.shape, dtype=getattr(torch, tensor.dtype))
    fill(state, share, block)
    return state


def fill(state: State, share: tuple[Shard, ...], block: Block) -> None:
    """Give every element of a share its value."""

    def fill_piece(piece: Piece) -> None:
        flat(state[piece.tensor.name])[piece.held].copy_(block(piece.tensor, piece.number)[piece.within])

    _on_all_cores(fill_piece, pieces(share))


def digest(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and every byte; the same whoever computes it, in however many parts."""
    layout = layout_of_state(state)
    return _digest(layout, _hashes(state, _alone(layout).held, None))


def _digest(layout: Layout, hashes: Mapping[str, bytes]) -> str:
    """The digest of a state, from those of its blocks, one behind the other; tied tensors have their first one's."""
    whole = hashlib.sha256()
    for tensor in layout:
        whole.update(repr((tensor.name, tensor.dtype, tensor.shape)).encode("utf-8", "surrogatepass"))
        whole.update(hashes.get(tensor.same_as or tensor.name, b""))
    return whole.hexdigest()


def _hashes(state: State, share: tuple[Shard, ...], block: Block | None) -> dict[str, bytes]:
    """SHA-256 of each block that begins in a share, one behind the other, by tensor.

    Of a block that only partly lies there `block` tells the rest, once it agrees with what does.
    """
    by_name = {name: flat(tensor) for name, tensor in state.items()}

    def hash_piece(piece: Piece) -> tuple[str, bytes]:
        held = by_name[piece.tensor.name][piece.held]
        whole = held
        if not piece.is_whole:
            assert block is not None
            whole = block(piece.tensor, piece.number).to(held.dtype)
            if not torch.equal(as_bytes(held), as_bytes(whole[piece.within])):
                raise CheckpointError(
                    f"{piece.tensor.name}: block {piece.number} has other values than it was built with: "
                    "this machine's memory, or what changed the state since, is at fault"
                )
        begins = piece.within.start == 0
        return piece.tensor.name, hashlib.sha256(as_bytes(whole).numpy().data).digest() if begins else b""

    found: dict[str, bytes] = {}
    for name, hashed in _on_all_cores(hash_piece, pieces(share)):
        found[name] = found.get(name, b"") + hashed
    return found


def _alone(layout: Layout) -> RankShards:
    """The part of a process that has no others: everything."""
    return RankShards(Partition.of(layout, "dim0", 1), 0)


def _on_all_cores(work: Callable[[Piece], _Result], each: Iterable[Piece]) -> list[_Result]:
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(work, each))


def describe(
    state: State, spec: StateSpec, part: RankShards | None = None, ranks: ProcessGroup = _ALONE
) -> dict[str, Any]:
    """The facts about a whole state that a timing log keeps; every rank calls it, with its part, and the first knows.

    The digest is the same for every number of ranks and every way to share the state.

    Args:
        state: what `part.held` says, as it was built.
        spec: which state it is.
        part: this rank's; None for all of it.
        ranks: those that share the state, in the order of their parts.

    Returns:
        On the first rank the facts, on the others nothing.

    Raises:
        CheckpointError: if what a rank holds is not what it was built with, where a block of its values lies with
            several ranks; and if ranks that should hold the same don't.
        LostRankError: if a rank did not come.
    """
    part = part or _alone(layout_of_state(state))
    layout, share = part.partition.tensors, part.held
    block = None if all(piece.is_whole for piece in pieces(share)) else values.of(spec, layout)
    hashes = _hashes(state, share, block)
    if part.partition.sharding == "replicated":
        found = ranks.gather(_digest(layout, hashes))
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            raise CheckpointError(f"rank 0 holds another state than rank {', '.join(map(str, others[:5]))}")
        whole = found[0] if found else ""
    else:
        gathered: dict[str, bytes] = {}
        for each in ranks.gather({name: b64encode(hashed).decode() for name, hashed in hashes.items() if hashed}):
            for name, hashed in each.items():  # a tensor's blocks lie with the ranks in their order
                gathered[name] = gathered.get(name, b"") + b64decode(hashed)
        whole = _digest(layout, gathered)
    if ranks.rank:
        return {}
    return {
        "model": spec.model,
        "tensors": len(layout),
        "parameters": parameters(layout),
        "state_bytes": state_bytes(layout),
        "dtypes": ", ".join(sorted({tensor.dtype for tensor in layout})),
        "values": "weights" if spec.directory else spec.values,
        "seed": spec.seed,
        "sharding": spec.sharding,
        "contents": spec.contents,
        "digest": whole,
    }
