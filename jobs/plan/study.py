"""The study: one comparison, written in one TOML file, validated here and nowhere else."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from ckpt import registry
from ckpt.errors import UnknownStrategyError
from ckpt.strategy import Strategy
from ckpt.workload.spec import Count, StateSpec
from jobs.plan import commands
from jobs.plan.loop import CHECKPOINTER, Loop
from jobs.plan.scale import Scale
from jobs.plan.slurm_table import Slurm
from jobs.plan.strategy_choice import StrategyChoice
from jobs.plan.table import Table
from jobs.timing_log import LOG

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
"""A name that becomes part of job ids and file names: letters, digits, `_`, `-` and `.`."""


TargetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]*$", max_length=150)]
"""The same, and what axes add to it."""

AxisName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=60)]
AxisValue = StrictInt | StrictFloat | StrictStr

Commands = Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Commands that run one after the other; a file may also give one alone."""


class Target(Table):
    """A named place to write to.

    Attributes:
        path: a directory; `$VARIABLES` and `~` are resolved on the node, `$$` is a dollar. None: `$SLURM_TMPDIR`,
            else `$TMPDIR`.
        node_local: whether every node has its own; jobs on different nodes then don't disturb one another.
        filesystem: the type that the path must lie on (`lustre`), so that a missing mount is noticed.
        allow_tmpfs: take a filesystem in memory, which measures no disk.
        prepare: commands before a job's trials, in its scratch directory: `"lfs setstripe -c 8 {directory}"`. They run
            without a shell, once for each directory: on the job's first rank, or on each node's where it is node-local.
        between: commands between each save and its loads, on every node's first rank, in `/`: drop the servers'
            caches, or mount anew. Nothing of them is in a measured time.
        axes: values for `{name}` in these commands; each combination of lists makes a target of its own, called
            `lustre+stripe_count=4`.
        drain_to: another target of the study. Jobs save here in the way `checkpointer`, on two levels: a thread copies
            every checkpoint to that target, behind the loop.
        drain_bytes_per_s: the most that these copies may take; 0 for no limit.
        slurm: what jobs on this target ask of the cluster, over the study's own `[slurm]`.
    """

    path: str | None = None
    node_local: bool = False
    filesystem: str | None = None
    allow_tmpfs: bool = False
    prepare: Commands = ()
    between: Commands = ()
    axes: dict[AxisName, AxisValue | tuple[AxisValue, ...]] = Field(default={})
    drain_to: TargetName | None = None
    drain_bytes_per_s: float = Field(default=0, ge=0)
    slurm: Slurm = Slurm()

    @model_validator(mode="after")
    def _commands_possible(self) -> Target:
        commands.check((*self.prepare, *self.between), self.axes)
        return self

    @model_validator(mode="after")
    def _rate_of_a_drain(self) -> Target:
        if self.drain_bytes_per_s and self.drain_to is None:
            raise ValueError(
                "drain_bytes_per_s says nothing without drain_to: name the target to which this one drains"
            )
        return self

    @property
    def on_each_node(self) -> bool:
        """Whether every node has a directory of its own; without a path, it is one for temporary files."""
        return self.node_local or self.path is None


