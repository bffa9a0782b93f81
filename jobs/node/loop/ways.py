"""The ways to save in a loop: holding it, behind it in a thread or a process, or as a library does."""

from __future__ import annotations

import math
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ckpt.background.async_saver import AsyncSaver
from ckpt.background.saver import BackgroundSaver, Done
from ckpt.disk import commit
from ckpt.process_group.store_group import StoreGroup
from ckpt.state.layout import State, layout_of_state
from ckpt.threads import Beside
from jobs.node import committing
from jobs.node.loop import saving
from jobs.node.loop.saving import Committed
from jobs.node.proof import Proof
from jobs.node.subject import Subject


@dataclass(slots=True)
class Call:
    """What one save held up, on this rank."""

    called_s: float
    """The reading of the monotonic clock at the call."""
    checkpoint: Path
    """Where it is to be."""
    wait_s: float = 0.0
    snapshot_s: float = 0.0
    call_s: float = 0.0
    update_wait_s: float = 0.0
    ended: Future[Done] = field(default_factory=Future)
    """How the save ended: a `Committed`."""
    copy: Path | None = None
    """Where the second level is to have it; None if there is no second level, as in the next."""
    drained: Committed | None = None
    """How copying it there ended."""

    @property
    def cpu_s(self) -> float:
        """The CPU time of what saved; NaN where it isn't known."""
        return math.nan if self.ended.exception() else self.ended.result().cpu_s

    @property
    def committed(self) -> Committed:
        """How it ended; waits for that."""
        error = self.ended.exception()
        if error is not None:  # the process that saved is gone, say
            return Committed(problem=f"{type(error).__name__}: {error}")
        committed: Committed = self.ended.result().value
        return committed


class Way(ABC):
    """Saves the subject's state, one save at a time; the subject's groups are for that alone."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._last: Call | None = None

    @property
    def _is_saving(self) -> bool:
        return self._last is not None and not self._last.ended.done()

    @property
    def is_pending(self) -> bool:
        """Whether a save is under way, and may disturb steps."""
        return self._is_saving

    @property
    def failure(self) -> str:
        """Why the last save was not committed; empty if it was, or isn't yet."""
        if self._last is None or self._is_saving:
            return ""
        committed = self._last.committed
        return committed.problem if math.isnan(committed.at_s) else ""

    def save(self, final: Path) -> Call | None:
        """Save under a name; returns when the loop may go on, without a call if the save before failed."""
        call = Call(time.perf_counter(), final)
        if self._last is not None and self._is_saving:
            self._last.ended.exception()  # waits
            call.wait_s = time.perf_counter() - call.called_s
        if self.failure:
            return None
        self._last = call
        self._call(call)
        return call

    @abstractmethod
    def _call(self, call: Call) -> None:
        """Save, and set what of it held the loop, and how it ends."""

    def load(self, subject: Subject, checkpoint: Path) -> State:
        """Load a checkpoint, with the groups of a subject."""
        return subject.load(checkpoint)

    def before_update(self) -> None:
        """Wait until the state may change."""
        return  # most have copied it by then

    def abandon(self, reason: str) -> None:
        """Let the save that is under way fail, as far as that can be done; the loop has ended, or has to."""
        if self.is_pending:
            self._subject.groups.world.fail(reason)

    def close(self) -> None:
        """Wait for the save that is under way, and end what saves."""
        world = self._subject.groups.world
        if isinstance(world, StoreGroup):
            world.leave()


class Sync(Way):
    """Holds the loop until the checkpoint is committed."""

    def __init__(self, subject: Subject, proof: Proof) -> None:
        super().__init__(subject)
        self._proof = proof

    def _call(self, call: Call) -> None:
        start_s, cpu_s = time.perf_counter(), time.process_time()
        committed = saving.save(self._subject, self._proof, call.checkpoint)
        call.ended.set_result(Done(committed, time.process_time() - cpu_s))
        call.call_s = time.perf_counter() - start_s


class Behind(Way):
    """Copies the state, and saves the copy in a thread or a process.

    Args:
        subject: what is saved, with the groups of this process's saves.
        saver: the thread or the process.
        save: what it does with a name and a copy of the state.
        left: a file that the process may leave if it is ended.
    """

    def __init__(
        self,
        subject: Subject,
        saver: BackgroundSaver,
        save: Callable[[Path, State], Committed],
        left: Path | None = None,
    ) -> None:
        super().__init__(subject)
        self._saver, self._save, self._left = saver, save, left
        saver.reserve(layout_of_state(subject.owned))

    def _call(self, call: Call) -> None:
        start_s = taken_s = time.perf_counter()
        try:
            taken = self._saver.take(self._subject.owned)
            taken_s = time.perf_counter()
            call.ended = self._saver.start(taken, partial(self._save, call.checkpoint))
        except Exception as error:  # noqa: BLE001  # whatever a process can't be started for, the log has it
            call.ended.set_result(Done(saving.failed(self._subject, call.checkpoint.parent, error), math.nan))
        call.snapshot_s, call.call_s = taken_s - start_s, time.perf_counter() - taken_s

    def abandon(self, reason: str) -> None:
        """End the process; a thread ends as soon as it waits for another rank's, or has written everything."""
        if self.is_pending:
            for process in self._saver.helpers:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        super().abandon(reason)

    def close(self) -> None:
        """Wait for the save that is under way, and end the thread or process."""
        self._saver.close()
        if self._left is not None:
            self._left.unlink(missing_ok=True)
        super().close()


class Library(Way):
    """Calls the library's own asynchronous save, and syncs and commits in a thread once it has written everything."""

    def __init__(self, subject: Subject, proof: Proof, saver: AsyncSaver) -> None:
        super().__init__(subject)
        self._proof, self._saver = proof, saver
        self._thread = Beside()

    def _call(self, call: Call) -> None:
        start_s, final = time.perf_counter(), call.checkpoint
        begun, staging = None, final.parent
        try:
            begun, staging = committing.begin(self._subject.groups, final)
            saves, writers = self._subject.assignment.saves, self._subject.groups.writers
            assert saves is not None and writers is not None  # noqa: PT018  # every rank of a loop saves
            self._saver.start(self._subject.owned, staging, saves, writers)
        except Exception as error:  # noqa: BLE001  # whatever a library raises, the log has it
            if begun:
                begun.release()
            call.ended.set_result(Done(saving.failed(self._subject, staging, error), math.nan))
        else:
            call.ended = self._thread.submit(self._finish, final, begun, staging)
        call.call_s = time.perf_counter() - start_s

    def _finish(self, final: Path, begun: commit.Staging | None, staging: Path) -> Done:
        finished = saving.finish(self._subject, self._proof, final, begun, staging, lambda _: self._saver.finish())
        return Done(finished, math.nan)

    def before_update(self) -> None:
        """Wait until the library has its copy."""
        if self._last is not None and self.is_pending:
            start_s = time.perf_counter()
            with suppress(Exception):  # `finish` raises it, or the checkpoint is not the state
                self._saver.before_update()
            self._last.update_wait_s += time.perf_counter() - start_s

    def close(self) -> None:
        """Wait for the save that is under way, and end the library's threads and processes."""
        self._thread.__exit__()
        self._saver.close()
        super().close()
