"""Studies on disk whose jobs measured what a test says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from analysis.logs.load import load_results
from analysis.measures.comparison import Comparison, compare
from analysis.tables.render import Format
from jobs.paths import StudyPaths
from jobs.plan import plan as plans
from jobs.plan import study_file
from jobs.plan.plan import Job, Plan
from jobs.timing_log import Ceiling
from support.logs import GIB, STATE, LogBuilder, job
from support.models import write_config

Item = TypeVar("Item")

STRATEGIES = ["torch_save", "tensorstore_basic", "tensorstore_t5x"]

BEST_FOR = {
    "torch_save": "Speed, simplicity",
    "tensorstore_basic": "Cross-framework",
    "tensorstore_t5x": "Production, scale",
}

Show = Callable[[Path | Sequence[Path], Format], str]
"""What `python -m analysis table` prints about these results."""

Ranked = Callable[..., Path]
"""`ranked_log` into one study; returns the study's directory."""


class MakeStudy(Protocol):
    """Plans a study with these keys, in a directory `below` of its own, as `python -m jobs` would."""

    def __call__(self, name: str = "tiny", below: Path | None = None, **keys: Any) -> StudyOnDisk:
        """Plan it; returns it without a log."""


@dataclass(frozen=True)
class StudyOnDisk:
    """A planned study; `log` writes what one of its jobs measured."""

    paths: StudyPaths
    plan: Plan

    @property
    def root(self) -> Path:
        """The study's directory."""
        return self.paths.root

    def job(self, label: str, target: str = "disk", number: int = 1) -> Job:
        """The planned job of that label, target and round."""
        return next(j for j in self.plan.jobs if (j.label, j.target, j.round) == (label, target, number))

    def log(
        self,
        label: str,
        /,
        *,
        on: str = "disk",
        number: int = 1,
        save: Sequence[float] = (),
        cold: Sequence[float] = (),
        warm: Sequence[float] = (),
        gib: Sequence[float] = (),
        warmups: int = 0,
        invalid: Mapping[tuple[int, str], str] | None = None,
        unproven: Mapping[int, float] | None = None,
        state: Mapping[str, Any] | None = None,
        ceiling: Sequence[Ceiling] = (),
        **header: Any,
    ) -> Path:
        """Write a job's log.

        Args:
            label: which job,
            on: on which target,
            number: in which round.
            save: seconds of each trial's save; its three phases take a half and two quarters of it.
            cold: seconds of each trial's first load.
            warm: seconds of each trial's second load.
            gib: size of each trial's checkpoint.
            warmups: how many of the trials, from the first, are warm-ups.
            invalid: (trial, `save`, `cold` or `warm`) -> why the sample may not be used.
            unproven: trial -> share of the pages that were cached before a load that was to be cold.
            state: attributes of `/state`; empty if the job did not get that far.
            ceiling: what the target did by itself.
            header: what differs from the attributes of a complete job.
        """
        planned = self.job(label, on, number)
        facts = json.dumps({"best_for": BEST_FOR.get(label, "")})
        attributes = {"study": self.plan.study.name, "strategy_facts": facts, "trials_planned": len(save) - warmups}
        built = LogBuilder(planned, **attributes | header)
        built.log.state = dict(STATE if state is None else state)
        for trial in range(max(len(save), len(cold), len(warm))):
            built.trial(
                save=_at(save, trial),
                cold=_at(cold, trial),
                warm=_at(warm, trial),
                warmup=trial < warmups,
                unproven=(unproven or {}).get(trial),
                reasons={kind: reason for (at, kind), reason in (invalid or {}).items() if at == trial},
            )
        built.log.ceiling += ceiling
        for trial, size in enumerate(gib):
            built.disk(trial, int(size * GIB))
        return built.write(self.paths.log(planned.id))