class Trials(Table):
    """What every job does.

    Attributes:
        repeats: measured trials.
        warmups: trials before them, kept in the log and marked.
        min_time_s: go on beyond `repeats` until the measured operations add up to that many seconds.
        cold: empty the page cache and load; the figure that a restart after a failure sees.
        warm_load: load from the page cache, after the cold load if there is one.
        load_into: after the other loads, empty the page cache again, and load into memory that exists, as a restart
            without a second copy does. Strategies that can't are measured without it.
        ceiling: before the first and after the last trial, measure what the target itself can do.
        metadata: before the first trial, measure how many small files a second the target makes, finds, reads and
            removes, on one rank and on all; a few seconds at most.
        read_shift: with several nodes, every rank loads what was saved that many nodes further on, which its own node
            can't have cached.
        load_ranks: how many ranks load, whatever number saved; None for those that saved.
        rank_timeout_s: how long ranks wait for another one before they give up.
    """

    repeats: Count = Field(default=5, ge=1)
    warmups: Count = Field(default=1, ge=0)
    min_time_s: float = Field(default=0, ge=0)
    cold: bool = True
    warm_load: bool = True
    load_into: bool = False
    ceiling: bool = True
    metadata: bool = True
    read_shift: Count = Field(default=0, ge=0)
    load_ranks: Count | None = Field(default=None, ge=1)
    rank_timeout_s: float = Field(default=600, gt=0, le=86_400)

    @property
    def loads_per_trial(self) -> int:
        """How many loads every trial has."""
        return self.cold + self.warm_load

    @model_validator(mode="after")
    def _some_load(self) -> Trials:
        if not (self.cold or self.warm_load):
            raise ValueError("cold = false and warm_load = false leave no load, and nothing to verify: allow one")
        if self.read_shift and self.load_ranks:
            raise ValueError("read_shift and load_ranks both determine what a rank loads: leave one of them out")
        return self


_TRIALS_OF_A_LOOP = frozenset({"ceiling", "metadata", "rank_timeout_s"})
"""What a job with a training loop takes of `[trials]`."""


