"""How the ranks of a distributed job agree on what they save or load together: all describe it, rank 0 compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt.errors import CheckpointError
from ckpt.process_group import meeting
from ckpt.process_group.meeting import Meeting
from ckpt.state import dtypes
from ckpt.tree import dtensors, nested


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has of a state that all ranks have together."""

    tensors: dict[str, Any]
    """The DTensors and the plain tensors by name, without those that are tied to others."""
    tied: dict[str, str]
    """The names that are tied to another tensor, and that tensor's name."""
    rest: Any
    """The state without its tensors, as `ckpt.tree.nested.flatten` returns it."""

    @property
    def sharded(self) -> dict[str, Any]:
        """The DTensors among the tensors."""
        return dtensors.among(self.tensors)


def reached(call: str, state: Any, final: Path, timeout_s: float, purpose: str = "") -> tuple[Meeting, Part]:
    """Meet the other ranks, and return what this one has of the state, with the ties on which all agree.

    Args:
        call: the function that the program called, for messages.
        state: contains DTensors.
        final: the checkpoint's path.
        timeout_s: how long to wait for the other ranks.
        purpose: as `meeting.meet` takes it.

    Raises:
        CheckpointError: on every rank that came, if another didn't come, called another function, gave another path,
            has other DTensors, or has a state that can't be saved.
    """
    _require_group(call)
    error, part = "", Part({}, {}, None)
    try:
        part = Part(*nested.flatten(state))
    except CheckpointError as raised:
        error = str(raised)
    everything = part.tensors | {name: part.tensors[owner] for name, owner in part.tied.items()}
    sharded = dtensors.among(everything)
    described = {
        "call": f"{call} with {final}",
        "dtensors": [len(sharded), _digest(sharded)],
        "tied": {name: owner for name, owner in part.tied.items() if name in sharded},
        "error": error,
    }
    by_all = f"{call} with {final}, since the state has DTensors"
    ranks, agreed = meeting.meet(described, _compare, timeout_s, by_all, purpose)
    tied = {name: owner for name, owner in part.tied.items() if name not in sharded} | agreed
    return ranks, Part({name: tensor for name, tensor in everything.items() if name not in tied}, tied, part.rest)


def _require_group(call: str) -> None:
    import torch.distributed as dist

    if not dist.is_initialized():
        raise CheckpointError(
            f"the state has DTensors, of which every rank holds a shard, but this process is in no process group: call "
            f"{call} on every rank before destroy_process_group"
        )


def _digest(tensors: Mapping[str, Any]) -> str:
    described = [[name, list(tensor.shape), dtypes.name_of(tensor)] for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _compare(ranks: list[dict[str, Any]]) -> dict[str, str]:
    """Return the ties of DTensors that all ranks have.

    Raises:
        CheckpointError: if what the ranks described doesn't fit together.
    """
    first = ranks[0]
    if error := meeting.named([rank["error"] for rank in ranks]):
        raise CheckpointError(error)
    for number, rank in enumerate(ranks):
        if rank["call"] != first["call"]:
            raise CheckpointError(
                f"rank 0 called {first['call']}, and rank {number} called {rank['call']}: all ranks must make the same "
                "calls in the same order"
            )
        if rank["dtensors"] != first["dtensors"]:
            raise CheckpointError(
                f"rank 0 has {first['dtensors'][0]:,} DTensors, and rank {number} has {rank['dtensors'][0]:,}, not of "
                f"the same names, shapes and dtypes: {first['call']} needs the same ones on all ranks. States that "
                "differ, such as those of pipeline stages, need different paths and process groups, or "
                "torch.distributed.checkpoint.save"
            )
    return _ties_of_all([rank["tied"] for rank in ranks])


def _ties_of_all(ranks: list[dict[str, str]]) -> dict[str, str]:
    """Return the names that are tied to the same earlier name on every rank, and that name.

    Args:
        ranks: by rank, the names that are tied there, and the first of the names that they are tied to.
    """
    names = {name: None for tied in ranks for pair in tied.items() for name in reversed(pair)}
    first: dict[tuple[str, ...], str] = {}
    owners = {name: first.setdefault(tuple(tied.get(name, name) for tied in ranks), name) for name in names}
    return {name: owner for name, owner in owners.items() if name != owner}
