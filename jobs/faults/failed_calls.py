"""System calls that fail while a method saves: the first one of a kind, then the second one, and so on.

What a file's sync failed to bring to stable storage is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.faults.budget import Budget
from jobs.faults.injecting import has_hit
from jobs.faults.lost_writes import lose
from jobs.faults.outcomes import Outcome
from jobs.faults.replacing import Replacing
from jobs.faults.subject import Subject
from jobs.faults.tracing import require_strace

_DELAY_S = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of call, and its fault.

    Attributes:
        name: for people.
        calls: as strace names them.
        error: with which it fails; empty if it takes long instead, which is tried once.
    """

    name: str
    calls: str
    error: str = ""

    @property
    def fault(self) -> str:
        """What strace does to such a call."""
        return f"error={self.error}" if self.error else f"delay_enter={_DELAY_S * 10**6}"

    @property
    def what(self) -> str:
        """What happens to it, for people."""
        return f"{self.name} fails with {self.error}" if self.error else f"{self.name} takes {_DELAY_S} s more"


_WRITES = "write,pwrite64,writev,pwritev,pwritev2"
_OPENS = "open,openat,openat2,creat"
_SYNCS = "fsync,fdatasync,syncfs"

KINDS = (
    *(Kind("write", _WRITES, error) for error in ("EIO", "ENOSPC", "EDQUOT")),
    Kind("fsync", _SYNCS, "EIO"),
    Kind("rename", "rename,renameat,renameat2", "EIO"),
    *(Kind("open", _OPENS, error) for error in ("ENOSPC", "EMFILE", "ESTALE")),
    Kind("mkdir", "mkdir,mkdirat", "ENOSPC"),
    Kind("close", "close", "EIO"),
    Kind("fallocate", "fallocate", "ENOSPC"),
    Kind("ftruncate", "ftruncate,truncate", "ENOSPC"),
    Kind("unlink or rmdir", "unlink,unlinkat,rmdir", "EIO"),
    Kind("flock", "flock", "ENOLCK"),
    Kind("fsync", _SYNCS),
)


def outcomes(subject: Subject, work: Path, budget: Budget) -> Iterator[Outcome]:
    """Replace the old state by the new one, while calls fail, one in a save.

    Calls are counted by thread, so a save with several threads may have several that fail. A kind's cases end with
    the first save that makes no further call of it.

    Args:
        subject: what saves.
        work: an empty directory on the target.
        budget: how many calls of a kind are tried at most.

    Raises:
        StudyError: if it can't be tried.
    """
    require_strace()
    log = work / "strace"
    with Replacing(subject, work) as replacing:
        for kind in KINDS:
            for number in range(1, budget.calls + 1 if kind.error else 2):
                faults = {kind.calls: f"{kind.fault}:when={number}"}
                ending = replacing.replace(faults=faults, log=str(log))
                if not has_hit(log):
                    break
                lose(log)
                fault = f"the {_ordinal(number)} {kind.what}, the save {ending.what}"
                yield from replacing.outcomes(ending, fault, number)


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in {11, 12, 13} else endings.get(number % 10, 'th')}"
