"""`python -m ckpt`: lists strategies; saves, loads, inspects and converts checkpoints; removes leftovers."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, fields
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ckpt import checkpoint, registry
from ckpt.cli import run
from ckpt.disk import leftovers, listing, versions
from ckpt.errors import CheckpointError
from ckpt.reading import path_of
from ckpt.strategy import Strategy
from ckpt.workload.spec import DType, StateSpec

app = App(name="python -m ckpt", help="Write a model's state and read it back.", version_flags=[])

StrategyOption = Annotated[str, Parameter(name="--strategy")]
OptionOption = Annotated[list[str] | None, Parameter(name="--option", negative="")]

_OVERVIEW = {
    "Files": ("files", "other_readers"),
    "Saves": ("synced", "atomic", "checksum"),
    "Loads": ("partial_load", "in_place", "resharding"),
    "Several ranks": ("ranks",),
}
"""The facts in the overview, by table: each table fits 80 columns. `strategies NAME` shows all facts."""


@app.command(name="strategies")
def show_strategies(name: str = "") -> None:
    """Print the strategies' properties side by side, or all properties of one strategy.

    Args:
        name: a strategy.
    """
    if name:
        _show_strategy(registry.create(name))
        return
    strategies, problems = registry.create_all()
    facts_of = {strategy.name: strategy.facts() for strategy in strategies}
    for title, keys in _OVERVIEW.items():
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("strategy", no_wrap=True)
        for key in keys:
            table.add_column(key.replace("_", " "), overflow="fold")
        for strategy, facts in facts_of.items():
            table.add_row(strategy, *(Text(facts[key]) for key in keys))
        Console().print(Text(title, style="bold"), table, "", sep="\n")
    for problem in problems:
        print(problem)
    print("All properties and options of one strategy: python -m ckpt strategies NAME")


@app.command
def save(
    model: str,
    directory: Path,
    *,
    strategy_name: StrategyOption = checkpoint.DEFAULT,
    option: OptionOption = None,
    tensors: int | None = None,
    dtype: DType | None = None,
) -> None:
    """Save a model's state: real weights, or seeded values with a real model's shapes.

    Args:
        model: a preset, the path of a config.json, or of a Hugging Face directory with weights.
        directory: the checkpoint's name; an earlier checkpoint of that name is replaced.
        strategy_name: how to save it.
        option: of the strategy, as KEY=VALUE; may be repeated.
        tensors: save only this number of the model's first tensors.
        dtype: of floating-point tensors.
    """
    options = _options(option)
    with _busy("building the state"):
        from ckpt.workload import building

        built = building.build(StateSpec(model, tensors=tensors, dtype=dtype))
    with _busy(f"saving {directory}"):
        checkpoint.save(built, directory, strategy_name, **options)
    print(f"{directory}: {len(built)} tensors, digest {building.digest(built)}")


@app.command
def load(directory: Path, names: Sequence[str] = (), *, option: OptionOption = None) -> None:
    """Load a checkpoint, or some of its tensors, and print the digest of the loaded tensors.

    Args:
        directory: the checkpoint.
        names: of the tensors to load; all by default.
        option: of the strategy, as KEY=VALUE: `--option threads=4`; `--option verify=false` skips the checksums.
    """
    options = _options(option)
    with _busy(f"loading {directory}"):
        from ckpt.tree import nested
        from ckpt.workload import building

        tensors, _, _ = nested.flatten(checkpoint.load(directory, list(names) or None, **options))
    print(f"{directory}: {len(tensors)} tensors, digest {building.digest(tensors)}")


@app.command
def inspect(directory: Path, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Print the facts about a checkpoint without reading its data. Exit code 1 if it is incomplete.

    Args:
        directory: the checkpoint.
        as_json: print JSON, for scripts.
    """
    inspection = checkpoint.inspect(directory)
    if as_json:
        print(json.dumps(asdict(inspection), indent=1))
    else:
        _show_inspection(directory, inspection)
    return 1 if inspection.problems else 0


