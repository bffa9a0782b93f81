"""How the ranks of a job commit a checkpoint together, whoever holds the clock; and is it durable then?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpt.disk import commit, durable, page_cache, writeback
from jobs.node import received
from jobs.node.groups import ProcessGroups
from jobs.node.proof import Proof
from jobs.node.recorder import NOT_DURABLE
from jobs.node.subject import Subject


def begin(groups: ProcessGroups, final: Path) -> tuple[commit.Staging | None, Path]:
    """Make a directory to write into; returns it, on the rank that publishes it, and its path on all."""
    begun = commit.begin(final) if groups.is_leader else None
    return begun, Path(groups.checkpoint.broadcast(str(begun.path) if begun else None, received.text))


def sync(subject: Subject, staging: Path, files: list[Path]) -> None:
    """Bring what this process wrote to stable storage; directories that others write into too come later."""
    syncs_files = subject.strategy.capabilities.syncs_files
    if subject.writes_alone:
        durable.flush(staging, files=not syncs_files)
    elif not syncs_files:
        durable.sync_files(files)


def publish(subject: Subject, begun: commit.Staging | None) -> None:
    """Give the checkpoint its name, once the files of all processes are on storage, and not before."""
    world = subject.groups.world
    world.barrier()
    if begun:
        if not subject.writes_alone:
            durable.flush(begun.path, files=False)
        begun.publish()
    world.barrier()


def unwritten(
    subject: Subject, final: Path, staging: Path, files: Sequence[Path], proof: Proof
) -> tuple[str, int | None]:
    """What shows that a committed checkpoint isn't durable, empty if nothing; and how many pages aren't on storage yet.

    Call it as soon as the checkpoint is committed.

    Args:
        subject: what was saved.
        final: the checkpoint.
        staging: where it was written.
        files: what this process wrote there.
        proof: what this node can prove.
    """
    if subject.writes_alone:
        dirty = page_cache.dirty_pages(final, proof.sight)
    else:
        dirty = page_cache.dirty_pages_of([final / file.relative_to(staging) for file in files], proof.sight)
    return (f"{NOT_DURABLE}: {dirty} pages were not on storage when it had ended" if dirty else ""), dirty


def failed_writes(descriptor: int) -> str:
    """What the kernel failed to write since a descriptor was opened, empty if nothing.

    Outside any clock: it syncs the whole filesystem, other programs' files too.
    """
    try:
        writeback.raise_errors(descriptor)
    except OSError as error:
        return f"{NOT_DURABLE}: {error}"
    return ""
