"""Checkpoints for a training loop: `save`, `load`, `inspect`, `convert`.

    ckpt.save({"model": model.state_dict(), "step": step}, "run/latest")
    state = ckpt.load("run/latest")

A save is atomic: whatever happens at whatever instant, under the final name lies the checkpoint of before or the new
one, whole and on stable storage. Nothing that a file says is executed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ckpt import commit, dtypes, foreign, leftovers, manifest, storage, strategy
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, TensorLayout
from ckpt.manifest import Manifest
from ckpt.pinned import Identity, Pinned, identity, pinned
from ckpt.storage import Inventory
from ckpt.strategy import Strategy, select

DEFAULT = "safetensors_direct"

_MOST_REPLACEMENTS = 100

_NOT_OURS = "{} exists, and is no checkpoint of this package: give the checkpoint another name, or move it away"

_READ_BACK_BYTES = 256 * 2**20

_Result = TypeVar("_Result")


def save(state: Any, directory: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Save a state, durably, as the checkpoint of that name; an earlier one of that name is replaced.

    Of several processes that save under one name at a time, the first to end wins; the others get an error.

    Args:
        state: nested dicts, lists and tuples of tensors (on any device), numpy arrays and plain values.
        directory: the checkpoint's final name; `~` is the home directory. A symbolic link stays, and what it leads to
            is replaced.
        strategy: how; `python -m ckpt strategies` lists them.
        options: of the strategy.

    Raises:
        CheckpointError: if the state, the strategy or the place can't be used, or writing failed. What lay under the
            name lies there still, unless the message says otherwise.
    """
    from ckpt import tree

    final = path_of(directory)
    chosen = _create(strategy, options)
    tensors, tied, rest = tree.flatten(state)
    try:
        if final.is_symlink():
            final = Path(os.path.realpath(final))
        replaces = _replaceable(final)
        storage.make_directories(final.parent)
        with commit.begin(final, replaces=replaces) as staging:
            written, checksums = chosen.save_checked(tensors, staging.path)
            Manifest(
                strategy=chosen.name(),
                options=chosen.options,
                created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                tensors=tuple(TensorLayout(name, tuple(t.shape), dtypes.name_of(t)) for name, t in tensors.items()),
                checksums=checksums,
                tied=tied,
                rest=rest,
                files=_sizes_of(written, staging.path),
            ).write(staging.path)
            staging.flush(files=not chosen.syncs_files)
            if not chosen.reports_close:
                _read_back(chosen, tensors, checksums, staging.path)
            staging.publish()
    except CheckpointError:
        raise
    except Exception as error:  # a full disk, or whatever a library raises
        raise CheckpointError(f"can't save {final}: {type(error).__name__}: {error}") from error


def _read_back(strategy: Strategy, tensors: Mapping[str, Any], checksums: Mapping[str, str], directory: Path) -> None:
    """Compare what lies there with what was saved, some tensors at a time."""
    batch: list[str] = []
    batch_bytes = 0
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        batch.append(name)
        batch_bytes += tensor.nbytes
        if batch_bytes > _READ_BACK_BYTES or number == len(tensors):
            try:
                strategy.load_checked(directory, batch, _checker(checksums, directory))
            except CheckpointError as error:
                raise CheckpointError(
                    f"what lies in {directory} is not what was written, and no error was reported: a quota, or a "
                    f"network filesystem that lost it when a file was closed ({error})"
                ) from error
            batch, batch_bytes = [], 0


def _checker(checksums: Mapping[str, str], directory: Path) -> Callable[[str, Any], None]:
    """What compares a tensor of a checkpoint with the checksum that was taken when it was saved."""
    from ckpt import checksums as computed

    def check(name: str, tensor: Any) -> None:
        if checksums.get(name) != computed.of(tensor):
            raise CheckpointError(f"{directory} is damaged: tensor {name!r} is not what was saved (XXH3 differs)")

    return check


