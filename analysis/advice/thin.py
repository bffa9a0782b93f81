"""Lists where the measurements are too thin for advice, and which load stands for a restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from analysis.logs.claims import PROVEN
from analysis.measures.caveats import FEWEST_TRIALS
from analysis.measures.differences import FEWEST_ROUNDS
from analysis.measures.loop_cost import NO_SAVES
from analysis.measures.method import UNKNOWN_FACT, Method
from analysis.measures.operation import COLD_LOADS, Operation
from analysis.measures.setting import Setting

Restore = Literal["cold", "warm"]


def restart_load(method: Method, restore: Restore) -> Operation | None:
    """Return the load that a restart does: of the kind asked for, or the nearest that was measured."""
    if restore == "warm" and len(method[Operation.LOAD_WARM]):
        return Operation.LOAD_WARM
    return method.cold_load()


def thin_alone(setting: Setting, restore: Restore) -> list[str]:
    """List where the data is too thin for advice from saves and loads without a loop."""
    methods = setting.methods
    saves = {m.label: m[Operation.SAVE] for m in methods}
    kinds = {m.label: restart_load(m, restore) for m in methods}
    loads = {m.label: len(m[kind]) if (kind := kinds[m.label]) else 0 for m in methods}
    jobs = {label: len(set(trials.jobs)) for label, trials in saves.items()}
    of_kind = {kind: [label for label, used in kinds.items() if used is kind] for kind in Operation}
    cold_instead = [label for kind in COLD_LOADS for label in of_kind[kind]]
    cases = [
        ("without a valid save", [label for label in saves if not len(saves[label])], "no advice about them"),
        ("without a valid load", [label for label in saves if len(saves[label]) and not loads[label]],
         "what a restart with them costs is unknown"),
        (f"fewer than {FEWEST_TRIALS} valid trials",
         [label for label in saves if 0 < min(len(saves[label]), loads[label]) < FEWEST_TRIALS],
         "their intervals are wide, or missing: add `repeats`"),
        ("a single job", [label for label in saves if jobs[label] == 1],
         "how jobs differ is unknown, so their intervals are too narrow: add `rounds`"),
        ("two rounds", [label for label in saves if 1 < jobs[label] < FEWEST_ROUNDS],
         "too few for a test: called different only where no trials overlap; add `rounds`, to three or more"),
        (f"saves whose durability is unproven ({setting.durability})",
         [label for label in saves if len(saves[label]) and setting.durability != PROVEN],
         "a checkpoint may be lost with a server's power"),
        ("loads that were not in this node's cache, but maybe in a server's", of_kind[Operation.LOAD_CLIENT_COLD],
         "a restart may take longer than they did"),
        ("loads not proven cold", of_kind[Operation.LOAD_UNPROVEN],
         "a restart may take longer than they did"),
        ("no cold loads", of_kind[Operation.LOAD_WARM] if restore == "cold" else [],
         "warm ones stand in, and a restart will take longer: set `cold = true`"),
        ("no warm loads", [label for label in kinds if label in cold_instead and restore == "warm"],
         "cold ones stand in: set `warm_load = true`"),
        ("older logs, which don't say who else reads the format",
         [m.label for m in methods if m.fact("other_readers") == UNKNOWN_FACT], "not considered as open formats"),
    ]  # fmt: skip
    return _in_words(cases, len(methods))


def thin_in_a_loop(setting: Setting) -> list[str]:
    """List where the data is too thin for advice from a training loop."""
    loops = {method.label: method.loop for method in setting.methods if method.loop and method.loop.way != NO_SAVES}
    saves = {label: sum(at.saves for at in loop.at) for label, loop in loops.items()}
    rounds = {label: len({job.round for job in loop.jobs}) for label, loop in loops.items()}
    cases = [
        ("with an invalid checkpoint", [label for label, loop in loops.items() if loop.invalid],
         "not advised: a restart from such a one loses more than time"),
        ("without a valid save", [label for label in loops if not saves[label]], "no advice about them"),
        ("no save that was committed before the next one's call",
         [label for label, loop in loops.items() if saves[label] and not loop.unhurried.saves],
         "what one costs by itself is unknown: measure a longer interval (`every`)"),
        (f"fewer than {FEWEST_TRIALS} saves that no later call cut short",
         [label for label, loop in loops.items() if 0 < loop.unhurried.saves < FEWEST_TRIALS],
         "their intervals are wide, or missing: add `blocks`, or measure a longer interval (`every`)"),
        ("fewer than three rounds", [label for label in loops if rounds[label] < FEWEST_ROUNDS],
         "too few for a test: called different only where the ranges of their losses don't overlap; add `rounds`"),
        (f"saves whose durability is unproven ({setting.durability})",
         [label for label in loops if saves[label] and setting.durability != PROVEN],
         "a checkpoint may be lost with a server's power"),
    ]  # fmt: skip
    return _in_words(cases, len(loops))


def _in_words(cases: Sequence[tuple[str, list[str], str]], count: int) -> list[str]:
    return [f"{what}: {_listed(labels, count)}; {so}" for what, labels, so in cases if labels]


def _listed(labels: Sequence[str], count: int) -> str:
    return "all strategies" if len(labels) == count > 1 else ", ".join(labels)
