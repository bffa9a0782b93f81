"""Copies checkpoints from a series' local directory to its shared one, in order, behind the program.

A checkpoint appears there whole, as a save's does: copied beside its name, synced, renamed; then `latest` leads to it,
and then what needn't stay is removed. Slow or full shared storage delays the copies, and never a save.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial

from ckpt import manifest, threads
from ckpt.disk import durable
from ckpt.disk.copying import Pace, copy_files
from ckpt.disk.pinned import pinned
from ckpt.errors import CheckpointError
from ckpt.series import parts, removing, saving, steps
from ckpt.series.local import Local
from ckpt.series.parts import Others
from ckpt.series.saving import Outcome, Saved, Series
from ckpt.writing import staged

_log = logging.getLogger("ckpt")


class Drain:
    """What is waiting to be copied, and the thread that copies while there is something.

    A local checkpoint stays while it is being copied, and as long as it is among the newest. One that is removed before
    its turn is skipped: the shared storage is slower than the saves.

    Where every node has a part of the checkpoint, its leader copies that, and rank 0 puts them together. The nodes have
    to copy the same steps: a save agrees on that (`Saved.is_due`) when none of them is copying, and the steps that come
    meanwhile are skipped. A copy that fails isn't tried again, since the other nodes go on to a later step.

    Args:
        local: where saves are committed.
        shared: where the copies go, and which of them stay.
        ended: called with the outcome of every copy, while the next one waits.
        others: the other nodes, for whose parts this one waits, if it puts them together.
        has_parts: whether every node has a part.
    """

    def __init__(
        self,
        local: Local,
        shared: Series,
        ended: Callable[[Outcome], None],
        others: Others | None = None,
        *,
        has_parts: bool = False,
    ) -> None:
        self._local, self._shared, self._ended = local, shared, ended
        self._others, self._has_parts = others, has_parts
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._waiting: list[int] = []
        self._copying: int | None = None
        self._thread: Future[None] | None = None
        self._uncopied: int | None = None  # the newest checkpoint of this program, until it is copied
        self._newest: int | None = None
        self._passed: int | None = None  # it is not copied, unless it is the last one
        self._is_abandoned = False
        self._problem = ""

    def resume(self, step: int) -> None:
        """Copy the checkpoint that was restored, if the program before this one didn't."""
        if step in steps.all_whole(self._local.path) and step not in steps.all_whole(self._shared.directory):
            with self._lock:
                self._waiting = [step]
            self._go()

    def committed(self, step: int, *, is_due: bool) -> None:
        """Take a new local checkpoint, which is copied if it `is_due`; doesn't wait for any copy."""
        with self._lock:
            if self._passed not in {None, step}:
                self._report(f"step {self._passed} is not copied to {self._shared.directory}: an earlier one still was")
            is_wanted = step % self._local.drain_every == 0
            self._passed = step if is_wanted and not is_due else None
            if is_wanted and is_due:
                self._waiting = [*(other for other in self._waiting if other != step), step]
            self._uncopied = self._newest = step
        self._go()

    def problem(self) -> str:
        """Why copying failed since the last call; empty if it didn't."""
        problem, self._problem = self._problem, ""  # without the lock, which a removal may hold for long
        return problem

    @property
    def newest(self) -> int | None:
        """The newest checkpoint that this program has committed, on all nodes."""
        return self._newest

    @property
    def copying(self) -> int | None:
        """The step that is being copied; the others that wait are next, unless it fails."""
        return self._copying

    def others_copy(self, copying: Collection[int | None]) -> None:
        """Learn which steps the other nodes are copying: who waits for a part that won't come gives up."""
        if self._others and self._copying is not None and self._copying not in copying:
            self._others.have_ended.set()

    def abandon(self) -> None:
        """End the copy that is under way, and begin no other."""
        with self._lock:
            self._is_abandoned = True
        self._stop.set()

    def make_room(self) -> None:
        """Remove the local checkpoints that the shared level has, even the newest."""
        shared = steps.all_whole(self._shared.directory)
        with self._lock:
            for step in steps.steps_in(self._local.path):
                if step in shared and step not in {self._copying, *self._waiting}:
                    self._remove(step)

    def finish(self) -> None:
        """Copy what is waiting, and this program's newest checkpoint, and wait until the shared level has them.

        Raises:
            CheckpointError: if one of them could not be copied; it stays on the local level.
        """
        with self._lock:
            if self._uncopied is not None and self._uncopied not in {*self._waiting, self._copying}:
                self._waiting.append(self._uncopied)
        self._go()
        try:
            if self._thread:
                self._thread.result()
        except BaseException:  # an interrupt
            self._stop.set()
            raise
        if self._waiting or self._uncopied is not None:
            raise CheckpointError(self.problem() or f"copying to {self._shared.directory} was given up")

    def _go(self) -> None:
        """Remove what needn't stay, and start the thread, unless it runs or there is nothing to do."""
        with self._lock:
            self._tidy()
            if self._copying is not None or not self._waiting or self._is_abandoned:
                return
            step = self._next()
            self._stop.clear()
        self._thread = threads.start(partial(self._run, step), "drain")

    def _next(self) -> int | None:
        """Begin with the first that is waiting, if there is one; the lock is held."""
        self._copying = self._waiting.pop(0) if self._waiting else None
        if self._others:
            self._others.have_ended.clear()
        return self._copying

    def _run(self, step: int | None) -> None:
        while step is not None:
            try:
                saved = self._copy_parts(step) if self._has_parts else self._copy(step)
            except Exception as error:  # noqa: BLE001  # the program learns of any
                text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
                self._ended(Outcome(step, self._shared.directory, problem=text))
                step = self._failed(step, text)
                continue
            _log.info("step %d is copied to %s; removed: %s", step, self._shared.directory, saved.removed or "none")
            self._ended(Outcome(step, self._shared.directory, saved.committed_s))
            with self._lock:
                self._uncopied = None if self._uncopied == step else self._uncopied
                if saved.problem:
                    self._report(f"step {step} is in {self._shared.directory}, but {saved.problem}")
                step = self._next()
                self._tidy()

    def _failed(self, step: int, why: str) -> int | None:
        """Go on after a copy that failed; returns the step that is copied now."""
        with self._lock:
            if self._has_parts:
                self._report(f"step {step} is not copied to {self._shared.directory}: {why}")
                return self._next()
            self._copying = None
            self._waiting.insert(0, step)
            self._report(f"step {step} is in {self._local.path} only, until a later attempt to copy it: {why}")
            return None

    def copy_part(self, step: int) -> None:
        """Copy this node's part of a checkpoint.

        Raises:
            CheckpointError: if it isn't whole, there isn't room for it, or the copy is abandoned.
            OSError: if it can't be copied.
        """
        pace = Pace(self._local.drain_bytes_per_s, self._stop)
        parts.copy(steps.path_of(self._local.path, step), self._shared.directory, step, pace)

    def put_together(self, step: int, mark: str) -> Saved:
        """Commit a checkpoint whose parts, of that mark, are all in the shared directory; then go on as `_copy` does.

        Raises:
            CheckpointError: if it can't be committed.
        """
        parts.put_together(self._shared.directory, step, mark)
        return saving.finish(self._shared, step)

    def _copy_parts(self, step: int) -> Saved:
        self.copy_part(step)
        if self._others is None:
            return Saved(time.perf_counter())
        local = steps.path_of(self._local.path, step)
        self._others.await_parts(self._shared.directory, step, local, self._stop)
        return self.put_together(step, parts.mark(local))

    def _copy(self, step: int) -> Saved:
        """Copy a checkpoint, durably; then let the shared `latest` lead to it, and remove what needn't stay."""
        directory = self._shared.directory
        with pinned(steps.path_of(self._local.path, step)) as source:
            known = steps.whole(source.path)
            saving.require_room(directory, sum(known.files.values()))
            with staged(steps.path_of(directory, step)) as staging:
                copy_files(source.path, staging.path, known.files, Pace(self._local.drain_bytes_per_s, self._stop))
                content = (source.path / manifest.FILE).read_bytes()
                durable.write_atomically(staging.path / manifest.FILE, content, sync=True)
                staging.flush()
        return saving.finish(self._shared, step)

    def _tidy(self) -> None:
        """Remove the local checkpoints that needn't stay; the lock is held.

        Until this program has saved one, the newest may be damaged, and an older one all there is.
        """
        if self._newest is None:
            return
        # Once: a save may commit another one at any time, and other nodes may lack that.
        known = [step for step in steps.all_whole(self._local.path) if step <= self._newest]
        for step in known[: -self._local.keep]:
            if step != self._copying:
                self._skip(step, "newer checkpoints were saved before it could be")
                self._remove(step)
        for step in self._waiting.copy():
            if step not in known:  # else it would be tried again for ever, and those behind it would wait
                self._skip(step, f"it is no longer whole in {self._local.path}")

    def _skip(self, step: int, why: str) -> None:
        """Don't copy a checkpoint that may be waiting; the lock is held."""
        if step in self._waiting:
            self._waiting.remove(step)
            self._report(f"step {step} is not copied to {self._shared.directory}: {why}")
            self._ended(Outcome(step, self._shared.directory, problem=why))

    def _remove(self, step: int) -> None:
        try:
            removing.remove(steps.path_of(self._local.path, step))
        except OSError as error:
            self._report(f"an older checkpoint could not be removed: {error}")

    def _report(self, problem: str) -> None:
        self._problem = problem
        _log.warning("%s", problem)
