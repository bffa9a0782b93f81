"""What a checkpoint says of itself: `checkpoint.json`, the last file that a save writes into it.

It names the strategy, the tensors, the plain values of the state, and every file with its size: so that a load finds
the way back, and sees what is missing before it reads anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckpt import storage
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, TensorLayout

FILE = "checkpoint.json"
_FORMAT = "ckpt-study checkpoint"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `checkpoint.json`."""

    strategy: str
    options: dict[str, Any]
    """As they were when it was saved. A load takes its options from the caller alone."""
    created_utc: str
    tensors: Layout
    tied: dict[str, str]
    """Names that share another tensor's memory, and its name."""
    rest: Any
    """The state without its tensors, as `ckpt.tree` has it."""
    files: dict[str, int]
    """Every other file, and its size in bytes."""

    def write(self, directory: Path) -> None:
        """Write it, whole or not at all, and sync it."""
        tensors = {each.name: {"dtype": each.dtype, "shape": list(each.shape)} for each in self.tensors}
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self), "tensors": tensors}
        storage.write_whole(directory / FILE, json.dumps(content).encode(), sync=True)

    def problems(self, directory: Path) -> list[str]:
        """What a directory lacks of this checkpoint; empty if it is complete."""
        found = []
        for name, size_bytes in self.files.items():
            try:
                have = (directory / name).stat().st_size
            except FileNotFoundError:
                found.append(f"{name} ({size_bytes:,} bytes) is missing")
                continue
            if have != size_bytes:
                found.append(f"{name} has {have:,} bytes of {size_bytes:,}")
        return found


def read(directory: Path) -> Manifest | None:
    """A checkpoint's own word; None where there is none.

    Raises:
        CheckpointError: if it is damaged, or of an unknown version.
    """
    path = directory / FILE
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            return None
        version = content["version"]
        if version == _VERSION:
            return _parsed(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    raise CheckpointError(
        f"{path} has version {version!r}, and version {_VERSION} is known here: load it with the release of this "
        "package that wrote it, or a later one"
    )


def _parsed(content: dict[str, Any]) -> Manifest:
    tensors = {
        str(name): TensorLayout(str(name), tuple(map(int, told["shape"])), str(told["dtype"]))
        for name, told in content["tensors"].items()
    }
    tied = {str(name): str(owner) for name, owner in content["tied"].items()}
    if not set(tied.values()) <= tensors.keys():
        raise ValueError("its tied names point nowhere")
    return Manifest(
        strategy=str(content["strategy"]),
        options=dict(content["options"]),
        created_utc=str(content["created_utc"]),
        tensors=tuple(tensors.values()),
        tied=tied,
        rest=content["rest"],
        files={str(name): int(size_bytes) for name, size_bytes in content["files"].items()},
    )


def files_of(directory: Path) -> dict[str, int]:
    """Every file below a directory, and its size, as a manifest lists them."""
    return {
        str(Path(entry.path).relative_to(directory)): entry.stat(follow_symlinks=False).st_size
        for entry in sorted(storage.files_below(directory), key=lambda entry: entry.path)
        if Path(entry.path) != directory / FILE
    }