class Study(Table):
    """One comparison: states × strategies × targets × rounds."""

    name: Name
    description: str = ""
    site: Name | None = None
    state: StateSpec
    strategies: tuple[StrategyChoice, ...]
    targets: dict[TargetName, Target] = Field(min_length=1)
    trials: Trials = Trials()
    loop: Loop | None = None
    rounds: Count = Field(default=1, ge=1, le=999)
    shuffle_seed: Count = 0
    slurm: Slurm = Slurm()
    schema_version: Literal[1] = 1

    @field_validator("targets")
    @classmethod
    def _one_target_per_combination(cls, targets: dict[str, Target]) -> dict[str, Target]:
        variants: dict[str, Target] = {}
        for name, target in targets.items():
            for variant, axes in commands.variants(name, target.axes):
                if variant in variants:
                    raise ValueError(
                        f"two targets would be called {variant!r}: rename one, or change a value of an axis"
                    )
                variants[variant] = target.model_copy(update={"axes": axes})
        return variants

    @field_validator("strategies", mode="before")
    @classmethod
    def _names_and_tables(cls, entries: Any) -> Any:
        """Take `"torch_save"` and `{name = "tensorstore_basic", compressor = "none"}` alike."""
        if not isinstance(entries, list | tuple):
            return entries
        choices: list[Any] = []
        for entry in entries:
            if isinstance(entry, str):
                choices.append({"name": entry, "options": {}})
            elif isinstance(entry, dict) and "options" not in entry:
                named = {key: entry[key] for key in entry.keys() & {"name"}}
                choices.append({**named, "options": {k: v for k, v in entry.items() if k != "name"}})
            else:
                choices.append(entry)
        return choices

    @field_validator("strategies")
    @classmethod
    def _known_and_different(cls, choices: tuple[StrategyChoice, ...]) -> tuple[StrategyChoice, ...]:
        if not choices:
            raise ValueError(f"names no strategy; there are {', '.join(registry.names())}")
        labels = []
        for choice in choices:
            try:
                labels += [method.label for method in choice.methods]
            except UnknownStrategyError as error:
                raise ValueError(str(error)) from None
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed more than once")
        return choices

    @model_validator(mode="after")
    def _commands_before_cold_loads(self) -> Study:
        names = [name for name, target in self.targets.items() if target.between]
        if names and not self.trials.cold:
            raise ValueError(
                f"target {names[0]!r} has commands in `between`, which run before a cold load, and trials.cold = false "
                "leaves only warm ones, which they would spoil: leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _no_trials_in_a_loop(self) -> Study:
        if self.loop is None:
            return self
        asked, usual = self.trials.model_dump(), Trials().model_dump()  # a plan's file has all keys
        changed = [f"trials.{key}" for key in asked if key not in _TRIALS_OF_A_LOOP and asked[key] != usual[key]]
        changed += [f"targets.{name}.between" for name, target in self.targets.items() if target.between]
        if changed:
            raise ValueError(
                f"{changed[0]} says nothing in a study with a table [loop], whose jobs save in a training loop and "
                "have no trials: leave out the key, or the table; loop.saves and loop.blocks say how often a job saves"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit_into_a_log(self) -> Study:
        ranks = max(scale.ranks for name in self.targets for scale in self.scales(name))
        if self.loop and self.loop.steps * ranks > LOG.rows // 2:  # as many again may wait for a block's last save
            raise ValueError(
                f"a job's loop has {self.loop.steps:,} steps on each of {ranks:,} ranks, and its log holds each step "
                f"of each rank, {LOG.rows // 2:,} at most: lower loop.blocks, loop.saves or loop.every"
            )
        return self

    @model_validator(mode="after")
    def _one_rank_for_a_checkpointer(self) -> Study:
        wide = [name for name in self.targets if any(scale.ranks > 1 for scale in self.scales(name))]
        if self.loop and CHECKPOINTER in self.loop.ways and wide:
            raise ValueError(
                f"loop.ways has {CHECKPOINTER!r}, whose jobs have one rank, and target {wide[0]!r} is to be measured "
                "on several: leave out the way, or write `nodes = 1` and `tasks_per_node = 1` below [slurm]"
            )
        return self

    @model_validator(mode="after")
    def _drains_possible(self) -> Study:
        for name, target in self.targets.items():
            if target.drain_to is None:
                continue
            second = self.targets.get(target.drain_to)
            if second is None:
                problem = f"the study has no such target: expected one of {', '.join(self.targets.keys() - {name})}"
            elif second.drain_to is not None:
                problem = f"that one drains to {second.drain_to!r} itself: name one that doesn't drain"
            elif second.path == target.path:
                problem = f"both are the directory {target.path or 'for temporary files'}: give each its own `path`"
            elif self.loop is None:
                problem = "only a training loop saves on two levels: write a table [loop], or leave out drain_to"
            elif CHECKPOINTER not in self.loop.ways:
                problem = f"loop.ways lacks {CHECKPOINTER!r}, the only way to save on two levels: add it"
            else:
                continue
            raise ValueError(f"target {name!r} has drain_to = {target.drain_to!r}, and {problem}")
        return self

    @model_validator(mode="after")
    def _loads_possible(self) -> Study:
        shift = self.trials.read_shift
        if shift and self.state.sharding == "replicated":
            raise ValueError(
                'trials.read_shift says nothing where sharding = "replicated": every rank loads everything'
            )
        for name, target in self.targets.items():
            scales = self.scales(name)
            elsewhere = "read_shift" if shift else "load_ranks" if any(scale.reshards for scale in scales) else ""
            if elsewhere and target.on_each_node:
                raise ValueError(
                    f"trials.{elsewhere} has ranks load what other nodes wrote, and target {name!r} is node-local: "
                    "they can't see it. Leave out the key, or the target"
                )
            fewest = min(scale.nodes for scale in scales)
            if shift >= fewest:
                raise ValueError(
                    f"trials.read_shift = {shift}, and target {name!r} is to be measured on {fewest} node(s): write "
                    f"`nodes = {shift + 1}` or more below [slurm], or leave the key out"
                )
        return self

    def scales(self, target: str) -> list[Scale]:
        """The scales at which a target is measured: every number of nodes with every number of tasks."""
        asked = self.targets[target].slurm.over(self.slurm)
        pairs = dict.fromkeys(itertools.product(asked.nodes or (1,), asked.tasks_per_node or (1,)))
        return [Scale(node, task, self.trials.load_ranks or node * task) for node, task in pairs]

    def methods(self) -> list[Strategy]:
        """The strategies with their options: every combination of options that are axes is a method."""
        return [method for choice in self.strategies for method in choice.methods]

    def dropped(self) -> list[str]:
        """Why combinations of options are left out."""
        return [reason for choice in self.strategies for reason in choice.dropped]
