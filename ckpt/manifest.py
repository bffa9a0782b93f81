"""What a checkpoint says of itself: `checkpoint.json`, the last file that a save writes into it.

It names the strategy, the tensors with a checksum of each, the plain values of the state, and every file with its size:
so that a load finds the way back, sees what is missing before it reads anything, and knows what it has read from what
was saved. A checksum of its own, over its content as `json.dumps` writes it, finds damage in the file itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt.disk import durable, listing
from ckpt.errors import CheckpointError
from ckpt.state import checksums
from ckpt.state.layout import Layout, TensorLayout

FILE = "checkpoint.json"
_FORMAT = "ckpt-study checkpoint"
_VERSION = 2
_WITHOUT_CHECKSUMS = 1
_CHECKSUM = "xxh3_64"
_KEYS = {"format", "version", "strategy", "options", "created_utc", "tensors", "tied", "rest", "files", _CHECKSUM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `checkpoint.json`."""

    strategy: str
    options: dict[str, Any]
    """As they were when it was saved. A load takes its options from the caller alone."""
    created_utc: str
    tensors: Layout
    checksums: dict[str, str]
    """XXH3-64 of each tensor's bytes in hexadecimal; empty in checkpoints of the first version."""
    tied: dict[str, str]
    """Names that share another tensor's memory, and its name."""
    rest: Any
    """The state without its tensors, as `ckpt.tree.nested` has it."""
    files: dict[str, int]
    """Every other file, and its size in bytes."""

    def write(self, directory: Path) -> None:
        """Write it, whole or not at all, and sync it."""
        tensors = {
            tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), _CHECKSUM: self.checksums[tensor.name]}
            for tensor in self.tensors
        }
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "strategy": self.strategy,
            "options": self.options,
            "created_utc": self.created_utc,
            "tensors": tensors,
            "tied": self.tied,
            "rest": self.rest,
            "files": self.files,
        }
        durable.write_whole(directory / FILE, json.dumps(sealed(content)).encode(), sync=True)

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


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with the checksum of the rest of it."""
    rest = {key: value for key, value in content.items() if key != _CHECKSUM}
    return {**rest, _CHECKSUM: checksums.of_bytes(json.dumps(rest).encode())}


def read(directory: Path) -> Manifest | None:
    """A checkpoint's own word; None where there is none, or the file of that name is another program's.

    Raises:
        CheckpointError: if it is damaged, or of an unknown version.
    """
    path = directory / FILE
    try:
        content = json.loads(path.read_bytes())
        # One damaged key must not make another program's file of ours.
        if not isinstance(content, dict) or len(content.keys() & _KEYS) < len(_KEYS) // 2:
            return None
        version = content["version"]
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}")  # noqa: TRY301  # with the other damages
        if version == _VERSION and content != sealed(content):
            raise ValueError("its content is not what was written (XXH3 differs)")  # noqa: TRY301  # as above
        if version in {_VERSION, _WITHOUT_CHECKSUMS}:
            return _parsed(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    raise CheckpointError(
        f"{path} has version {version!r}, and versions up to {_VERSION} are known here: load it with the release of "
        "this package that wrote it, or a later one"
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
        checksums={
            str(name): str(entry[_CHECKSUM]) for name, entry in content["tensors"].items() if _CHECKSUM in entry
        },
        tied=tied,
        rest=content["rest"],
        files={str(name): int(size_bytes) for name, size_bytes in content["files"].items()},
    )


def files_of(directory: Path) -> dict[str, int]:
    """Every file below a directory, and its size, as a manifest lists them."""
    return {
        str(Path(entry.path).relative_to(directory)): entry.stat(follow_symlinks=False).st_size
        for entry in sorted(listing.files_below(directory), key=lambda entry: entry.path)
        if Path(entry.path) != directory / FILE
    }
