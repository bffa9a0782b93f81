"""The ways to save in a loop: not at all, holding it, behind it in a thread or a process, or as a library does."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ckpt.background.library import LibrarySaver
from ckpt.background.saver import BackgroundSaver, Done
from ckpt.threads import Beside
from jobs.node import committing
from jobs.node.loop import saving
from jobs.node.loop.saving import Committed
from jobs.node.proof import Proof
from jobs.node.subject import Subject


@dataclass(slots=True)
class Call:
    """What one save held up, on this rank; `ended` has how it ended."""

    called_s: float
    """The reading of the monotonic clock at the call."""
    wait_s: float = 0.0
    snapshot_s: float = 0.0
    call_s: float = 0.0
    update_wait_s: float = 0.0
    ended: Future[Done] | None = None

    @property
    def cpu_s(self) -> float:
        """The CPU time of what saved; NaN where it isn't known."""
        done = self.ended is not None and self.ended.exception() is None
        return self.ended.result().cpu_s if done and self.ended else math.nan

    @property
    def committed(self) -> Committed:
        """How it ended; waits for that."""
        assert self.ended is not None  # it was called
        try:
            return self.ended.result().value  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001  # the process that saved is gone, say
            return Committed(problem=f"{type(error).__name__}: {error}")


class Way(ABC):
    """Saves the subject's state, one save at a time."""

    def __init__(self, subject: Subject, proof: Proof) -> None:
        self._subject, self._proof = subject, proof
        self._last: Call | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a save is under way."""
        return self._last is not None and self._last.ended is not None and not self._last.ended.done()

    def save(self, final: Path) -> Call:
        """Save under a name; returns when the loop may go on."""
        call = Call(time.perf_counter())
        if self.is_pending and self._last and self._last.ended:
            self._last.ended.exception()
        call.wait_s = time.perf_counter() - call.called_s
        self._last = call
        self._call(call, final)
        return call

    @abstractmethod
    def _call(self, call: Call, final: Path) -> None:
        """Save, and set what of it held the loop, and how it ends."""

    def before_update(self) -> None:
        """Wait until the state may change."""

    @property
    def helpers(self) -> list[int]:
        """The numbers of the processes that save."""
        return []

    def close(self) -> None:
        """Wait for the save that is under way, and end what saves."""


class Sync(Way):
    """Holds the loop until the checkpoint is committed."""

    def _call(self, call: Call, final: Path) -> None:
        start_s, cpu_s = time.perf_counter(), time.process_time()
        call.ended = Future()
        committed = saving.save(self._subject, self._proof, final)
        call.ended.set_result(Done(committed, time.process_time() - cpu_s))
        end_s = time.perf_counter()
        call.call_s = end_s - start_s


class Behind(Way):
    """Copies the state, and saves the copy in a thread or a process."""

    def __init__(self, subject: Subject, proof: Proof, saver: BackgroundSaver, save: Any) -> None:
        super().__init__(subject, proof)
        self._saver, self._save = saver, save
        saver.reserve(subject.saved_bytes)

    def _call(self, call: Call, final: Path) -> None:
        start_s = time.perf_counter()
        snapshot = self._saver.take(self._subject.state)
        taken_s = time.perf_counter()
        call.ended = self._saver.start(snapshot, partial(self._save, final))
        call.snapshot_s, call.call_s = taken_s - start_s, time.perf_counter() - taken_s

    @property
    def helpers(self) -> list[int]:
        """The process that saves, if there is one."""
        return self._saver.helpers

    def close(self) -> None:
        """Wait for the save that is under way, and end the thread or process."""
        self._saver.close()


class Library(Way):
    """Calls the library's own asynchronous save, and syncs and commits in a thread once it has written everything."""

    def __init__(self, subject: Subject, proof: Proof, saver: LibrarySaver) -> None:
        super().__init__(subject, proof)
        self._saver = saver
        self._thread = Beside()

    def _call(self, call: Call, final: Path) -> None:
        start_s = time.perf_counter()
        try:
            begun, staging = committing.begin(self._subject.groups, final)
            assignment, groups = self._subject.assignment, self._subject.groups
            assert assignment.saves is not None  # every rank of a loop saves
            assert groups.writers is not None
            owned = {shard.whole.name: self._subject.state[shard.whole.name] for shard in assignment.saves.owned}
            self._saver.start(owned, staging, assignment.saves, groups.writers)
        except Exception as error:  # noqa: BLE001  # whatever a library raises, the log has it
            call.ended = Future()
            call.ended.set_exception(error)
        else:
            call.ended = self._thread.submit(self._finish, final, begun, staging)
        call.call_s = time.perf_counter() - start_s

    def _finish(self, final: Path, begun: Any, staging: Path) -> Done:
        finished = saving.finish(self._subject, self._proof, final, begun, staging, lambda _: self._saver.finish())
        return Done(finished, float("nan"))

    def before_update(self) -> None:
        """Wait until the library has its copy."""
        if self._last is not None and self.is_pending:
            start_s = time.perf_counter()
            self._saver.before_update()
            self._last.update_wait_s += time.perf_counter() - start_s

    @property
    def helpers(self) -> list[int]:
        """The processes that the library started."""
        return self._saver.helpers

    def close(self) -> None:
        """Wait for the save that is under way, and end the library's threads and processes."""
        self._thread.__exit__()
        self._saver.close()
