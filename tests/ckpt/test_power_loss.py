"""A power cut at any moment of a save leaves the old checkpoint or the new one, and after the save the new one.

Saves are recorded, and every state that a filesystem may leave is made, and loaded: see `jobs.faults.crash_states`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from jobs.faults.crash_states import State, states
from jobs.faults.processes import python
from jobs.faults.recording import Recording
from jobs.faults.tracing import record
from support import one_save
from support.faults import require_strace
from support.one_save import step_in

STRATEGIES = ["safetensors_tuned", "safetensors_file", "torch_save", "torch_dcp_direct", "tensorstore_tuned", "hdf5"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is recorded."""
    require_strace()
    path = tmp_path / "recorded"
    path.mkdir()
    return path


def recorded(what: str, root: Path, step: int, strategy: str, skip: str = "") -> Recording:
    """Save, in a process of its own that is traced."""
    words = [what, str(root), str(step), strategy, *([skip] if skip else [])]
    return record(root, python("support.one_save", *words), root.with_name("trace"))


class Outcomes:
    """What a load finds in every state, each different one made once."""

    def __init__(self, recording: Recording, directory: Path, what: str) -> None:
        self._recording, self._directory, self._what = recording, directory, what
        self._known: dict[frozenset[tuple[str, bytes | str | None]], str] = {}
        self.count = Counter[str]()

    def __iter__(self) -> Iterator[tuple[State, str]]:
        for state in states(self._recording):
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
            levels = {"local": path / "local"} if self._what.endswith("2") else {}
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


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("before", ["nothing", "1"])
def test_a_save(strategy: str, before: str, root: Path, tmp_path: Path) -> None:
    """A first one, below a directory that is new, and one that replaces a checkpoint."""
    if before == "1":
        ckpt.save(one_save.state_of(1), root / "run" / "latest", strategy)
    recording = recorded("save", root, 2, strategy)
    outcomes = Outcomes(recording, tmp_path, "save")
    assert [] == wrong(outcomes, recording, before)
    assert outcomes.different > 10
    assert set(outcomes.count) == {"everything", "synced", "journalled", "unordered"}


@pytest.mark.parametrize("levels", ["checkpointer1", "checkpointer2"])
@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_series(levels: str, root: Path, tmp_path: Path) -> None:
    """Saved behind the program, on one level and on two, with the removal of the checkpoint before."""
    two = {"local": root / "local"} if levels == "checkpointer2" else {}
    with Checkpointer(root / "shared", background="none", **two) as checkpoints:
        checkpoints.save(1, one_save.state_of(1))
    recording = recorded(levels, root, 2, "safetensors_tuned")
    outcomes = Outcomes(recording, tmp_path, levels)
    assert [] == wrong(outcomes, recording, "1")
    assert outcomes.different > 20


@pytest.mark.parametrize("skip", ["all", "content", "name"])
def test_a_doctored_commit_is_noticed(skip: str, root: Path, tmp_path: Path) -> None:
    """Without its syncs a save leaves states in which neither checkpoint is whole, or the new one is lost."""
    ckpt.save(one_save.state_of(1), root / "run" / "latest")
    recording = recorded("save", root, 2, "safetensors_tuned", skip)
    assert wrong(Outcomes(recording, tmp_path, "save"), recording, "1")
