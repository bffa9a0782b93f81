"""How a checkpoint is read: one checkpoint, whole, whatever its name comes to mean meanwhile, and compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ckpt import strategy
from ckpt.disk import leftovers
from ckpt.disk.pinned import Pinned, pinned
from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.manifest import Manifest
from ckpt.state import dtypes
from ckpt.strategy import Strategy
from ckpt.threads import explained

_MOST_REPLACEMENTS = 100

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Content:
    """A state as a checkpoint of ours has it."""

    tensors: dict[str, Any]
    """By name; of tied ones the first."""
    tied: dict[str, str]
    """Names that share another tensor's memory, and its name."""
    rest: Any
    """The state without its tensors, as `ckpt.tree.nested` has it."""


def created(name: str, options: dict[str, Any]) -> Strategy:
    """The strategy of that name, ready to be used.

    Raises:
        CheckpointError: if there is none, an option is wrong, or a library is missing.
    """
    found = strategy.create(name, options)
    found.prepare()
    return found


def path_of(directory: Path | str) -> Path:
    """A checkpoint's path, absolute, with the home directory for `~`.

    Raises:
        CheckpointError: if there is no such user.
    """
    try:
        return Path(directory).expanduser().absolute()
    except RuntimeError as error:  # `~` of a user that there is not
        raise CheckpointError(f"{directory}: {error}") from error


def of_one(final: Path, work: Callable[[Path, Path], _Result]) -> _Result:
    """What is done with a checkpoint's directory is done with one, whole: anew if it was replaced meanwhile.

    `work` gets a path to read by, and the one for messages.

    Raises:
        CheckpointError: if there is no checkpoint, or the work failed and not because of a replacement.
    """
    if final.name.startswith(leftovers.PREFIX):
        raise CheckpointError(f"{final} is what an unfinished save left, and no checkpoint")
    try:
        if final.is_file():
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
    text = explained(directory.named(str(error)))
    return text if isinstance(error, CheckpointError) else f"can't read {directory.name}: {text}"


def _unfinished(final: Path) -> str:
    try:
        left = [leftover.path.name for leftover in leftovers.of(final)]
    except OSError:
        return ""
    return f"; an unfinished save of that name lies beside it ({left[0]})" if left else ""


def content_of(
    path: Path, known: Manifest, names: Collection[str] | None, options: dict[str, Any], *, verify: bool
) -> Content:
    """What a checkpoint holds of the tensors of these names, with those that they are tied to; all for None.

    Raises:
        CheckpointError: if it is incomplete (with what is missing) or damaged, or lacks a name.
    """
    problems = known.problems(path)
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} is incomplete: {'; '.join(problems[:3])}{more}")
    chosen = select([*(tensor.name for tensor in known.tensors), *known.tied], names, path)
    owners = {known.tied.get(name, name) for name in chosen}
    wanted = None if names is None else owners
    reader = created(known.strategy, options)
    if not verify:
        tensors = reader.load(path, wanted)
    elif known.checksums:
        tensors = reader.load_checked(path, wanted, checker(known.checksums, path))
    else:  # a checkpoint of the first version, whose strategy may have checksums of its own
        own = {"verify": True} if hasattr(reader, "verify") else {}
        tensors = created(known.strategy, options | own).load(path, wanted)
    _compare(known, tensors, owners, path)
    return Content(tensors, {name: known.tied[name] for name in chosen if name in known.tied}, known.rest)


def checker(checksums: Mapping[str, str], directory: Path) -> Callable[[str, Any], None]:
    """What compares a tensor of a checkpoint with the checksum that was taken when it was saved."""
    from ckpt.state import checksums as computed

    def check(name: str, tensor: Any) -> None:
        if checksums.get(name) != computed.of(tensor):
            raise CheckpointError(f"{directory} is damaged: tensor {name!r} is not what was saved (XXH3 differs)")

    return check


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
