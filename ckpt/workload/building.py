"""Builds the state that a study saves from a model's configuration and a seed, and identifies it by a digest."""

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
from ckpt.workload.spec import PRESETS, StateSpec, layout_of, meta_layout, state_of
from ckpt.workload.values import Block, Piece, pieces

_Result = TypeVar("_Result")

_ALONE = SingleProcess()


def build(spec: StateSpec, part: RankShards | None = None) -> State:
    """Build the state that a study asks for, or one rank's part of it.

    A part has the same values as in the whole state, and building it takes little more memory than its own size. Real
    weights are the exception where `values.RealWeights` can't read them in blocks: the whole model is loaded first.

    Args:
        spec: the state.
        part: of a partition of `layout_of(spec)` over all ranks, not of a subset: `part.held` is built. None builds
            all.

    Raises:
        CheckpointError: if the model can't be built, or transformers builds a model with another layout than planned
            from a configuration that is not a preset.
    """
    planned = layout_of(spec)
    # Importing transformers takes seconds of each core: the first rank compares for all, and tests compare the presets.
    compares = spec.model not in PRESETS and (part is None or part.rank == 0)
    if compares and state_of(meta_layout(spec), spec) != planned:
        raise CheckpointError(
            f"transformers builds other tensors for {spec.model!r} than the plan expects: please report this, with "
            "the model's config.json"
        )
    return filled(spec, (part or _alone(planned)).held)


def filled(spec: StateSpec, share: tuple[Shard, ...] | None = None) -> State:
    """Make a share of the planned state, or all of it, without asking transformers; the state of a seed."""
    planned = layout_of(spec)
    share = _alone(planned).held if share is None else share
    block = values.of(spec, planned)
    state: State = {}
    for rows in share:
        tensor = rows.whole
        if tensor.same_as is not None:
            state[tensor.name] = state[tensor.same_as]
        else:
            state[tensor.name] = torch.empty(rows.layout.shape, dtype=getattr(torch, tensor.dtype))
    fill(state, share, block)
    return state


def fill(state: State, share: tuple[Shard, ...], block: Block) -> None:
    """Set every element of a rank's share to its value."""

    def fill_piece(piece: Piece) -> None:
        flat(state[piece.tensor.name])[piece.held].copy_(block(piece.tensor, piece.number)[piece.within])

    _on_all_cores(fill_piece, pieces(share))


def digest(state: State) -> str:
    """Compute the SHA-256 over names, dtypes, shapes and every byte; it doesn't depend on how the state is divided."""
    layout = layout_of_state(state)
    return _digest(layout, _hashes(state, _alone(layout).held, None))


def _digest(layout: Layout, hashes: Mapping[str, bytes]) -> str:
    """Compute a state's digest from the concatenated hashes of each tensor's blocks; tied tensors share theirs."""
    whole = hashlib.sha256()
    for tensor in layout:
        whole.update(repr((tensor.name, tensor.dtype, tensor.shape)).encode("utf-8", "surrogatepass"))
        whole.update(hashes.get(tensor.same_as or tensor.name, b""))
    return whole.hexdigest()


def _hashes(state: State, share: tuple[Shard, ...], block: Block | None) -> dict[str, bytes]:
    """Return, by tensor, the concatenated SHA-256 hashes of the blocks that begin in a share.

    `block` generates the rest of a block that the share holds in part, after the held part has been compared with it.
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
                    f"{piece.tensor.name}: block {piece.number} no longer has the values that it was built with: "
                    "something changed the state, or this machine's memory is faulty"
                )
        begins = piece.within.start == 0
        return piece.tensor.name, hashlib.sha256(as_bytes(whole).numpy().data).digest() if begins else b""

    return _concatenated(_on_all_cores(hash_piece, pieces(share)))


def _concatenated(hashes: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Concatenate the hashes of each tensor."""
    by_tensor: dict[str, bytes] = {}
    for name, hashed in hashes:
        by_tensor[name] = by_tensor.get(name, b"") + hashed
    return by_tensor


def _alone(layout: Layout) -> RankShards:
    """Return the part of a single process: the whole state."""
    return RankShards(Partition.of(layout, "dim0", 1), 0)


def _on_all_cores(work: Callable[[Piece], _Result], all_pieces: Iterable[Piece]) -> list[_Result]:
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(work, all_pieces))


def describe(
    state: State, spec: StateSpec, part: RankShards | None = None, ranks: ProcessGroup = _ALONE
) -> dict[str, Any]:
    """Return the facts about a state that a timing log keeps. Every rank must call it.

    Args:
        state: this rank's part, as `build` built it.
        spec: the state's specification.
        part: this rank's; None for the whole state.
        ranks: the ranks that hold the parts, in the order of the parts.

    Returns:
        The facts on the first rank, an empty dict on the others. The digest in them is the same for every number of
        ranks and every way to divide the state.

    Raises:
        CheckpointError: if a block that several ranks hold no longer has the values that it was built with, or if
            replicas differ.
        LostRankError: if a rank did not answer, or failed.
    """
    part = part or _alone(layout_of_state(state))
    layout = part.partition.tensors
    whole = _digest_of_ranks(state, spec, part, ranks)
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


def _digest_of_ranks(state: State, spec: StateSpec, part: RankShards, ranks: ProcessGroup) -> str:
    """Compute the digest of the whole state from what all ranks hold; it is valid on the first rank only."""
    layout, share = part.partition.tensors, part.held
    block = None if all(piece.is_whole for piece in pieces(share)) else values.of(spec, layout)
    hashes = _hashes(state, share, block)
    if part.partition.sharding == "replicated":
        digests = ranks.gather(_digest(layout, hashes))
        different = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if different:
            raise CheckpointError(f"rank 0 holds another state than rank {', '.join(map(str, different[:5]))}")
        return digests[0] if digests else ""
    gathered = ranks.gather({name: b64encode(hashed).decode() for name, hashed in hashes.items() if hashed})
    # The ranks' order is the order of a tensor's blocks.
    return _digest(
        layout, _concatenated((name, b64decode(text)) for of_rank in gathered for name, text in of_rank.items())
    )
