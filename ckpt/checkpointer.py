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
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from ckpt.background.process import ProcessSaver
from ckpt.background.saver import BackgroundSaver
from ckpt.background.snapshot import place, size_of
from ckpt.background.thread import ThreadSaver
from ckpt.checkpoint import DEFAULT
from ckpt.disk import room
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.reading import path_of
from ckpt.series import removing, resuming, saving, steps
from ckpt.series.keep import Keep
from ckpt.series.resuming import Restored
from ckpt.series.saving import Saved, Series
from ckpt.state.layout import State, layout_of_state

Background = Literal["process", "thread", "none"]

_log = logging.getLogger("ckpt")


@dataclass(frozen=True, slots=True)
class Blocked:
    """How long a call of `save` held the program.

    Attributes:
        wait_s: for the save before.
        copy_s: while the state was copied.
        save_s: while the state was written, where nothing is saved behind the program.
    """

    wait_s: float = 0.0
    copy_s: float = 0.0
    save_s: float = 0.0


class Checkpointer:
    """A series of checkpoints in one directory; one save is in flight at a time.

    A save is atomic and durable, as `ckpt.save` is. It is committed first, then `latest` leads to it, and then what
    needn't stay is removed. An error of a save behind the program is raised by the next call, by `wait`, or at the end
    of the `with` block, and names the step. The methods are for one thread of the program.

    Args:
        directory: holds a checkpoint for every saved step, such as `step-000000500`, and `latest`, which leads
            to the newest. No other program saves there at the same time.
        every: `due` is true for steps that are multiples of it.
        keep: which checkpoints stay; a number for so many of the newest; None for all.
        background: save a copy of the state in another process or in a thread, while the program goes on; "none" for
            saves that return once they are committed.
        copy_bytes: the most memory that the copy may take. A larger state is saved without a copy: that save returns
            once it is committed. None for as much as there is.
        strategy: the name of the strategy; `python -m ckpt strategies` lists them.
        options: of the strategy.

    Raises:
        CheckpointError: if an argument can't be used.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        every: int = 1,
        keep: Keep | int | None = None,
        background: Background = "process",
        copy_bytes: int | None = None,
        strategy: str = DEFAULT,
        **options: Any,
    ) -> None:
        if every < 1:
            raise CheckpointError(f"every={every} isn't possible: a number of steps, 1 or more")
        kept = Keep(last=keep) if isinstance(keep, int) else keep
        self._series = Series(path_of(directory), kept, strategy, options)
        self._series.prepare()
        steps.refuse_a_foreign_latest(self._series.directory)
        self._every, self._copy_bytes = every, copy_bytes
        self._saver = _saver(background, self._series)
        self._running: tuple[int, Future[Any]] | None = None
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
        """Where the checkpoints lie."""
        return self._series.directory

    @property
    def helpers(self) -> list[int]:
        """The numbers of the processes that save."""
        return self._saver.helpers if self._saver else []

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        return step % self._every == 0

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, the oldest first."""
        return list(steps.all_whole(self.directory))

    def warm(self, state: Any) -> None:
        """Start what saves, and have the memory for copies of such a state; else the first save waits for both.

        Raises:
            CheckpointError: if the state can't be saved, or what saves can't be started.
        """
        from ckpt.tree import nested

        tensors, _, _ = nested.flatten(state)
        if self._saver and self._can_copy(tensors):
            self._saver.reserve(layout_of_state(tensors))
        if isinstance(self._saver, ProcessSaver):
            self._saver.warm()

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
        self.wait()
        self._begin()
        return resuming.restore(self.directory, into, strict=strict, start_over=start_over)

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
        from ckpt.tree import dtensors, nested

        start_s = time.perf_counter()
        if dtensors.are_in(state):
            raise CheckpointError(
                "a Checkpointer can't save DTensors, of which every rank holds a shard: let all ranks call ckpt.save"
            )
        self.wait()
        wait_s = time.perf_counter() - start_s
        self._begin()
        self._refuse_an_earlier(step)
        tensors, tied, rest = nested.flatten(state)
        saving.require_room(self.directory, tensors)
        values = {str(name): float(value) for name, value in (metrics or {}).items()}
        task = partial(saving.save, series=self._series, step=step, metrics=values, tied=tied, rest=rest)
        start_s = time.perf_counter()
        if self._saver and self._can_copy(tensors):
            copy = self._saver.take(tensors)
            copied_s = time.perf_counter()
            self._running = step, self._saver.start(copy, task)
            return Blocked(wait_s, copied_s - start_s)
        self._committed(step, task(tensors))
        return Blocked(wait_s, save_s=time.perf_counter() - start_s)

    def wait(self) -> None:
        """Wait until the save in flight is committed, and what needn't stay is removed.

        Raises:
            CheckpointError: if it failed; the message names its step.
        """
        if self._running is None:
            return
        step, future = self._running
        error = future.exception()  # an interrupt here leaves the save in flight
        self._running = None
        if error is not None:
            text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
            raise CheckpointError(f"the save of step {step} failed: {text}") from error
        self._committed(step, future.result().value)

    def close(self) -> None:
        """Wait for the save in flight, and end what saves.

        Raises:
            CheckpointError: if the save failed.
        """
        try:
            self.wait()
        finally:
            atexit.unregister(self._at_exit)
            if self._saver:
                self._saver.close()

    def _begin(self) -> None:
        """Remove what ended programs left, and mend `latest`, once."""
        if self._has_begun:
            return
        removing.sweep(self.directory)
        whole = self.steps()
        if whole:
            self._newest = whole[-1]
            steps.point_latest(self.directory, self._newest)
        self._has_begun = True

    def _refuse_an_earlier(self, step: int) -> None:
        if self._newest is not None and step < self._newest:
            raise CheckpointError(
                f"can't save step {step}: {self.directory} has a checkpoint of step {self._newest}, which a restart "
                "would take. Remove the later ones, or save into another directory"
            )

    def _can_copy(self, tensors: State) -> bool:
        if self._copy_bytes is None:
            return True
        needed_bytes = size_of(place(layout_of_state(tensors)))
        if needed_bytes <= self._copy_bytes:
            return True
        _log.warning(
            "a copy of the state takes %s, more than copy_bytes=%d: it is saved without one, and the program waits",
            room.size(needed_bytes),
            self._copy_bytes,
        )
        return False

    def _committed(self, step: int, saved: Saved) -> None:
        self._newest = step
        _log.info("step %d is committed in %s; removed: %s", step, self.directory, saved.removed or "none")
        if saved.problem:
            warnings.warn(f"step {step} is committed, but {saved.problem}", CheckpointWarning, stacklevel=3)

    def _at_exit(self) -> None:
        """Report the error that nobody has waited for, where a program ends without `close`."""
        try:
            self.wait()
        except CheckpointError as error:
            print(f"ckpt: {error}", file=sys.stderr)


def _saver(background: str, series: Series) -> BackgroundSaver | None:
    match background:
        case "process":
            return ProcessSaver(series.prepare)
        case "thread":
            return ThreadSaver()
        case "none":
            return None
    raise CheckpointError(f'background={background!r} isn\'t possible: "process", "thread" or "none"')
