"""The node-local level of a series: where it is, and whose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpt.disk import durable
from ckpt.errors import CheckpointError
from ckpt.reading import path_of
from ckpt.series import steps

_SHARED = "shared-directory"
"""A link in the local directory to the shared one: it is there whole or not at all."""


@dataclass(frozen=True, slots=True)
class Local:
    """Node-local storage, where saves are committed first; a thread copies them to the shared directory ("drains" it).

    Attributes:
        directory: for one series alone. It needs room for `keep` checkpoints and two more.
        keep: how many of the newest checkpoints stay there.
        drain_every: checkpoints whose step is a multiple of it are copied to the shared directory, and the last one.
        drain_bytes_per_s: the most that copying may take of the storage and the network; 0 for no limit.

    Raises:
        CheckpointError: if a number is too small.
    """

    directory: Path | str
    keep: int = 1
    drain_every: int = 1
    drain_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.keep < 1 or self.drain_every < 1 or self.drain_bytes_per_s < 0:
            raise CheckpointError(
                f"Local(keep={self.keep}, drain_every={self.drain_every}, drain_bytes_per_s={self.drain_bytes_per_s}) "
                "isn't possible: `keep` and `drain_every` are at least 1, and the rate is 0 for no limit, or more"
            )

    @property
    def path(self) -> Path:
        """The directory, absolute."""
        return path_of(self.directory)


def identity(local: Path) -> list[int]:
    """What tells a claimed directory from that of another node; empty if there is none."""
    try:
        status = (local / _SHARED).lstat()
    except FileNotFoundError:
        return []
    return [status.st_ino, status.st_ctime_ns]


def claim(local: Path, shared: Path) -> None:
    """Mark a local directory as the shared one's, so that no other series resumes from what is left there.

    Raises:
        CheckpointError: if it is another series', or has checkpoints of a series without a second level.
        OSError: if it can't be written to.
    """
    link = local / _SHARED
    owner = str(link.readlink()) if link.is_symlink() else ""
    if owner == str(shared):
        return
    if owner or steps.steps_in(local):
        whose = f"the series in {owner}" if owner else "another series"
        raise CheckpointError(
            f"{local} has checkpoints of {whose}, and not of {shared}: give `local` a directory of its own for every "
            "series, or remove what is there"
        )
    durable.make_directories(local)
    try:
        link.symlink_to(shared)
    except FileExistsError:  # another rank of this node was faster
        claim(local, shared)
    durable.fsync_path(local)