def study_maker(directory: Path) -> MakeStudy:
    """Return what plans studies whose configuration, and by default whose results, lie in a directory."""

    def make(name: str = "tiny", below: Path | None = None, **keys: Any) -> StudyOnDisk:
        config = write_config(directory / "config.json")
        content = {
            "name": name,
            "strategies": STRATEGIES,
            "state": {"model": str(config)},
            "targets": {"disk": {"path": str(directory)}},
        }
        plan = plans.make_plan(study_file.parse(content | keys, name))
        paths = StudyPaths((below or directory / "results") / name)
        paths.logs.mkdir(parents=True)
        paths.plan_json.write_text(plans.to_json(plan))
        return StudyOnDisk(paths, plan)

    return make


def ranked_log(
    directory: Path,
    /,
    *,
    label: str = "torch_save",
    target: str = "shared",
    nodes: int,
    tasks: int = 1,
    save: Sequence[Sequence[float]] = (),
    load: Sequence[Sequence[float]] = (),
    number: int = 1,
    lost: Collection[tuple[int, str, int]] = (),
    reasons: Mapping[tuple[int, str], str] | None = None,
    ceiling: Sequence[float] = (),
    disk: tuple[int, int] = (4, 2),
    clock_s: float = 0.0,
    state: Mapping[str, Any] | None = None,
    host: str = "node",
    **header: Any,
) -> Path:
    """Write the log of a job with several ranks, its trials 1000 s apart; returns its path.

    Args:
        directory: of the study; there is no plan.
        label: of the job.
        target: of the job.
        nodes: of its scale.
        tasks: on each of them: rank r runs on the node r // tasks.
        save: for each trial, the seconds of each rank's own work, as in `LogBuilder.trial`.
        load: for each trial, the seconds of each rank's cold load.
        number: the round.
        lost: (trial, operation, rank) of which there is no sample.
        reasons: (trial, operation) -> why the samples of all ranks may not be used.
        ceiling: seconds that each rank took to write, and to read, its share of the state.
        disk: files and directories of each trial.
        clock_s: how well the clock of each rank but the first is known.
        state: what differs in `/state`; `sharding` replicated lets each rank load all of it.
        host: what the nodes are called, each with its number.
        header: what differs from the attributes of a complete job.
    """
    planned = job(label, target, number, nodes=nodes, tasks=tasks)
    attributes: dict[str, Any] = {
        "study": directory.name,
        "trials_planned": len(save),
        "strategy": label,
        "strategy_options": "{}",
        "clock_zero_unix_s": 1.75e9 + 1e6 * number,
    }
    built = LogBuilder(planned, **attributes | header)
    built.log.state |= {"sharding": "dim0", "contents": "weights"} | dict(state or {})
    built.log.storage["filesystem"], built.log.provenance["host"] = "lustre", "node0"
    for trial in range(max(len(save), len(load))):
        built.trial(
            save=_at(save, trial),
            cold=_at(load, trial),
            reasons={
                "save" if operation == "save" else "cold": reason
                for (at, operation), reason in (reasons or {}).items()
                if at == trial
            },
            lost={(operation, rank) for at, operation, rank in lost if at == trial},
        )
    for trial in range(len(save)):
        built.disk(trial, GIB, files=disk[0], directories=disk[1])
    built.ceilings(ceiling).hosts(host, clock_s)
    return built.write(directory / "logs" / f"{built.log.header.job_id}.h5")


def _at(items: Sequence[Item], number: int) -> Item | None:
    """The item of that number, if there are as many."""
    return items[number] if number < len(items) else None


def only(results: Path) -> Comparison:
    """The one comparison of a study, or of whatever holds its logs."""
    [comparison] = compare(load_results(results))
    return comparison


def rows(shown: str, table: str) -> list[dict[str, str]]:
    """The rows of one table in CSV."""
    blocks = [[line for line in block.splitlines() if line[:1] != "#"] for block in shown.split("\n\n")]
    [found] = [block for block in blocks if len(block) > 1 and block[1].startswith(f"{table},")]
    return list(csv.DictReader(io.StringIO("\n".join(found))))
