"""One save of a loop, wherever it runs: written, synced, committed by all ranks together, and looked at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt.disk import commit, full
from ckpt.errors import LostRankError
from ckpt.state.layout import State
from jobs.node import committing
from jobs.node.proof import Proof
from jobs.node.subject import Subject


@dataclass(frozen=True, slots=True)
class Committed:
    """How a save ended on one rank."""

    at_s: float = math.nan
    """The reading of the monotonic clock, shared by a node's processes, when it was committed; NaN if it never was."""
    dirty_pages: int | None = None
    problem: str = ""
    synced_s: float = math.nan
    """The clock's reading when this rank's files were on storage."""


def save(subject: Subject, proof: Proof, final: Path, state: State | None = None) -> Committed:
    """Save a state, or the subject's own, under a name; an error is returned, for all ranks learn of it.

    The subject's groups are used by one save at a time, and by nothing else meanwhile.
    """
    if state is not None:
        subject = replace(subject, state=state)
    try:
        begun, staging = committing.begin(subject.groups, final)
    except Exception as error:  # noqa: BLE001  # whatever is raised, the log has it
        return failed(subject, final.parent, error)
    return finish(subject, proof, final, begun, staging, subject.save)


def finish(
    subject: Subject,
    proof: Proof,
    final: Path,
    begun: commit.Staging | None,
    staging: Path,
    write: Callable[[Path], list[Path]],
) -> Committed:
    """Let `write` fill the staging directory, which returns this rank's files; then sync and commit."""
    phase = "call"
    try:
        files = write(staging)
        phase = "sync"
        committing.sync(subject, staging, files)
        synced_s = time.perf_counter()
        phase = "commit"
        committing.publish(subject, begun)
        at_s = time.perf_counter()
        problem, dirty = committing.unwritten(subject, final, staging, files, proof)
        return Committed(at_s, dirty, problem, synced_s)
    except Exception as error:  # noqa: BLE001  # whatever a library raises, the log has it
        return failed(subject, staging, error, phase)
    finally:
        if begun:
            begun.release()


def failed(subject: Subject, directory: Path, error: Exception, phase: str = "call") -> Committed:
    """How a save ended that raised an error in a phase; the other ranks learn of it, unless it is theirs."""
    if isinstance(error, LostRankError):
        return Committed(problem=str(error))
    problem = f"{phase}: {full.named(f'{type(error).__name__}: {error}', error, directory)}"
    subject.groups.world.fail(problem)
    return Committed(problem=problem)
