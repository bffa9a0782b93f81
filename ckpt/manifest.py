"""The manifest of a checkpoint, `checkpoint.json`, which a save writes as the last file.

It lists the strategy, the tensors with their checksums, the plain values of the state, and all files with their sizes.
A load reads it first, so that it can choose the strategy, report missing files before it reads any, and verify the
tensors. The manifest has a checksum of its own content, as `json.dumps` writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
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
    """The strategy's options during the save. A load uses only the caller's options."""
    created_utc: str
    tensors: Layout
    checksums: dict[str, str]
    """The XXH3-64 of each tensor's bytes in hexadecimal; empty in checkpoints of the first version, and of ranks."""
    tied: dict[str, str]
    """The names that are tied to another tensor, and that tensor's name."""
    rest: Any
    """The state without its tensors, as `ckpt.tree.nested.flatten` returns it."""
    files: dict[str, int]
    """The other files of the checkpoint, and their sizes in bytes."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What a `Checkpointer` knows of the checkpoint: its step and metrics, and `part`; empty for others."""

    @property
    def part(self) -> tuple[int, int] | None:
        """The number of this part of a checkpoint, and of how many, where every node has one; None of a whole one."""
        match self.notes.get("part"):
            case [int(number), int(count)]:
                return number, count
        return None

    def write(self, directory: Path) -> None:
        """Write the manifest atomically, and sync it."""
        tensors = {
            tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
            | ({_CHECKSUM: self.checksums[tensor.name]} if self.checksums else {})
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
        if self.notes:
            content["notes"] = self.notes
        durable.write_atomically(directory / FILE, json.dumps(sealed(content)).encode(), sync=True)

    def problems(self, directory: Path) -> list[str]:
        """Return messages about files that are missing or have another size; empty if the checkpoint is complete."""
        messages = []
        for name, size_bytes in self.files.items():
            try:
                actual_bytes = (directory / name).stat().st_size
            except FileNotFoundError:
                messages.append(f"{name} ({size_bytes:,} bytes) is missing")
                continue
            if actual_bytes != size_bytes:
                messages.append(f"{name} has {actual_bytes:,} bytes of {size_bytes:,}")
        return messages


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with the checksum of its other keys."""
    rest = {key: value for key, value in content.items() if key != _CHECKSUM}
    return {**rest, _CHECKSUM: checksums.of_bytes(json.dumps(rest).encode())}


def read(directory: Path) -> Manifest | None:
    """Read a checkpoint's manifest; None if there is no such file, or another program wrote it.

    Raises:
        CheckpointError: if the manifest is damaged, or has an unknown version.
    """
    path = directory / FILE
    try:
        content = json.loads(path.read_bytes())
        # One damaged key must not make our file look like another program's.
        if not isinstance(content, dict) or len(content.keys() & _KEYS) < len(_KEYS) // 2:
            return None
        version = content["version"]
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}")  # noqa: TRY301  # reported with other damage
        if version == _VERSION and content != sealed(content):
            raise ValueError("its content is not what was written (XXH3 differs)")  # noqa: TRY301  # as above
        if version in {_VERSION, _WITHOUT_CHECKSUMS}:
            return _parsed(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    raise CheckpointError(
        f"{path} has version {version!r}, and this release reads versions up to {_VERSION}: load it with the release "
        "that wrote it, or a later one"
    )


def _parsed(content: dict[str, Any]) -> Manifest:
    tensors = {
        str(name): TensorLayout(str(name), tuple(map(int, entry["shape"])), str(entry["dtype"]))
        for name, entry in content["tensors"].items()
    }
    tied = {str(name): str(owner) for name, owner in content["tied"].items()}
    if not set(tied.values()) <= tensors.keys():
        raise ValueError("its tied names refer to missing tensors")
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
        notes=dict(content.get("notes", {})),
    )


def files_of(directory: Path) -> dict[str, int]:
    """Return all files in a directory tree with their sizes, as a manifest lists them."""
    return {
        str(Path(entry.path).relative_to(directory)): entry.stat(follow_symlinks=False).st_size
        for entry in sorted(listing.files_below(directory), key=lambda entry: entry.path)
        if Path(entry.path) != directory / FILE
    }
