"""Checkpoints for a training loop: `save`, `load`, `inspect`, `convert`.

    ckpt.save({"model": model.state_dict(), "step": step}, "run/latest")
    state = ckpt.load("run/latest")

A save is atomic: whatever happens at whatever instant, under the final name lies the checkpoint of before or the new
one, whole and on stable storage. Nothing that a file says is executed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckpt import commit, dtypes, manifest, storage, strategy
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, TensorLayout
from ckpt.manifest import Manifest
from ckpt.storage import Inventory
from ckpt.strategy import Strategy, select

DEFAULT = "safetensors_direct"


def save(state: Any, directory: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Save a state, durably, as the checkpoint of that name; an earlier one of that name is replaced.

    Args:
        state: nested dicts, lists and tuples of tensors (on any device), numpy arrays and plain values.
        directory: the checkpoint's final name.
        strategy: how; `python -m ckpt strategies` lists them.
        options: of the strategy.

    Raises:
        CheckpointError: if the state, the strategy or the place can't be used, or writing failed; what lay under the
            name lies there still.
    """
    from ckpt import tree

    final = Path(directory).absolute()
    chosen = _create(strategy, options)
    tensors, tied, rest = tree.flatten(state)
    replaced = os.path.lexists(final)
    if replaced:
        _refuse_what_is_not_ours(final)
    try:
        storage.make_directories(final.parent)
    except OSError as error:
        raise CheckpointError(f"can't save {final}: {error}") from error
    staging = commit.begin(final, replace=replaced)
    try:
        chosen.save(tensors, staging)
        Manifest(
            strategy=chosen.name(),
            options=chosen.options,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            tensors=tuple(TensorLayout(name, tuple(t.shape), dtypes.name_of(t)) for name, t in tensors.items()),
            tied=tied,
            rest=rest,
            files=manifest.files_of(staging),
        ).write(staging)
        storage.flush(staging, files=not chosen.syncs_files)
        commit.publish(staging, final, replace=replaced)
    except CheckpointError:
        raise
    except Exception as error:  # a full disk, or whatever a library raises
        raise CheckpointError(f"can't save {final}: {type(error).__name__}: {error}") from error
    finally:
        commit.end(staging)
        shutil.rmtree(staging, ignore_errors=True)  # what a failed save left, or the checkpoint that was replaced


def load(directory: Path | str, names: Collection[str] | None = None, **options: Any) -> Any:
    """Load a checkpoint: the state as it was saved, or the tensors of these names in a flat dict.

    Args:
        directory: a checkpoint; also one that another program wrote, where a strategy knows the format.
        names: as `inspect` lists them.
        options: of the strategy, such as `verify=True`.

    Raises:
        CheckpointError: if there is no checkpoint, or it is incomplete (with what is missing) or damaged.
    """
    from ckpt import tree

    final = Path(directory).absolute()
    known = _manifest_of(final)
    if known is None:
        return _create(_recognised(final), options).load(final, names)
    problems = known.problems(final)
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{final} is incomplete: {'; '.join(problems[:3])}{more}")
    every = [*(each.name for each in known.tensors), *known.tied]
    chosen = select(every, names, final)
    owners = {known.tied.get(name, name) for name in chosen}
    tensors = _create(known.strategy, options).load(final, None if names is None else owners)
    _compare(known, tensors, owners, final)
    found = {name: tensors[known.tied.get(name, name)] for name in chosen}
    return tree.restore(known.rest, found) if names is None else found


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
    from ckpt import tree

    final = Path(directory).absolute()
    known = _manifest_of(final)
    files = storage.inventory(final)
    if known is None:
        name = _recognised(final)
        return Inspection(name, {}, "", _create(name, {}).contents(final), 0, (), files)
    tied = [
        TensorLayout(name, each.shape, each.dtype, owner)
        for name, owner in known.tied.items()
        for each in known.tensors
        if each.name == owner
    ]
    return Inspection(
        strategy=known.strategy,
        options=known.options,
        created_utc=known.created_utc,
        tensors=(*known.tensors, *tied),
        plain_values=tree.plain_values(known.rest),
        problems=tuple(known.problems(final)),
        files=files,
    )


def convert(source: Path | str, destination: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Load a checkpoint, and save it in another way. The state passes through memory, whole.

    Raises:
        CheckpointError: as `load` and `save` do.
    """
    if Path(source).resolve() == Path(destination).resolve():
        raise CheckpointError(f"{source} can't be converted into itself: give the destination another name")
    save(load(source), destination, strategy, **options)


def _create(name: str, options: dict[str, Any]) -> Strategy:
    created = strategy.create(name, options)
    created.prepare()
    return created


def _manifest_of(final: Path) -> Manifest | None:
    if final.name.startswith(commit.STAGING_PREFIX):
        raise CheckpointError(f"{final} is what an unfinished save left, and no checkpoint")
    if not final.is_dir():
        left = [path.name for path in final.parent.glob(f"{commit.staging_prefix(final)}*")]
        unfinished = f"; an unfinished save of that name lies beside it ({left[0]})" if left else ""
        raise CheckpointError(f"{final} is no checkpoint: there is no such directory{unfinished}")
    return manifest.read(final)


def _recognised(final: Path) -> str:
    """The strategy that knows the format of a checkpoint without a word of its own."""
    for name in strategy.names():
        marker = strategy.strategy_class(name).marker
        if marker and any(final.glob(marker)):
            return name
    raise CheckpointError(
        f"{final} is no checkpoint that is known here: it has no {manifest.FILE}, nor a file of any strategy's format"
    )


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


def _refuse_what_is_not_ours(final: Path) -> None:
    """Only a checkpoint of ours, with nothing else in it, may be replaced."""
    known = manifest.read(final) if final.is_dir() and not final.is_symlink() else None
    if known is None:
        raise CheckpointError(
            f"{final} exists, and is no checkpoint of this package: give the checkpoint another name, or move it away"
        )
    foreign = sorted(manifest.files_of(final).keys() - known.files.keys())
    if foreign:
        raise CheckpointError(
            f"{final} holds files that the checkpoint did not write ({', '.join(foreign[:3])}), and replacing it would "
            "delete them: move them away, or give the new checkpoint another name"
        )
