"""What DCP asks of a storage writer and of a reader alike: the path of the checkpoint, and whether it can be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import filesystem


class Located:
    """A storage writer or reader of a directory.

    Attributes:
        path: the directory; a call of DCP may give another one as `checkpoint_id`.
    """

    path: Path

    @property
    def checkpoint_id(self) -> Path:
        """The path of the checkpoint."""
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return whether it is a path that can be written to."""
        return filesystem.FileSystem.validate_checkpoint_id(checkpoint_id)

    def move(self, checkpoint_id: Any) -> None:
        """Take another path, if one is given."""
        if checkpoint_id is not None:
            self.path = Path(checkpoint_id).absolute()
