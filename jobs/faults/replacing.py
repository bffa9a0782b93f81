"""Saves that replace the old state by the new one, over and over: what a restart has then, and what the next save does.

A fault may also spoil what comes after it, so every case ends with a save that nothing befalls. If that one goes
wrong, it is a case of its own: it raises, a restart doesn't have its state, or it leaves something beside the
checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from jobs.errors import StudyError
from jobs.faults.children import Ending
from jobs.faults.outcomes import COMMITTED, DETECTED, SILENT, Outcome
from jobs.faults.restarting import Restarts
from jobs.faults.saving import Request, Saves
from jobs.faults.subject import NEW, OLD, Subject, judge


class Replacing:
    """Such saves of one subject; a context, which ends the processes that save and restart."""

    def __init__(self, subject: Subject, work: Path) -> None:
        """Save the old state.

        Args:
            subject: what saves.
            work: an empty directory on the target.

        Raises:
            StudyError: if it can't be saved although nothing befalls the save.
        """
        self._subject, self._work = subject, work
        self._root, self._saved = work / "root", work / "saved"
        with ExitStack() as resources:
            self._saves = resources.enter_context(Saves(subject))
            self._restarts = resources.enter_context(Restarts(subject))
            self._root.mkdir()
            ending = self._save(OLD, OLD)
            if not ending.returned:
                raise StudyError(f"the save {ending.what}, although nothing befalls it")
            shutil.copytree(self._root, self._saved, symlinks=True)
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def replace(self, **befalls: Any) -> Ending:
        """Save the new state where the old one lies, while this befalls the save: see `Request`."""
        shutil.rmtree(self._root)  # the copy has the same name: a library may store absolute paths
        shutil.copytree(self._saved, self._root, symlinks=True)
        return self._save(NEW, NEW, rehearsal=str(self._work / "rehearsal"), **befalls)

    def _save(self, values: int, step: int, **befalls: Any) -> Ending:
        return self._saves.save(Request(str(self._root), values, step, **befalls))

    def outcomes(self, ending: Ending, fault: str, size: int) -> Iterator[Outcome]:
        """Restart, and judge; then save once more, and judge that if it goes wrong."""
        restart = self._restarts.restart(self._root)
        yield judge(restart, saved=ending.returned, fault=fault, size=size)
        values = OLD if restart.step == NEW else NEW  # something else than what lies there
        following = self._save(values, NEW + 1)
        if not following.returned:
            yield Outcome(DETECTED, f"{fault}: the next save {following.what}", size)
            return
        restart = self._restarts.restart(self._root)
        if restart.step != values:
            verdict = DETECTED if restart.is_error else SILENT
            yield Outcome(verdict, f"{fault}: after the next save, {restart.what}", size)
        elif self._subject.use == COMMITTED and (left := self._left()):
            yield Outcome(DETECTED, f"{fault}: the next save leaves {', '.join(left)} beside the checkpoint", size)

    def _left(self) -> list[str]:
        """What lies beside the checkpoint."""
        return sorted({path.name for path in self._root.iterdir()} - {path.name for path in self._saved.iterdir()})