@app.command
def convert(
    source: Path,
    destination: Path,
    *,
    strategy_name: StrategyOption = checkpoint.DEFAULT,
    option: OptionOption = None,
) -> None:
    """Load a checkpoint of this package or of another program, and save it with another strategy.

    Args:
        source: a checkpoint.
        destination: the new checkpoint's name.
        strategy_name: how to save it.
        option: of that strategy, as KEY=VALUE; may be repeated.
    """
    with _busy(f"converting {source}"):
        checkpoint.convert(source, destination, strategy_name, **_options(option))
    print(f"{destination}: {strategy_name}")


@app.command(name="leftovers")
def show_leftovers(directory: Path, *, remove: bool = False, unknown: bool = False) -> int:
    """List what killed saves left in a directory, and remove it on request. Exit code 1 if anything is left.

    Args:
        directory: the directory that holds checkpoints.
        remove: remove the leftovers that no save is writing any more.
        unknown: with `--remove`, also remove those that a save on another host might still be writing, since locks
            aren't visible across hosts, and checkpoints whose link was removed or moved: make sure that nobody needs
            them.
    """
    table = Table(box=None, pad_edge=False)
    for heading in ("directory", "host", "job", "GB", "use"):
        table.add_column(heading, justify="right" if heading == "GB" else "left", overflow="fold")
    left = 0
    path = path_of(directory)
    for leftover in [*leftovers.in_directory(path), *versions.in_directory(path)]:
        size = f"{listing.inventory(leftover.path).apparent_bytes / 1e9:.3f}"
        use = leftovers.use_of(leftover)
        removed = remove and leftovers.remove(leftover, unknown=unknown)
        left += not removed and use is not leftovers.Use.WRITING
        outcome = "removed" if removed else use.value
        table.add_row(Text(leftover.path.name), Text(leftover.host or "unknown"), leftover.job, size, outcome)
    if not table.row_count:
        print(f"{directory}: no leftovers of saves")
        return 0
    Console(highlight=False).print(table)
    if left and not remove:
        print(f"To remove the leftovers: python -m ckpt leftovers {directory} --remove")
    return 1 if left else 0


def _show_strategy(strategy: Strategy) -> None:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, fact in strategy.facts().items():
        table.add_row(key.replace("_", " "), Text(fact))
    options = "\n".join(
        f"{field.name} = {getattr(strategy, field.name)!r} ({registry.type_name(field)})" for field in fields(strategy)
    )
    table.add_row("options", Text(options or "none"))
    table.add_row("installed by", Text(strategy.installed_by))
    console = Console()
    console.print(Text(strategy.name, style="bold"))
    console.print(table)
    console.print("", Text(getdoc(type(strategy)) or ""), sep="\n")


def _show_inspection(directory: Path, inspection: checkpoint.Inspection) -> None:
    console = Console(highlight=False)
    if inspection.tensors is not None:
        table = Table(box=None, pad_edge=False)
        for heading in ("tensor", "dtype", "shape", "MB"):
            table.add_column(heading, justify="right" if heading == "MB" else "left", overflow="fold")
        for tensor in inspection.tensors:
            size = f"= {tensor.same_as}" if tensor.same_as is not None else f"{tensor.size_bytes / 1e6:,.3f}"
            table.add_row(Text(tensor.name), tensor.dtype, str(list(tensor.shape)), Text(size))
        console.print(table)
    tensors = "tensors unknown before a load" if inspection.tensors is None else f"{len(inspection.tensors)} tensors"
    written = f"written {inspection.created_utc}" if inspection.created_utc else "written by another program"
    console.print(Text(
        f"{directory}: {inspection.strategy}, {tensors}, {inspection.plain_values} plain values, "
        f"{inspection.files.file_count:,} files, {inspection.files.apparent_bytes / 1e9:.3f} GB, {written}"
    ))  # fmt: skip
    for problem in inspection.problems:
        console.print(Text(f"incomplete: {problem}"))


def _options(given: Sequence[str] | None) -> dict[str, Any]:
    """Parse options as a study file would: `verify=false`, `chunk_mib=16`, `compression=zstd`."""
    options: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise CheckpointError(f"--option {text!r} is not KEY=VALUE; an example: --option verify=false")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def _busy(activity: str) -> Status:
    """Show on a terminal that an activity is in progress."""
    return Console(stderr=True).status(Text(f"{activity} …"))


if __name__ == "__main__":
    run(app, CheckpointError)