def _sizes_of(written: Collection[Path], directory: Path) -> dict[str, int]:
    """The files of a checkpoint and their sizes: all that were written must be there."""
    sizes = manifest.files_of(directory)
    lost = sorted({str(path.relative_to(directory)) for path in written} - sizes.keys())
    if lost:
        raise CheckpointError(
            f"{lost[0]} was removed from {directory} while the checkpoint was being written, by another process: what "
            "lay under its name lies there still"
        )
    return sizes


def load(directory: Path | str, names: Collection[str] | None = None, *, verify: bool = True, **options: Any) -> Any:
    """Load a checkpoint: the state as it was saved, or the tensors of these names in a flat dict.

    It is one checkpoint's, whole, whatever is saved under the name meanwhile.

    Args:
        directory: a checkpoint; also a directory or a file that another program wrote, where its format is known:
            safetensors, DCP, `torch.save`, HDF5, zarr. A `CheckpointWarning` says what of it was left out.
        names: as `inspect` lists them.
        verify: compare the checksum of every tensor with the one that was taken when it was saved.
        options: of the strategy.

    Raises:
        CheckpointError: if there is no checkpoint, or it is incomplete (with what is missing) or damaged.
    """
    return _of_one(path_of(directory), lambda path, shown: _load(path, shown, names, options, verify=verify))


def _load(path: Path, shown: Path, names: Collection[str] | None, options: dict[str, Any], *, verify: bool) -> Any:
    from ckpt import tree

    known = manifest.read(path) if path.is_dir() else None
    if known is None:
        return foreign.load(path, names, options, shown=shown, verify=verify)
    problems = known.problems(path)
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} is incomplete: {'; '.join(problems[:3])}{more}")
    chosen = select([*(tensor.name for tensor in known.tensors), *known.tied], names, path)
    owners = {known.tied.get(name, name) for name in chosen}

    strategy = _create(known.strategy, options)
    wanted = None if names is None else owners
    checked = verify and known.checksums
    if verify and not checked and hasattr(strategy, "verify"):  # a checkpoint of the first version
        strategy = _create(known.strategy, options | {"verify": True})
    check = _checker(known.checksums, path)
    tensors = strategy.load_checked(path, wanted, check) if checked else strategy.load(path, wanted)
    _compare(known, tensors, owners, path)
    loaded = {name: tensors[known.tied.get(name, name)] for name in chosen}
    return tree.restore(known.rest, loaded) if names is None else tree.restore_named(known.rest, loaded)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a checkpoint without reading its data."""

    strategy: str
    options: dict[str, Any]
    created_utc: str
    """Empty where another program wrote it."""
    tensors: Layout | None
    """None where only a load would tell."""
    plain_values: int
    problems: tuple[str, ...]
    """What is missing; empty if it is complete."""
    files: Inventory


def inspect(directory: Path | str) -> Inspection:
    """Look at a checkpoint without reading its data.

    Raises:
        CheckpointError: if there is none.
    """
    return _of_one(path_of(directory), _inspect)


def _inspect(path: Path, shown: Path) -> Inspection:
    from ckpt import tree

    known = manifest.read(path) if path.is_dir() else None
    files = storage.inventory(path)
    if known is None:
        seen = foreign.look(path, shown=shown)
        return Inspection(seen.format, {}, "", seen.tensors, seen.plain_values, (), files)
    layout_of = {tensor.name: tensor for tensor in known.tensors}
    tied = [
        TensorLayout(name, layout_of[owner].shape, layout_of[owner].dtype, owner) for name, owner in known.tied.items()
    ]
    return Inspection(
        strategy=known.strategy,
        options=known.options,
        created_utc=known.created_utc,
        tensors=(*known.tensors, *tied),
        plain_values=tree.plain_values(known.rest),
        problems=tuple(known.problems(path)),
        files=files,
    )


def convert(source: Path | str, destination: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Load a checkpoint, and save it in another way. The state passes through memory, whole.

    Raises:
        CheckpointError: as `load` and `save` do.
    """
    if path_of(source).resolve() == path_of(destination).resolve():
        raise CheckpointError(f"{source} can't be converted into itself: give the destination another name")
    save(load(source), destination, strategy, **options)


