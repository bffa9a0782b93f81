"""A study's file: where it is, how it is read over the profile of its site, and what is wrong with it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckpt.errors import CheckpointError
from ckpt.workload.spec import StateSpec
from jobs.errors import StudyError
from jobs.plan.loop import Loop
from jobs.plan.slurm_table import Slurm
from jobs.plan.strategy_choice import StrategyChoice
from jobs.plan.study import Study, Target, Trials
from jobs.plan.table import merged

_ROOM = Path(__file__).parent.parent
# An installed wheel carries the profiles inside this package; a checkout has them in slurm/.
_SITES_DIRECTORY = _ROOM / "sites" if (_ROOM / "sites").is_dir() else _ROOM.parent / "slurm" / "sites"

SHIPPED = {file.stem: file for file in sorted((_ROOM / "studies").glob("*.toml"))}


def find(name_or_path: str) -> Path:
    """The file of a study: a path, or the name of a shipped one.

    Raises:
        StudyError: if it is neither.
    """
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111  # Path's own raises for an unknown user
    if path.is_file():
        return path
    if name_or_path in SHIPPED:
        return SHIPPED[name_or_path]
    raise StudyError(
        f"no study {name_or_path!r}: it is neither a file nor the name of a shipped study ({', '.join(SHIPPED)})"
    )


def read(path: Path) -> Study:
    """Read and validate a study file.

    Raises:
        StudyError: naming the key, its value, and what is valid.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"can't read the study {path}: {error}") from error
    if "site" in content:
        content = _with_site(content, path)
    targets = content.get("targets")
    for target in targets.values() if isinstance(targets, dict) else ():
        if isinstance(target, dict) and isinstance(target.get("path"), str):
            target["path"] = _from_here(target["path"])
    state = content.get("state")
    if isinstance(state, dict) and isinstance(state.get("model"), str):
        content["state"] = {**state, "model": _beside(path, state["model"])}
    return parse(content, str(path))


def sites() -> dict[str, Path]:
    """The profiles of clusters that a study can name."""
    return {file.stem: file for file in sorted(_SITES_DIRECTORY.glob("*.toml"))}


def _with_site(content: dict[str, Any], where: Path) -> dict[str, Any]:
    """A study over the profile of its site: the profile's `[slurm]`, and of its targets those that it names."""
    known = sites()
    if not isinstance(content["site"], str) or content["site"] not in known:
        raise StudyError(f"{where}: site = {content['site']!r} is unknown; there are {', '.join(known) or 'none'}")
    profile = tomllib.loads(known[content["site"]].read_text(encoding="utf-8"))
    targets = content.get("targets")
    named = targets if isinstance(targets, dict) else {}
    profile["targets"] = {name: table for name, table in profile.get("targets", {}).items() if name in named}
    return merged(profile, content)


def parse(content: dict[str, Any], where: str) -> Study:
    """Validate a study; `where` names it in messages.

    Raises:
        StudyError: naming the key, its value, and what is valid.
    """
    try:
        return Study.model_validate(content)
    except CheckpointError as error:
        raise StudyError(f"{where}: {error}") from error
    except ValidationError as error:
        raise StudyError("\n".join(_problem(problem, where) for problem in error.errors())) from None


def _from_here(path: str) -> str:
    """A target's relative path is taken from the directory in which the command was typed."""
    if path.startswith(("$", "~", "/")):
        return path
    return str(Path(str(Path.cwd()).replace("$", "$$")) / path)  # a `$` in a directory's name is no variable


def _beside(study: Path, model: str) -> str:
    """A model's relative path is taken from the study's directory."""
    beside = study.parent / Path(model).expanduser()
    return str(beside.resolve()) if beside.exists() else model


def _problem(error: Any, where: str) -> str:
    """One message for one of pydantic's errors: where, which key, its value, what is valid."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    key = ".".join(location) or "the file"
    if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{where}: there is no key {key!r}. {_valid_keys(location[:-1])}"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is missing. {_valid_keys(location[:-1])}"
    if error["type"] == "value_error":
        return f"{where}: {key}: {error['ctx']['error']}"
    message = str(error["msg"])
    value = error["input"] if not isinstance(error["input"], dict) else "a table"
    return f"{where}: {key} = {value!r}: {message[0].lower()}{message[1:]}"


def _valid_keys(table: list[str]) -> str:
    models: dict[str, Any] = {
        "targets": Target, "trials": Trials, "slurm": Slurm, "strategies": StrategyChoice, "loop": Loop,
    }  # fmt: skip
    if table and table[-1] == "slurm":
        keys = list(Slurm.model_fields)
    elif not table:
        keys = list(Study.model_fields)
    elif table[0] == "state":
        keys = [name for name in StateSpec.__dataclass_fields__ if not name.startswith("_")]
    elif table[0] in models:
        keys = list(models[table[0]].model_fields)
    else:
        return ""
    return f"Valid keys of {'.'.join(table) or 'a study'}: {', '.join(keys)}"
