"""Saves a training job's state behind its loop, keeps what must be kept, and finds the checkpoint to resume from.

    with ckpt.Checkpointer("run", every=500, keep=ckpt.Keep(last=3, lowest="loss")) as checkpoints:
        restored = checkpoints.restore()
        ...
        for step in range(restored.step + 1 if restored else 1, last + 1):
            ...
            if checkpoints.due(step):
                checkpoints.save(step, state(), metrics={"loss": loss})

The state may change as soon as `save` returns; a restart goes on from the newest checkpoint that loads.
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from ckpt.checkpoint import DEFAULT
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.reading import path_of
from ckpt.series import interval, saving, together
from ckpt.series.behind import Background, Behind, Copy
from ckpt.series.keep import Keep, Metrics
from ckpt.series.levels import Levels
from ckpt.series.local import Local
from ckpt.series.preemption import Preemption
from ckpt.series.recent import RecentSaves
from ckpt.series.resuming import Restored
from ckpt.series.saving import Blocked, Outcome, Saved, Series
from ckpt.series.together import Ranks

_log = logging.getLogger("ckpt")


class Checkpointer:
    """A series of checkpoints in one directory; one save is in flight at a time.

    A save is atomic and durable, as `ckpt.save` is. It is committed first, then `latest` leads to it, and then what
    needn't stay is removed. An error of a save behind the program is raised by the next call, by `wait`, or at the end
    of the `with` block, and names the step. The methods are for one thread of the program.

    A state with DTensors (FSDP2) is saved and restored by all ranks of torch.distributed's default process group, which
    call the same methods; a thread commits with the other ranks' threads, over a process group of its own.

    Args:
        directory: holds a checkpoint for every saved step, such as `step-000000500`, and `latest`, which leads
            to the newest. No other program saves there at the same time.
        every: `due` is true for steps that are multiples of it; or "auto": as often as pays, by what recent saves cost
            the loop.
        mtbf_s: mean time between failures of the whole job, in seconds; for "auto", and only for that.
        preemption: after one of its signals, `due` is true once more if a save fits in the time that is left.
        keep: which checkpoints stay; a number for so many of the newest; None for all.
        background: save a copy of the state in another process or a thread; "none": return once it is committed.
        copy_bytes: the most memory that the copy may take. A larger state is saved without a copy: that save returns
            once it is committed. None for as much as there is.
        local: node-local storage, to which saves go; they are copied to `directory` behind the program. A path, or a
            `Local` with how many stay there, which are copied, and how fast.
        ended: called from any thread with the `Outcome` of a save or a copy; it calls no method of this object.
        timeout_s: how long a rank waits for the others of the job to call the same method, if the state has DTensors.
        strategy: the name of the strategy; `python -m ckpt strategies` lists them.
        options: of the strategy.

    Raises:
        CheckpointError: if an argument can't be used.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        every: int | Literal["auto"] = 1,
        mtbf_s: float | None = None,
        preemption: Preemption | None = None,
        keep: Keep | int | None = None,
        background: Background = "process",
        copy_bytes: int | None = None,
        local: Local | Path | str | None = None,
        ended: Callable[[Outcome], Any] | None = None,
        timeout_s: float = 600,
        strategy: str = DEFAULT,
        **options: Any,
    ) -> None:
        self._interval, self._preemption = interval.chosen(every, mtbf_s), preemption
        kept = Keep(last=keep) if isinstance(keep, int) else keep
        series = Series(path_of(directory), kept, strategy, options)
        series.prepare()
        self._recent = RecentSaves()
        self._levels = Levels(series, local, ended)
        self._saves = Behind(background, copy_bytes, series.prepare, self._levels.ended, self._recent)
        self._ranks = Ranks(self._levels, timeout_s, self._prepared)
        self._saves_together = Behind(
            background, copy_bytes, together.prepare, self._ranks.ended, self._recent, together=True
        )
        self._newest: int | None = None  # the newest whole checkpoint, once `_begin` has looked
        self._has_begun = False
        atexit.register(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Wait for the save in flight, whose error is a note where another error ends the block."""
        try:
            self.close()
        except CheckpointError as lost:
            if error is None:
                raise
            error.add_note(str(lost))

    @property
    def directory(self) -> Path:
        """Where the checkpoints lie, or are copied to."""
        return self._levels.directories[-1]

    @property
    def helpers(self) -> list[int]:
        """The numbers of the processes that save."""
        return self._saves.helpers + self._saves_together.helpers

    @property
    def commit_s(self) -> float | None:
        """How long a save takes from its call until it is committed, the longest of the last five; None before one."""
        return self._recent.commit_s

    @property
    def is_copying(self) -> bool:
        """Whether a checkpoint is being copied from the local storage to `directory`."""
        return self._levels.copying is not None

    def due(self, step: int) -> bool:
        """Whether to save after this step; call it once after every step."""
        if self._preemption is not None and self._preemption.came:
            return self._preemption.decide(step, self._recent)
        return self._interval.due(step, self._recent)

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, the oldest first."""
        return self._levels.steps()

    def warm(self, state: Any) -> None:
        """Start what saves, and have the memory for copies of such a state; else the first save waits for both.

        Raises:
            CheckpointError: if the state can't be saved, or what saves can't be started.
        """
        from ckpt.tree import dtensors, nested

        tensors, _, _ = nested.flatten(state)
        shards = {name: tensor.to_local() for name, tensor in dtensors.among(tensors).items()}
        (self._saves_together if shards else self._saves).warm(tensors | shards)

    def restore(self, into: Any = None, *, strict: bool = True, start_over: bool = False) -> Restored | None:
        """Load the newest checkpoint that is whole and undamaged.

        Args:
            into: a state whose tensors and arrays are filled where they are, so that no second copy is needed; see
                `ckpt.load`.
            strict: with `into`, a checkpoint that lacks a tensor of the state, or has another one, can't be loaded.
            start_over: return None, instead of an error, if there are checkpoints and none of them can be loaded.

        Returns:
            The step, the state as it was saved, and why newer checkpoints were skipped; None if nothing was saved yet.

        Raises:
            CheckpointError: if there are checkpoints, and none of them can be loaded; the message has the reasons. Or
                if the save before failed.
        """
        from ckpt.tree import dtensors

        self._wait_for_save()
        if dtensors.are_in(into):
            return self._ranks.restore(into, strict=strict, start_over=start_over)
        self._begin()
        return self._levels.restore(into, strict=strict, start_over=start_over)

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> Blocked:
        """Save a state: it may change as soon as this returns. Waits for the save before, if that is in flight.

        Args:
            step: the number of finished steps; later than that of every checkpoint in the directory, or the newest
                one's, which is replaced.
            state: as `ckpt.save` takes it.
            metrics: numbers that `keep` may ask for.

        Returns:
            How long this call held the program.

        Raises:
            CheckpointError: if the save before failed, and nothing is saved then; if the state can't be saved; or if
                there isn't room for it.
        """
        from ckpt.tree import dtensors

        start_s = time.perf_counter()
        self._wait_for_save()
        wait_s = time.perf_counter() - start_s
        self._warn_of_copies()
        values = {str(name): float(value) for name, value in (metrics or {}).items()}
        blocked = (self._start_together if dtensors.are_in(state) else self._start)(step, state, values)
        if blocked.save_s:
            self._wait_for_save()
        return replace(blocked, wait_s=wait_s)

    def _start(self, step: int, state: Any, metrics: Metrics) -> Blocked:
        from ckpt.tree import nested

        self._begin()
        self._refuse_an_earlier(step)
        tensors, tied, rest = nested.flatten(state)
        self._levels.require_room(sum(tensor.nbytes for tensor in tensors.values()))
        task = partial(saving.save, series=self._levels.first, step=step, metrics=metrics, tied=tied, rest=rest)
        return self._saves.start(step, self._saves.copy(tensors), task)

    def _start_together(self, step: int, state: Any, metrics: Metrics) -> Blocked:
        planned = self._ranks.plan(step, state)
        self._refuse_an_earlier(step)
        task = partial(self._ranks.save, planned=planned, step=step, metrics=metrics)
        copies: list[Copy] = []  # this rank's; if another one can't copy its shards, none of them begins to write
        planned.ranks.share(lambda: copies.append(self._saves_together.copy(planned.planner.data)))
        return self._saves_together.start(step, copies[0], task)

    def wait(self) -> None:
        """Wait until the save in flight is committed, what needn't stay is removed, and all is in `directory`.

        Where ranks save together, a node's first rank copies to `directory`, and only its call waits for that.

        Raises:
            CheckpointError: if a save failed, or copying a checkpoint to `directory`; the message names its step.
        """
        self._wait_for_save()
        if self._has_begun:  # else the local directory may be another series'
            self._levels.finish()
            self._warn_of_copies()

    def abandon_copies(self) -> None:
        """Copy nothing more to `directory`, for a program that has to end now; `close` raises an error then."""
        self._levels.abandon()

    def close(self) -> None:
        """Wait for the save in flight, and end what saves.

        Raises:
            CheckpointError: if the save failed.
        """
        try:
            self.wait()
        finally:
            atexit.unregister(self._at_exit)
            self._saves.close()
            self._saves_together.close()

    def _begin(self) -> None:
        """Prepare the directories once, in a program whose ranks don't do it together."""
        if not self._has_begun:
            self._prepared(self._levels.prepare())

    def _prepared(self, newest: int | None) -> None:
        self._newest, self._has_begun = newest, True

    def _refuse_an_earlier(self, step: int) -> None:
        if self._newest is not None and step < self._newest:
            raise CheckpointError(
                f"can't save step {step}: {self.directory} has a checkpoint of step {self._newest}, which a restart "
                "would take. Remove the later ones, or save into another directory"
            )

    def _wait_for_save(self) -> None:
        """Wait until the save in flight is committed."""
        for saves in (self._saves, self._saves_together):
            if (done := saves.wait()) is not None:
                self._committed(*done)

    def _warn_of_copies(self) -> None:
        """Report what went wrong since the last call, while checkpoints were copied."""
        if problem := self._levels.problem():
            warnings.warn(problem, CheckpointWarning, stacklevel=3)

    def _committed(self, step: int, saved: Saved) -> None:
        self._newest = step
        _log.info(
            "step %d is committed in %s; removed: %s", step, self._levels.first.directory, saved.removed or "none"
        )
        if saved.problem:
            warnings.warn(f"step {step} is committed, but {saved.problem}", CheckpointWarning, stacklevel=4)

    def _at_exit(self) -> None:
        """Report the error that nobody has waited for, where a program ends without `close`."""
        try:
            self.wait()
        except CheckpointError as error:
            print(f"ckpt: {error}", file=sys.stderr)