def _create(name: str, options: dict[str, Any]) -> Strategy:
    created = strategy.create(name, options)
    created.prepare()
    return created


def path_of(directory: Path | str) -> Path:
    """A checkpoint's path, absolute, with the home directory for `~`.

    Raises:
        CheckpointError: if there is no such user.
    """
    try:
        return Path(directory).expanduser().absolute()
    except RuntimeError as error:  # `~` of a user that there is not
        raise CheckpointError(f"{directory}: {error}") from error


def _of_one(final: Path, work: Callable[[Path, Path], _Result]) -> _Result:
    """What is done with a checkpoint's directory is done with one, whole: anew if it was replaced meanwhile.

    `work` gets a path to read by, and the one for messages.

    Raises:
        CheckpointError: if there is no checkpoint, or the work failed and not because of a replacement.
    """
    if final.name.startswith(leftovers.PREFIX):
        raise CheckpointError(f"{final} is what an unfinished save left, and no checkpoint")
    if final.is_file():
        try:
            return work(final, final)
        except OSError as error:
            raise CheckpointError(f"can't read {final}: {error}") from error
    for _ in range(_MOST_REPLACEMENTS):
        try:
            with pinned(final) as directory:
                try:
                    return work(directory.path, final)
                except (CheckpointError, OSError) as error:
                    if directory.is_current:
                        raise CheckpointError(_message(directory, error)) from error
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{final} is no checkpoint: there is no such directory{_unfinished(final)}") from None
        except OSError as error:
            raise CheckpointError(f"can't open {final}: {error}") from error
    raise CheckpointError(f"{final} was replaced {_MOST_REPLACEMENTS} times while it was being read")


def _message(directory: Pinned, error: Exception) -> str:
    text = directory.named(str(error))
    return text if isinstance(error, CheckpointError) else f"can't read {directory.name}: {text}"


def _unfinished(final: Path) -> str:
    try:
        left = [leftover.path.name for leftover in leftovers.of(final)]
    except OSError:
        return ""
    return f"; an unfinished save of that name lies beside it ({left[0]})" if left else ""


def _compare(known: Manifest, tensors: dict[str, Any], owners: set[str], final: Path) -> None:
    """What was loaded must be what the checkpoint says it holds: files of two checkpoints can be mixed by hand."""
    for each in known.tensors:
        if each.name not in owners:
            continue
        tensor = tensors.get(each.name)
        if tensor is None or (tuple(tensor.shape), dtypes.name_of(tensor)) != (each.shape, each.dtype):
            found = "missing" if tensor is None else f"{dtypes.name_of(tensor)} {list(tensor.shape)}"
            raise CheckpointError(
                f"{final} is damaged: tensor {each.name!r} is {found}, expected {each.dtype} {list(each.shape)}"
            )


def _replaceable(final: Path) -> Identity | None:
    """The checkpoint that a save is to replace; None where nothing has the name.

    Raises:
        CheckpointError: if something else than a checkpoint of ours, with nothing else in it, has the name.
    """
    if not os.path.lexists(final):
        return None
    if not final.is_dir():
        raise CheckpointError(_NOT_OURS.format(final))
    return _of_one(final, _require_ours)


def _require_ours(path: Path, _: Path) -> Identity | None:
    known = manifest.read(path)
    if known is None:
        raise CheckpointError(_NOT_OURS.format(path))
    others = sorted(manifest.files_of(path).keys() - known.files.keys())
    if others:
        raise CheckpointError(
            f"{path} holds files that the checkpoint did not write ({', '.join(others[:3])}), and replacing it would "
            "delete them: move them away, or give the new checkpoint another name"
        )
    return identity(path)
