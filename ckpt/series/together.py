"""Series of states with DTensors: all ranks save and restore together, and write behind their programs.

The program's thread plans with the other ranks, and copies this rank's shards. A thread lets a process write them, and
commits with the other ranks' threads, over a gloo group of their own. Where every node has local storage of its own, it
commits a part of the checkpoint there (`ckpt.series.parts`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.checkpoint import load
from ckpt.errors import CheckpointError
from ckpt.process_group.nodes import Nodes
from ckpt.series import listing, parts, resuming, saving, steps
from ckpt.series.keep import Metrics
from ckpt.series.levels import Levels
from ckpt.series.listing import Listed
from ckpt.series.resuming import Loaded, Restored
from ckpt.series.saving import Saved
from ckpt.state.layout import State

if TYPE_CHECKING:
    from ckpt.dcp.planned import Apart
    from ckpt.process_group.meeting import Meeting
    from ckpt.together import Planned

_PURPOSE = "series"
"""Its gloo group is not that of `ckpt.save` and `ckpt.load`: a thread may use it while the program calls those."""

_ALONE = Nodes((0,), 0)


def prepare() -> None:
    """Import what writes a rank's files."""
    import ckpt.dcp.planned  # noqa: F401


@dataclass
class Ranks:
    """The ranks that save and restore a series together.

    Args:
        levels: the same on all ranks. Where every node has local storage of its own, it holds a part of a checkpoint.
        timeout_s: how long a rank waits for the others to come.
        prepared: takes the newest whole step on every rank, when they came for the first time.
    """

    levels: Levels
    timeout_s: float
    prepared: Callable[[int | None], None]
    nodes: Nodes = field(default=_ALONE, init=False)
    """Known once the ranks came."""
    _have_begun: bool = field(default=False, init=False)

    def plan(self, step: int, state: Any) -> Planned:
        """Agree on a save, and plan it; every rank calls this.

        Raises:
            CheckpointError: on every rank that came.
        """
        from ckpt import agreement, together

        final = steps.path_of(self.levels.first.directory, step)
        ranks, part = agreement.reached("Checkpointer.save", state, final, self.timeout_s, _PURPOSE)
        self._begin(ranks)
        return together.plan(ranks, part)

    def restore(self, into: Any, *, strict: bool, start_over: bool) -> Restored | None:
        """Load the newest checkpoint that every rank can load; every rank calls this.

        Raises:
            CheckpointError: on every rank.
        """
        from ckpt import agreement

        ranks, _ = agreement.reached(
            "Checkpointer.restore", into, self.levels.directories[-1], self.timeout_s, _PURPOSE
        )
        self._begin(ranks)
        known = self._known(ranks)

        def load_path(path: Path) -> Loaded:
            listed = known[path.parent][path]
            if listed.problem:
                raise CheckpointError(listed.problem)
            is_divided = self.nodes.count > 1 and path.parent != self.levels.directories[-1]
            whole = self._gathered(ranks, listed.step) if is_divided else path
            try:
                return load(whole, into=into, strict=strict).state, saving.metrics_in({"metrics": listed.metrics})
            finally:
                if is_divided and self.nodes.leads:
                    parts.remove_view(path.parent, listed.step)

        levels = {directory: [listed.step for listed in its.values()] for directory, its in known.items()}
        restored = resuming.newest(levels, load_path, start_over=start_over)
        if restored and ranks.rank == 0 and self.nodes.count == 1:
            self.levels.resume(restored.step)
        return restored

    def ended(self, step: int, saved: Saved | None, problem: str) -> None:
        """Take the end of a save, and let every node's leader copy what it has; called from any thread."""
        self.levels.ended(step, saved, problem, copies=self.nodes.leads)

    def _begin(self, ranks: Meeting) -> None:
        """Let rank 0 prepare the directories, once, and every other node's leader its own."""
        if self._have_begun:
            return
        seen = ranks.share(self.levels.claim)
        self.nodes = nodes = Nodes.seen(seen, ranks.rank)
        newest = ranks.share_first(self.levels.prepare)
        if nodes.count > 1:
            ranks.share(lambda: self.levels.prepare_local() if nodes.leads and ranks.rank else None)
            if nodes.leads:
                self.levels.divide(is_first=not ranks.rank, patience_s=self.timeout_s)
            known = [
                listed.step for its in self._known(ranks).values() for listed in its.values() if not listed.problem
            ]
            newest = max(known, default=None)
        self.prepared(newest)
        self._have_begun = True

    def _known(self, ranks: Meeting) -> dict[Path, dict[Path, Listed]]:
        """What lies in the directories of all levels, by directory and path; the same on every rank."""
        *local, shared = self.levels.directories
        of_nodes = {directory: ranks.share(partial(self._listed, directory)) for directory in local}
        of_all = of_nodes | {shared: [ranks.share_first(partial(listing.of, shared))]}
        return {directory: listing.joined(directory, listed) for directory, listed in of_all.items()}

    def _listed(self, directory: Path) -> list[list[Any]]:
        return listing.of(directory) if self.nodes.leads else []

    def _gathered(self, ranks: Meeting, step: int) -> Path:
        """Let the shared level have a checkpoint of which the nodes have parts; returns where this one loads it from.

        Raises:
            CheckpointError: on every rank, if that isn't possible.
        """
        local, shared = self.levels.directories
        part, leads = steps.path_of(local, step), self.nodes.leads
        marks = ranks.share(lambda: parts.mark(part) if leads else "")
        (mark, *others) = sorted(set(filter(None, marks)))
        if others:
            raise CheckpointError(f"{part} is of one save on some nodes, and of another on others")
        if ranks.share_first(lambda: parts.mark(steps.path_of(shared, step))) != mark:
            ranks.share(lambda: self.levels.drain.copy_part(step) if leads and marks[ranks.rank] else None)
            ranks.share_first(lambda: self.levels.drain.put_together(step, mark).problem)
        ranks.share(lambda: parts.make_view(local, shared, step) if leads else None)
        return parts.view_of(local, step)

    def save(
        self, copies: State, apart: Apart | None = None, *, planned: Planned, step: int, metrics: Metrics
    ) -> Saved:
        """Commit a step's checkpoint, as `saving.save` does; every rank calls this.

        Args:
            copies: of what this rank may have to write.
            apart: calls what writes this rank's files with the copies; None to call it here.
            planned: the save.
            step: the checkpoint's.
            metrics: rank 0's are kept in the checkpoint.

        Raises:
            CheckpointError: on every rank, as `saving.save` does.
        """
        from ckpt import together

        planned.planner.data = copies
        ranks, series, leads = planned.ranks, self.levels.first, self.nodes.leads
        size_bytes, final = self._size_bytes(planned), steps.path_of(series.directory, step)
        ranks.share(lambda: self.levels.require_room(size_bytes) if leads else None)
        if self.nodes.count > 1:
            self._protect(ranks, final)
        together.write(planned, final, saving.notes_of(step, metrics), self.nodes, apart)
        saved: list[Saved] = []  # a leader's
        ranks.share(lambda: saved.append(saving.finish(series, step)) if leads else None)
        is_due = self.nodes.count == 1 or self._are_idle(ranks)
        return replace(saved[0], is_due=is_due) if saved else Saved(time.perf_counter())

    def _protect(self, ranks: Meeting, final: Path) -> None:
        """Copy a step that is saved again: while the nodes replace their parts, they don't make up any checkpoint."""
        if any(ranks.share(lambda: self.nodes.leads and final.exists())):
            with suppress(CheckpointError):  # the shared storage fails: `wait` reports that
                ranks.share(lambda: self.levels.finish() if self.nodes.leads else None)

    def _size_bytes(self, planned: Planned) -> int:
        """The most that this node's ranks have to write."""
        tensors = planned.part.tensors.values()  # whole ones, of which every rank has a shard
        whole_bytes: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.nodes.count == 1:
            return whole_bytes
        own_bytes = sum(tensor.nbytes for tensor in planned.planner.data.values())
        of_ranks: list[int] = planned.ranks.share(lambda: own_bytes)
        return min(whole_bytes, sum(bytes_ for rank, bytes_ in enumerate(of_ranks) if self.nodes.is_here(rank)))

    def _are_idle(self, ranks: Meeting) -> bool:
        """Whether no node copies anything; rank 0 learns from it which parts won't come."""
        copying = ranks.share(lambda: self.levels.copying)
        self.levels.drain.others_copy(copying[1:])
        return not any(step is not None for step in copying)
