"""Checkpoints for a training loop: `save`, `exists`, `load`, `inspect`, `convert`.

    ckpt.save({"model": model.state_dict(), "step": step}, "run/latest")
    state = ckpt.load("run/latest")

A save is atomic: after a crash at any point, a load finds either the previous checkpoint or the new one, complete and
on stable storage. Loading executes no code from files.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ckpt import foreign
from ckpt.disk import listing, versions
from ckpt.disk.listing import Inventory
from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.manifest import Manifest
from ckpt.reading import Content, content_of, created, of_one, path_of
from ckpt.state.layout import Layout, TensorLayout
from ckpt.writing import write

DEFAULT = "safetensors_tuned"

TIMEOUT_S = 600


def save(
    state: Any, directory: Path | str, strategy: str = DEFAULT, *, timeout_s: float = TIMEOUT_S, **options: Any
) -> None:
    """Save a state durably as a checkpoint; an earlier checkpoint of the same name is replaced.

    If several processes save to one name at a time, the first to finish succeeds, and the others raise an error.

    The tensors are read until the call returns, and must not change before; `ckpt.background` saves a copy while a
    program goes on. Values that change meanwhile are saved old or new, and a load may report a wrong checksum.

    A state with DTensors (FSDP2, tensor parallelism) is saved by all ranks of torch.distributed's default process group
    together: all of them call this, with the same directory, on a filesystem that they share. The DTensors are saved as
    DCP does, every shard by a rank that holds it, everything else by rank 0. An error of one rank is raised on all.

    Args:
        state: nested containers of tensors (on any device), numpy arrays and plain values; `ckpt.register` adds classes
            of your own.
        directory: the checkpoint's final name; `~` is the home directory. If it is a symbolic link of yours, the
            link's target is replaced. Where the filesystem can't exchange two directories, a name that is saved again
            becomes a link itself, to a version of the checkpoint beside it.
        strategy: the name of the strategy; `python -m ckpt strategies` lists them. Leave it out for a state with
            DTensors.
        timeout_s: how long a rank waits for the others to save a state with DTensors; then all that came get an error.
        options: of the strategy.

    Raises:
        CheckpointError: if the state, the strategy or the directory can't be used, or writing failed. An earlier
            checkpoint of that name is unchanged, unless the message reports otherwise.
    """
    from ckpt import together
    from ckpt.tree import dtensors, nested

    final = path_of(directory)
    chosen = created(strategy, options)
    if dtensors.are_in(state):
        if (strategy, options) != (DEFAULT, {}):
            raise CheckpointError(
                f"the state has DTensors, which strategy {chosen.label} can't save: leave the strategy out, and all "
                "ranks save together; or let every rank call `.full_tensor()`, and one of them save the result"
            )
        together.save(state, final, timeout_s)
        return
    write(Content(*nested.flatten(state)), final, chosen)


def exists(directory: Path | str) -> bool:
    """Whether anything has a checkpoint's name, or a crash while it became a link left a checkpoint that `load` finds.

    Raises:
        CheckpointError: if `~user` names an unknown user.
    """
    path = path_of(directory)
    return path.exists() or versions.interrupted(path) is not None


def load(
    directory: Path | str,
    names: Collection[str] | None = None,
    *,
    into: Any = None,
    strict: bool = True,
    verify: bool = True,
    timeout_s: float = TIMEOUT_S,
    **options: Any,
) -> Any:
    """Load a checkpoint: the state as it was saved, selected tensors in a flat dict, or into a state that exists.

    The result comes from a single checkpoint, even if another one is saved to the same name during the load.

    With `into`, data is read into the memory of the state's tensors and arrays, and nothing is allocated beside them: a
    restart needs no second copy. Nothing is changed before names, shapes and dtypes are compared. Tensors that aren't
    contiguous, or on another device than the CPU, are copied in small groups. `requires_grad` and strides stay as they
    are. `safetensors_tuned`, `tensorstore_tuned`, `torch_dcp`, `torch_dcp_direct` and `torch_checkpointing` can do so.

    If that state has DTensors (FSDP2, tensor parallelism), all ranks of torch.distributed's default process group call
    this, and every one reads the shards that it holds, whatever number of ranks saved them.

    Args:
        directory: a checkpoint; or a directory or file that another program wrote as safetensors, DCP, `torch.save`,
            HDF5 or zarr. A `CheckpointWarning` lists what was left out.
        names: of the tensors to load, as `inspect` lists them; None for the whole state.
        into: a state of the same structure as the one that was saved, such as `{"model": model.state_dict()}`.
        strict: with `into`, raise an error if the checkpoint lacks a tensor of the state, or the state one of the
            checkpoint; False loads what both have.
        verify: compare each tensor's checksum with the one that was computed when it was saved.
        timeout_s: how long a rank waits for the others to load into DTensors; then all that came get an error.
        options: of the strategy.

    Returns:
        The state, or the tensors by name. With `into`, a `Filled`: its `state` is the checkpoint's, with plain values
        (`step`) and the tensors that were given; `missing` and `unexpected` are names, as `load_state_dict` has them.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, or incomplete; the message lists what is missing.
            If the data turns out to be damaged during a load with `into`, the state may be overwritten in part.
    """
    path = path_of(directory)
    if into is None:
        return of_one(path, lambda *which: _load(*which, names=names, options=options, verify=verify))
    return _load_into(path, names, into, timeout_s, strict=strict, verify=verify, options=options)


def _load_into(path: Path, names: Collection[str] | None, into: Any, timeout_s: float, **how: Any) -> Any:
    from ckpt import in_place, together
    from ckpt.tree import dtensors

    if names is not None:
        raise CheckpointError("`into` and `names` can't be combined: give the state that is wanted, with strict=False")
    fill = partial(in_place.fill, into=into, **how)
    return together.load(into, path, fill, timeout_s) if dtensors.are_in(into) else of_one(path, fill)


def _load(
    path: Path,
    shown: Path,
    known: Manifest | None,
    *,
    names: Collection[str] | None,
    options: dict[str, Any],
    verify: bool,
) -> Any:
    from ckpt.tree import nested

    if known is None:
        return foreign.load(path, names, options, shown=shown, verify=verify)
    content = content_of(path, known, names, options, verify=verify)
    order = select([*(tensor.name for tensor in known.tensors), *known.tied], names, path)
    loaded = {name: content.tensors[content.tied.get(name, name)] for name in order}
    return nested.restore(content.rest, loaded) if names is None else nested.restore_named(content.rest, loaded)


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts about a checkpoint that are known without reading its data."""

    strategy: str
    options: dict[str, Any]
    created_utc: str
    """When it was saved, in ISO format; empty if another program wrote it."""
    tensors: Layout | None
    """The layout of its state; None if only a load can determine it."""
    plain_values: int
    """The number of values that are neither tensors nor containers."""
    problems: tuple[str, ...]
    """Messages about missing files and files of another size; empty if the checkpoint is complete."""
    files: Inventory


def inspect(directory: Path | str) -> Inspection:
    """Return the facts about a checkpoint without reading its data.

    Raises:
        CheckpointError: if there is none.
    """
    return of_one(path_of(directory), _inspect)


def _inspect(path: Path, shown: Path, known: Manifest | None) -> Inspection:
    from ckpt.tree import nested

    files = listing.inventory(path)
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
        plain_values=nested.plain_values(known.rest),
        problems=tuple(known.problems(path)),
        files=files,
    )


def convert(source: Path | str, destination: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Load a checkpoint and save it with another strategy. The whole state passes through memory.

    Instances of registered classes are copied without conversion: their classes needn't be registered here.

    Raises:
        CheckpointError: as `load` and `save` do.
    """
    begin, end = path_of(source), path_of(destination)
    if begin.resolve() == end.resolve():
        raise CheckpointError(f"{source} can't be converted into itself: give the destination another name")
    chosen = created(strategy, options)
    write(of_one(begin, _content), end, chosen)


def _content(path: Path, shown: Path, known: Manifest | None) -> Content:
    from ckpt.tree import nested

    if known is None:
        return Content(*nested.flatten(foreign.load(path, None, {}, shown=shown)))
    return content_of(path, known, None, {}, verify=True)
