"""Power cuts: a save is recorded, and every state in which one may leave the directory is made and restarted from."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import StudyError
from jobs.faults.budget import Budget
from jobs.faults.crash_states import State, last_state, states
from jobs.faults.outcomes import Outcome
from jobs.faults.program import command
from jobs.faults.recorded_steps import described
from jobs.faults.recording import Recording
from jobs.faults.restarting import Restarts
from jobs.faults.subject import NEW, OLD, Restart, Subject, judge
from jobs.faults.tracing import record

_SINGLE = 8
"""A library that syncs nothing has a hundred such operations, and every one at every moment would take an hour."""

_RECORDINGS = 3
"""At most, of one save. Few are incomplete, and then of libraries with many threads."""


def outcomes(subject: Subject, work: Path, budget: Budget) -> Iterator[Outcome]:
    """Cut the power at every moment of a save, and after its return.

    The checkpoint before it counts as durable. Directories that are equal are one case, the earliest one; but two where
    the save had returned before one of the cuts only.

    Args:
        subject: what saves.
        work: an empty directory.
        budget: its seed is of the parts that are lost; `cuts` is how many states to try at least, equal ones included.

    Raises:
        StudyError: if the save can't be recorded.
    """
    root = work / "run"
    recording = _recorded(subject, root, work / "trace")
    begin, returned = (recording.steps.index(mark) for mark in ("begin", "returned"))
    moments = described(recording)
    restarts: dict[bytes, Restart] = {}
    judged: set[tuple[bytes, bool]] = set()
    with Restarts(subject) as worker:
        for state in states(recording, budget.seed, _SINGLE, budget.cuts):
            saved = state.step > returned
            case = _digest(state), saved
            if state.step <= begin or case in judged:
                continue
            judged.add(case)
            if case[0] not in restarts:
                shutil.rmtree(root)  # under the name that it had: a library may store absolute paths
                state.write(root)
                restarts[case[0]] = worker.restart(root)
            fault = f"power cut after {moments[state.step - 1]} ({state.model})"
            yield judge(restarts[case[0]], saved=saved or None, fault=fault, size=state.step)


def _recorded(subject: Subject, root: Path, trace: Path, tries: int = _RECORDINGS) -> Recording:
    """Record a save, once more if the recording isn't complete: strace may report threads' calls in another order."""
    root.mkdir()
    subject.save(subject.state_at(OLD), OLD, root)
    recording = record(root, command(subject, root, NEW), trace)
    try:
        check_complete(recording, root)
    except StudyError:
        if tries == 1:
            raise
        shutil.rmtree(root)
        return _recorded(subject, root, trace, tries - 1)
    return recording


def _digest(state: State) -> bytes:
    """Tell directories apart, without keeping what they hold."""
    digest = hashlib.sha256()
    for name, value in sorted(state.content.items()):
        kind = "-" if value is None else type(value).__name__
        content = os.fsencode(value) if isinstance(value, str) else value or b""
        digest.update(f"{kind} {len(name)} {len(content)} ".encode() + os.fsencode(name) + content)
    return digest.digest()


def check_complete(recording: Recording, root: Path) -> None:
    """Make sure that the recording has all that the program did: its end is what lies there."""
    recorded = last_state(recording).content
    left: dict[str, bytes | str | None] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        left[name] = str(path.readlink()) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    wrong = sorted(name for name in recorded.keys() | left.keys() if recorded.get(name, "") != left.get(name, ""))
    if wrong:
        raise StudyError(
            f"the save changes files in a way that its system calls don't show, such as memory that is mapped from "
            f"them, so no power cut can be tried: {wrong[0]} differs from what was recorded"
        )
