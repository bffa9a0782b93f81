"""Sums up the commands of a study that jobs ran around their trials: how often, how long, with which exit code."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, slots=True)
class Command:
    """A command, as often as it ended with one exit code."""

    when: str
    """`prepare` or `between`."""
    command: str
    """As the study has it, with the values of its target's axes; as it ran in logs that lack that."""
    exit_code: int
    durations_s: tuple[float, ...]
    """Of every run on every rank, in seconds."""


def commands_of(hooks: pd.DataFrame) -> tuple[Command, ...]:
    """Sum up the commands of the jobs of one target at one scale, `prepare` first, in the order in which they began.

    Args:
        hooks: rows of `Results.hooks`.
    """
    ordered = hooks.sort_values(["trial", "start_s"], kind="stable")
    named = ordered.assign(named=ordered["study_command"].where(ordered["study_command"] != "", ordered["command"]))
    return tuple(
        Command(str(when), str(command), int(str(exit_code)), tuple(map(float, runs["duration_s"])))
        for (when, command, exit_code), runs in named.groupby(["when", "named", "exit_code"], sort=False)
    )
