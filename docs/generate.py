"""Writes the generated parts of the documentation: `python docs/generate.py` (`make docs-reference`).

A page marks such a part by two comments, `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from cyclopts import App
from docstring_parser import parse
from pydantic import TypeAdapter

from generate_api import api, attributes, sentence

DOCS = Path(__file__).parent

_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def pages() -> dict[Path, str]:
    """The pages that have generated parts, as they should be."""
    return {
        path: _BLOCK.sub(lambda match: f"{match[1]}\n{_PARTS[match[2]]()}\n{match[3]}", text)
        for path in sorted(DOCS.rglob("*.md"))
        if _BLOCK.search(text := path.read_text(encoding="utf-8"))
    }


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(headings), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in line)} |\n" for line in lines
    )


# Command line


def _cli() -> str:
    return "\n".join(_group(room) for room in ("jobs", "analysis", "ckpt"))


def _group(room: str) -> str:
    app: App = importlib.import_module(f"{room}.__main__").app
    text = app.generate_docs(output_format="markdown", heading_level=2, usage_name=f"python -m {room}")
    # cyclopts adds how the running program was started, which may be `python -m pytest`.
    text = re.sub(r"^(python -m \w+(?: \w+)*) -m \S+", r"\1", text, flags=re.MULTILINE)
    # GitHub and mkdocs agree on the anchors of these headings.
    text = re.sub(rf"^(#+) python -m {room}", rf"\1 {room}", text, flags=re.MULTILINE)
    text = text.replace(f"(#python-m-{room}", f"(#{room}")
    text = re.sub(r"## Table of Contents\n\n(\s*- .*\n)+", "", text)  # the list of commands is one already
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# Study TOML


def _study() -> str:
    from ckpt.workload.spec import StateSpec
    from jobs.plan import loop, slurm_table, study

    tables = {
        "Top level": study.Study,
        "`[state]`": StateSpec,
        "`[targets.NAME]`": study.Target,
        "`[trials]`": study.Trials,
        "`[loop]`": loop.Loop,
        "`[slurm]`": slurm_table.Slurm,
    }
    return "\n".join(f"## {title}\n\n{_keys(model)}" for title, model in tables.items())


_MEANINGS = {
    "name": "name of the study, and of its results directory",
    "description": "one line for people",
    "site": "a profile of `slurm/sites/`",
    "state": "what is saved: see `[state]`",
    "strategies": "names, or tables of a name and options; an option that is a list is an axis",
    "targets": "where to write: see `[targets.NAME]`",
    "trials": "what each job does: see `[trials]`",
    "loop": "the training loop of each job, instead of trials: see `[loop]`",
    "rounds": "passes over all combinations",
    "shuffle_seed": "seed of the order within a round",
    "slurm": "what jobs ask of the cluster: see `[slurm]`",
    "schema_version": "version of this format",
}
"""For keys whose class has no `Attributes` section."""


def _keys(model: type) -> str:
    schema = TypeAdapter(model).json_schema()
    documented = {
        name.strip(): sentence(parameter.description)
        for parameter in parse(inspect.getdoc(model) or "").params
        for name in parameter.arg_name.split(",")
    }
    return _table(
        ("key", "type", "default", "meaning"),
        (
            (
                f"`{key}`",
                _type_of(entry, schema.get("$defs", {})),
                "**required**" if key in schema.get("required", ()) else _default(entry),
                documented.get(key) or _MEANINGS.get(key) or "passed to Slurm by submitit",
            )
            for key, entry in schema["properties"].items()
        ),
    )


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default")
    return "" if value is None or value == {} or isinstance(value, dict) else f"`{json.dumps(value)}`"


def _type_of(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in entry:
        return "table"
    if "anyOf" in entry:
        kinds = [_type_of(kind, definitions) for kind in entry["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{json.dumps(value)}`" for value in entry.get("enum", [entry.get("const")]))
    kind = entry.get("type", "")
    if kind == "array":
        return f"list of {_type_of(entry['items'], definitions)}s" if "items" in entry else "list"
    names = {"string": "string", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    return names.get(kind, "table") + _bounds(entry)


def _bounds(entry: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " and".join(f" {sign} {entry[key]}" for key, sign in signs.items() if key in entry)


# Timing log, merged file


def _timing_log() -> str:
    from jobs import timing_log

    header = _table(
        ("attribute", "type", "meaning"),
        ((f"`{name}`", kind, meaning) for name, kind, meaning in attributes(timing_log.Header)),
    )
    parts = [f"## Attributes of the root group\n\n{header}"]
    for name, row in timing_log.TABLES.items():
        columns = _table(
            ("column", "type", "unit", "default", "meaning"),
            (
                (
                    f"`{column.name}`",
                    str(column.type),
                    column.metadata["units"],
                    "" if column.default is MISSING else f"`{column.default}`",
                    column.metadata["long_name"],
                )
                for column in fields(row)
            ),
        )
        parts.append(f"## `/{name}`\n\n{inspect.getdoc(row)}\n\n{columns}")
    return "\n".join(parts)


def _merged() -> str:
    import h5py

    from analysis.logs import merged

    with h5py.File("merged", "w", driver="core", backing_store=False) as file:
        merged.write(file, [], [])
        version = file.attrs["schema_version"]
        rows = [(f"`/{group}`", ", ".join(f"`{column}`" for column in file[group])) for group in file]
    return f"## Groups and datasets of version {version}\n\n{_table(('group', 'datasets'), rows)}"


# Strategies


_OVERVIEW = ("files", "synced", "checksum", "partial_load", "other_readers", "resharding")


def _strategies() -> str:
    from ckpt import registry

    every = [registry.create(name) for name in registry.names()]
    known = [strategy for strategy in every if type(strategy).__module__.startswith("ckpt.")]  # not of other packages
    rows = [
        [f"[`{strategy.name}`](#{strategy.name})", *map(strategy.facts().__getitem__, _OVERVIEW)] for strategy in known
    ]
    overview = _table(("strategy", *(name.replace("_", " ") for name in _OVERVIEW)), rows)
    return "\n".join([f"## Overview\n\n{overview}", *map(_one_strategy, known)])


def _one_strategy(strategy: Any) -> str:
    about = parse(inspect.getdoc(type(strategy)) or "")
    meanings = {
        parameter.arg_name: sentence(parameter.description)
        for cls in reversed(type(strategy).__mro__)  # options may be inherited
        for parameter in parse(cls.__doc__ or "").params
    }
    properties = TypeAdapter(type(strategy)).json_schema().get("properties", {})
    options = _table(
        ("option", "type", "default", "meaning"),
        (
            (
                f"`{field.name}`",
                _type_of(properties[field.name], {}),
                f"`{json.dumps(getattr(strategy, field.name))}`",
                meanings.get(field.name, ""),
            )
            for field in fields(strategy)
        ),
    )
    facts = _table(("", ""), ((name.replace("_", " "), value) for name, value in strategy.facts().items()))
    return (
        f"## {strategy.name}\n\n{sentence(about.short_description)} {sentence(about.long_description)}".rstrip()
        + f"\n\n{facts}\n"
        + (f"{options}\n" if fields(strategy) else "This strategy has no options.\n\n")
        + f"Installed by `pip install '.[{strategy.extra}]'`.\n"
    )


def _strategy_example() -> str:
    return f"```python\n{(DOCS.parent / 'examples' / 'strategy_package' / 'raw_file.py').read_text()}```\n"


_PARTS: dict[str, Callable[[], str]] = {
    "cli": _cli,
    "study": _study,
    "timing-log": _timing_log,
    "merged": _merged,
    "strategies": _strategies,
    "api": api,
    "strategy-example": _strategy_example,
}


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    main()
