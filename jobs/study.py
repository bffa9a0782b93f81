"""The study: one comparison, written in one TOML file, validated here and nowhere else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ckpt import strategy
from ckpt.errors import CheckpointError, UnknownStrategyError
from ckpt.layout import StateSpec
from jobs.errors import StudyError

SHIPPED = {file.stem: file for file in sorted((Path(__file__).parent / "studies").glob("*.toml"))}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
"""A name that becomes part of job ids and file names: letters, digits, `_`, `-` and `.`."""


class Table(BaseModel):
    """A table of the study file: frozen, and no key that isn't known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(Table):
    """A named place to write to.

    Attributes:
        path: a directory; `$VARIABLES` and `~` are resolved on the node. None: `$SLURM_TMPDIR`, else `$TMPDIR`.
        allow_tmpfs: take a filesystem in memory, which measures no disk.
    """

    path: str | None = None
    allow_tmpfs: bool = False


class Trials(Table):
    """What each job does.

    Attributes:
        repeats: measured trials.
        warmups: trials before them, kept in the log and marked.
        warm_load: load a second time, from the page cache.
    """

    repeats: int = Field(default=5, ge=1, le=1000)
    warmups: int = Field(default=1, ge=0, le=100)
    warm_load: bool = True


class StrategyChoice(Table):
    """A strategy with its options, as a study names it."""

    name: str
    options: dict[str, Any] = {}

    def create(self) -> strategy.Strategy:
        """The strategy itself."""
        return strategy.create(self.name, self.options)


class Slurm(Table):
    """What each job asks of the cluster, in submitit's own names."""

    timeout_min: int = Field(default=60, ge=1)


class Study(Table):
    """One comparison: states × strategies × targets × rounds."""

    name: Name
    description: str = ""
    state: StateSpec
    strategies: tuple[StrategyChoice, ...] = Field(min_length=1)
    targets: dict[Name, Target] = Field(min_length=1)
    trials: Trials = Trials()
    rounds: int = Field(default=1, ge=1, le=999)
    shuffle_seed: int = 0
    slurm: Slurm = Slurm()
    schema_version: Literal[1] = 1

    @field_validator("strategies", mode="before")
    @classmethod
    def _names_and_tables(cls, found: Any) -> Any:
        """Take `"torch_save"` and `{name = "tensorstore_basic", compressor = "none"}` alike."""
        if not isinstance(found, list | tuple):
            return found
        choices: list[Any] = []
        for each in found:
            if isinstance(each, str):
                choices.append({"name": each, "options": {}})
            elif isinstance(each, dict) and "options" not in each:
                choices.append({"name": each.get("name"), "options": {k: v for k, v in each.items() if k != "name"}})
            else:
                choices.append(each)
        return choices

    @field_validator("strategies")
    @classmethod
    def _known_and_different(cls, found: tuple[StrategyChoice, ...]) -> tuple[StrategyChoice, ...]:
        labels = []
        for choice in found:
            try:
                labels.append(choice.create().label)
            except UnknownStrategyError as error:
                raise ValueError(str(error)) from None
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands there more than once")
        return found


def find(name_or_path: str) -> Path:
    """The file of a study: a path, or the name of a shipped one.

    Raises:
        StudyError: if it is neither.
    """
    path = Path(name_or_path).expanduser()
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
        StudyError: naming the key, what was found, what is valid.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"can't read the study {path}: {error}") from error
    targets = content.get("targets")
    for target in targets.values() if isinstance(targets, dict) else ():
        if isinstance(target, dict) and isinstance(target.get("path"), str):
            target["path"] = _from_here(target["path"])
    state = content.get("state")
    if isinstance(state, dict) and isinstance(state.get("model"), str):
        content["state"] = {**state, "model": _beside(path, state["model"])}
    return parse(content, str(path))


def parse(content: dict[str, Any], where: str) -> Study:
    """Validate a study; `where` names it in messages.

    Raises:
        StudyError: naming the key, what was found, what is valid.
    """
    try:
        return Study.model_validate(content)
    except CheckpointError as error:
        raise StudyError(f"{where}: {error}") from error
    except ValidationError as error:
        raise StudyError("\n".join(_problem(each, where) for each in error.errors())) from None


def _from_here(path: str) -> str:
    """A target's relative path is taken from the directory in which the command was typed."""
    return path if path.startswith(("$", "~")) else str(Path(path).absolute())


def _beside(study: Path, model: str) -> str:
    """A model's relative path is taken from the study's directory."""
    beside = study.parent / Path(model).expanduser()
    return str(beside.resolve()) if beside.exists() else model


def _problem(error: Any, where: str) -> str:
    """One message for one of pydantic's errors: where, which key, what was found, what is valid."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    key = ".".join(location) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no key {key!r}. {_valid_keys(location[:-1])}"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is missing. {_valid_keys(location[:-1])}"
    if error["type"] == "value_error":
        return f"{where}: {key}: {error['ctx']['error']}"
    message = str(error["msg"])
    found = error["input"] if not isinstance(error["input"], dict) else "a table"
    return f"{where}: {key} = {found!r}: {message[0].lower()}{message[1:]}"


def _valid_keys(table: list[str]) -> str:
    models: dict[str, Any] = {"targets": Target, "trials": Trials, "slurm": Slurm}
    if not table:
        keys = list(Study.model_fields)
    elif table[0] == "state":
        keys = [name for name in StateSpec.__dataclass_fields__ if not name.startswith("_")]
    elif table[0] in models:
        keys = list(models[table[0]].model_fields)
    else:
        return ""
    return f"Valid keys of {'.'.join(table) or 'a study'}: {', '.join(keys)}"
