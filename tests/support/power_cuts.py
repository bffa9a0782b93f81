"""What a load finds in every state in which a power cut may leave a directory: see `jobs.faults.crash_states`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ckpt
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from jobs.faults.crash_states import State, states
from jobs.faults.recording import Recording
from support.one_save import step_in


class Outcomes:
    """What a load finds in every state, each different one made once."""

    def __init__(self, recording: Recording, directory: Path, what: str, single: int | None = None) -> None:
        """Take a recording, a directory to make states in, and what was recorded; `single` is as `states` takes it."""
        self._recording, self._directory, self._what = recording, directory, what
        self._single = single
        self._known: dict[frozenset[tuple[str, bytes | str | None]], str] = {}
        self.count = Counter[str]()

    def __iter__(self) -> Iterator[tuple[State, str]]:
        for state in states(self._recording, single=self._single):
            self.count[state.model] += 1
            key = frozenset(state.content.items())
            if key not in self._known:
                self._known[key] = self._load(state)
            yield state, self._known[key]

    def _load(self, state: State) -> str:
        path = self._directory / "state"
        shutil.rmtree(path, ignore_errors=True)
        state.write(path)
        try:
            if self._what == "save":
                return str(step_in(ckpt.load(path / "run" / "latest")))
            levels: dict[str, Any] = {"local": path / "local"} if self._what.endswith("2") else {}
            if levels and (link := path / "local" / "shared-directory").is_symlink():
                link.unlink()  # it names the directory that was recorded
                link.symlink_to(path / "shared")
            with Checkpointer(path / "shared", background="none", **levels) as checkpoints:
                restored = checkpoints.restore()
            return str(step_in(restored.state)) if restored else "nothing"
        except CheckpointError as error:
            return f"error: {error}"
        except (KeyError, AssertionError) as error:
            return f"another state: {error!r}"

    @property
    def different(self) -> int:
        """How many different directories were loaded."""
        return len(self._known)


def wrong(outcomes: Outcomes, recording: Recording, before: str) -> list[tuple[str, int, str]]:
    """The states in which the load doesn't find the old checkpoint, or the new one; after the save only the new one."""
    begin, returned = (recording.steps.index(mark) for mark in ("begin", "returned"))
    found = []
    for state, outcome in outcomes:
        old = outcome == before or (before == "nothing" and outcome.startswith("error: "))
        allowed = outcome == "2" or (old and state.step <= returned)
        if state.step > begin and not allowed:
            found.append((state.model, state.step, outcome))
    return found
