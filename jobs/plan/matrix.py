"""The cells of a study: every strategy on every target at every scale, with what it will take; pure, no I/O."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckpt.errors import CheckpointError
from ckpt.state.layout import Layout, TensorLayout, state_bytes
from ckpt.state.sharding import Partition
from ckpt.strategy import Footprint, Strategy
from jobs.plan.loop import CHECKPOINTER, NONE
from jobs.plan.scale import Scale
from jobs.plan.study import Study, Target

_SOMETHING = (TensorLayout("any", (1,), "float32"),)


@dataclass(frozen=True, slots=True)
class Cell:
    """One strategy on one target at one scale."""

    strategy: Strategy
    way: str
    """How it saves in a training loop; empty without one, as the next."""
    step: str
    target: str
    scale: Scale
    rank_bytes: int
    """The largest share of the state that a rank saves."""
    directories: tuple[Footprint, ...]
    """What a checkpoint takes at most: in the one directory, or in those of the nodes."""


def of(study: Study, layout: Layout) -> Iterator[Cell]:
    """The cells of a study whose state has these tensors: without what can't be done, and with one null test a loop."""
    nulls = set()
    for cell in _with_every_null(study, layout):
        if cell.way == NONE:  # no strategy saves anything in it: the first one's will do
            loop = cell.target, cell.scale, cell.step
            if loop in nulls:
                continue
            nulls.add(loop)
        yield cell


def _with_every_null(study: Study, layout: Layout) -> Iterator[Cell]:
    divided = {
        (scale, target.on_each_node): scale.directories(layout, study.state.sharding, node_local=target.on_each_node)
        for name, target in study.targets.items()
        for scale in study.scales(name)
    }
    rank_bytes = {
        key: max(
            _largest_share(partition)
            for partition in {partition.layout: partition for partition in partitions}.values()
        )  # most are alike
        for key, partitions in divided.items()
    }
    for chosen in study.methods():
        taken = {
            key: tuple(_footprints(chosen, partitions))
            for key, partitions in divided.items()
            if not _why_not(chosen, study, *key)
        }
        for name, target in study.targets.items():
            for scale in study.scales(name):
                key = scale, target.on_each_node
                if key in taken:
                    for way, step in _loops(chosen, study, target):
                        yield Cell(chosen, way, step, name, scale, rank_bytes[key], taken[key])


def left_out(study: Study) -> list[str]:
    """What a study asks for and can't be done, with the reason."""
    asked = dict.fromkeys(
        (scale, target.on_each_node) for name, target in study.targets.items() for scale in study.scales(name)
    )
    reasons = [
        f"{method.label} at {scale}: {reason}"
        for method in study.methods()
        for scale, on_each_node in asked
        if (reason := _why_not(method, study, scale, on_each_node))
    ]
    if study.loop:
        lacking = ((method.label, study.loop.why_not(method)) for method in study.methods())
        reasons += [f"{label} with way=library: {reason}" for label, reason in lacking if reason]
        others = ", ".join(way for way in study.loop.ways if way != CHECKPOINTER)
        reasons += [
            f"{others} on {name}: it drains to {target.drain_to}, which only way={CHECKPOINTER} does"
            for name, target in study.targets.items()
            if target.drain_to and others
        ]
    return list(dict.fromkeys(reasons))


def _loops(chosen: Strategy, study: Study, target: Target) -> list[tuple[str, str]]:
    """The ways in which a strategy saves on a target, and the steps beside which it does."""
    if study.loop is None:
        return [("", "")]
    ways = [CHECKPOINTER] if target.drain_to else study.loop.ways_of(chosen)
    return list(itertools.product(ways, study.loop.step))


def _why_not(chosen: Strategy, study: Study, scale: Scale, on_each_node: bool) -> str:
    """Why a strategy can't do what a study asks for at a scale; empty if it can."""
    reshards = scale.reshards and study.state.sharding != "replicated"
    if reshards and not chosen.capabilities.can_reshard:
        return f"it can't load on {scale.load_ranks} ranks what {scale.ranks} saved"
    ranks = scale.tasks_per_node if on_each_node else scale.ranks
    try:
        chosen.footprint(Partition.of(_SOMETHING, study.state.sharding, ranks))
    except CheckpointError as error:
        return str(error)
    return ""


def _footprints(chosen: Strategy, directories: Sequence[Partition]) -> Iterator[Footprint]:
    """What a checkpoint takes in the directories; most nodes' parts are alike."""
    known: dict[Layout, Footprint] = {}
    for partition in directories:
        if partition.layout not in known:
            known[partition.layout] = chosen.footprint(partition)
        yield known[partition.layout]


def _largest_share(partition: Partition) -> int:
    return max(state_bytes(layout) for layout, _ in partition.unique_shards())
