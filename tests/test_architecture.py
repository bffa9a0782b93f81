"""The architecture, as rules: which part may import which, and how long a module or a function may be.

Reads the source with `ast` and runs none of it. An import counts wherever it stands: at the top of a module, in a
function, or for type checkers only. What `importlib` loads by name doesn't count: that is how the registry of
strategies finds them without depending on any.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a room may import of other rooms: these modules and whatever lies in these packages.
ROOMS = {
    "ckpt": (),
    "jobs": ("ckpt",),
    # The files of results are the doors into jobs. `ckpt.cli` is how all three command lines end.
    "analysis": ("jobs.timing_log", "jobs.faults.outcomes", "ckpt.cli"),
}

# The layers of each room, the lowest first. A module may import what lies in lower layers, and from its own folder;
# parts on one line are side by side and don't import each other. Modules that no line names are the top layer.
LAYERS = {
    "ckpt": (
        "errors threads",
        "state",  # what a state is: tensors, dtypes, ties, partitions
        "process_group tree disk",  # ranks that act together; nested states; what a directory lies on
        "formats",  # what files look like, whoever writes them
        "workload capabilities dcp",  # what a study saves; what is known of a strategy; DCP's storage
        "background",  # saves behind a running program
        "strategy",  # the contract
        "single_process",  # its part for libraries that know one process only
        "strategies registry",  # one file each; and where they are found
        # The library and the command line: save, load, inspect, convert; manifest; checkpoints of other libraries.
    ),
    "jobs": (
        "errors",
        "timing_log",
        "paths",
        "plan",  # pure: study file -> list of jobs
        "node",  # what runs on a node
        "cluster faults",  # where jobs go; what a checkpoint survives
        # The command line: check, status, follow, and what starts a job.
    ),
    "analysis": (
        "errors",
        "logs",  # logs -> frames
        "measures",  # frames -> what each method measured
        "advice",
        "tables",
        "figures",
        "report",
        # The command line.
    ),
}

LINES_PER_MODULE = 300
LINES_PER_FUNCTION = 45


@cache
def files() -> dict[str, Path]:
    """The file of each module, by the module's name; a package has the name of its folder."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of each module."""
    return {name: ast.parse(path.read_text(), str(path)) for name, path in files().items()}


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of all rooms that a module imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names if alias.name in sources())
            case ast.ImportFrom(str(module), names, 0):
                for alias in names:
                    submodule = f"{module}.{alias.name}"
                    target = submodule if submodule in sources() else module
                    if target in sources():
                        yield target
            case ast.ImportFrom(level=level):
                assert level == 0, f"relative import in line {node.lineno}: write the module's whole name"


@cache
def imports() -> dict[str, set[str]]:
    """The modules that each module imports, without packages whose `__init__` holds only its docstring."""
    empty = {name for name, tree in sources().items() if len(tree.body) <= 1}
    return {name: set(imported(tree)) - empty for name, tree in sources().items()}


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether a module is one of these or lies in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer_and_part(module: str) -> tuple[int, str]:
    """A module's layer in its room, counted from the lowest, and the folder or module that the layer's line names."""
    room, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    layers = [line.split() for line in LAYERS[room]]
    return next((level for level, parts in enumerate(layers) if part in parts), len(layers)), part


def is_allowed(importer: str, target: str) -> bool:
    """Whether the rules allow an import."""
    room = importer.partition(".")[0]
    if target.partition(".")[0] != room:
        return within(target, ROOMS[room])
    (level, part), (target_level, target_part) = layer_and_part(importer), layer_and_part(target)
    is_top = level == len(LAYERS[room])
    return target_level < level or (target_level == level and (is_top or target_part == part))


def test_imports_point_downwards() -> None:
    """No module imports a higher layer, a neighbour on the same layer, or a room that its own may not import."""
    arrows = [(importer, target) for importer, targets in imports().items() for target in targets]
    forbidden = sorted(f"{importer} -> {target}" for importer, target in arrows if not is_allowed(importer, target))
    assert [] == forbidden, "\n".join(["forbidden by LAYERS and ROOMS in this test:", *forbidden])


def test_no_circular_import() -> None:
    """No module imports itself by way of others, not even in a function or for type checkers only."""
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' <- '.join(error.args[1])}")


def test_layers_name_what_exists() -> None:
    """Every part that a layer's line names is a module or a folder: a renamed one doesn't escape to the top layer."""
    named = {f"{room}.{part}" for room, lines in LAYERS.items() for line in lines for part in line.split()}
    assert set() == named - set(sources())


def test_modules_are_short() -> None:
    """No module has more than 300 lines, nor has one of tests, examples or what writes the documentation."""
    others = [path for folder in ("docs", "examples", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    lengths = [
        (str(path.relative_to(ROOT)), len(path.read_text().splitlines())) for path in (*files().values(), *others)
    ]
    assert [] == [(name, lines) for name, lines in lengths if lines > LINES_PER_MODULE]


def test_functions_are_short() -> None:
    """No function has more than 45 lines, from `def` to its end, its docstring included."""
    lengths = [
        (f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [] == [(name, lines) for name, lines in lengths if lines > LINES_PER_FUNCTION]
