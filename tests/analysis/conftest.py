"""Studies with hand-chosen samples, so that every number of a table can be computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import print_tables
from analysis.measures.trials import COLD, Measured, Setting, Trials
from analysis.tables.render import Format
from jobs import timing_log
from jobs.paths import StudyPaths
from jobs.plan import plan as plans
from jobs.plan import study as studies
from jobs.plan.plan import Job, Plan
from jobs.timing_log import Ceiling, DiskUse, Header, Rank, Sample, TimingLog

GIB = 2**30
GB = 10**9

STRATEGIES = ["torch_save", "tensorstore_basic", "tensorstore_t5x"]

STATE = {
    "model": "tiny",
    "tensors": 3,
    "parameters": 500_000_000,
    "state_bytes": GIB,
    "dtypes": "float16",
    "values": "normal-bfloat16",
    "seed": 0,
    "digest": "0123456789abcdef" * 4,
}

BEST_FOR = {
    "torch_save": "Speed, simplicity",
    "tensorstore_basic": "Cross-framework",
    "tensorstore_t5x": "Production, scale",
}

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "vocab_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}


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
            header: what differs from the attributes of a complete job.
        """
        job = self.job(label, on, number)
        invalid, unproven = invalid or {}, unproven or {}
        samples: list[Sample] = []

        def sample(trial: int, kind: str, phase: str, seconds: float, share: float = math.nan) -> None:
            reason = invalid.get((trial, kind), "")
            cache = "n/a" if kind == "save" else "cold-unproven" if kind == "cold" and trial in unproven else kind
            samples.append(
                Sample(
                    trial=trial,
                    warmup=trial < warmups,
                    rank=0,
                    operation="save" if kind == "save" else "load",
                    phase=phase,
                    start_s=float(len(samples)),
                    duration_s=seconds,
                    state_bytes=GIB,
                    durability="committed" if phase in {"total", "commit"} and kind == "save" else "n/a",
                    cache=cache,
                    load_number={"save": -1, "cold": 0, "warm": 1}[kind],
                    resident_fraction=share,
                    cpu_s=seconds / 2 if phase == "total" else math.nan,
                    peak_rss_bytes=GIB if phase == "total" else -1,
                    valid=not reason,
                    reason=reason,
                )
            )

        for trial in range(max(len(save), len(cold), len(warm))):
            if trial < len(save):
                for phase, part in (("call", 0.5), ("sync", 0.25), ("commit", 0.25), ("total", 1.0)):
                    sample(trial, "save", phase, save[trial] * part)
            if trial < len(cold):
                sample(trial, "cold", "total", cold[trial], unproven.get(trial, 0.0))
            if trial < len(warm):
                sample(trial, "warm", "total", warm[trial], 1.0)
        facts = {"best_for": BEST_FOR.get(label, "")}
        attributes: dict[str, Any] = {
            "study": self.plan.study.name,
            "job_id": job.id,
            "strategy": job.strategy,
            "label": job.label,
            "strategy_options": json.dumps(job.options, sort_keys=True),
            "strategy_facts": json.dumps(facts),
            "target": job.target,
            "round": job.round,
            "nodes": job.nodes,
            "tasks_per_node": job.tasks_per_node,
            "trials_planned": len(save) - warmups,
            "created_utc": "2026-01-02T03:04:05+00:00",
            "clock_zero_unix_s": 1.75e9,
            "status": "complete",
            "error": "",
        }
        log = TimingLog(
            header=Header(**attributes | header),
            samples=samples,
            disk=[
                DiskUse(
                    trial=trial,
                    file_count=1,
                    apparent_bytes=int(size * GIB),
                    allocated_bytes=int(size * GIB),
                    small_file_count=0,
                    largest_file_bytes=int(size * GIB),
                )
                for trial, size in enumerate(gib)
            ],
            state=dict(STATE if state is None else state),
            storage={"path": "/scratch", "filesystem": "ext4"},
            provenance={"host": "node1"},
        )
        path = self.paths.log(job.id)
        log.write(path)
        return path


MakeStudy = Callable[..., StudyOnDisk]


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Plan a study with these keys, in a directory `below` of its own, as `python -m jobs` would."""

    def make(name: str = "tiny", below: Path | None = None, **keys: Any) -> StudyOnDisk:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(LLAMA))
        content = {
            "name": name,
            "strategies": STRATEGIES,
            "state": {"model": str(config)},
            "targets": {"disk": {"path": str(tmp_path)}},
        }
        plan = plans.make_plan(studies.parse(content | keys, name))
        paths = StudyPaths((below or tmp_path / "results") / name)
        paths.logs.mkdir(parents=True)
        paths.plan_json.write_text(plans.to_json(plan))
        return StudyOnDisk(paths, plan)

    return make


@pytest.fixture
def three_methods(make_study: MakeStudy) -> StudyOnDisk:
    """Three complete jobs. Medians: save 4, 87.6, 43.8 s; cold 2, 25, 12.5 s; warm 1, 10, 12 s; 2, 1.5, 1.65 GiB.

    The warm-ups are so large that any statistic that counted one would show it.
    """
    study = make_study()
    huge = 1e6
    study.log(
        "torch_save",
        save=[huge, 6, 2, 4],
        cold=[huge, 1, 3, 2],
        warm=[huge, 0.5, 1, 1.5],
        gib=[huge, 2, 2, 2],
        warmups=1,
    )
    study.log(
        "tensorstore_basic",
        save=[huge, huge, 80, 87.6, 100],
        cold=[huge, huge, 30, 20, 25],
        warm=[huge, huge, 9, 14, 10],
        gib=[huge, huge, 1.25, 1.5, 1.75],
        warmups=2,
    )
    study.log(
        "tensorstore_t5x",
        save=[huge, 43.8, 40, 50],
        cold=[huge, 12.5, 12, 13],
        warm=[huge, 12, 11, 13],
        gib=[huge, 1.65, 1.65, 1.65],
        warmups=1,
    )
    return study


Show = Callable[[Path | Sequence[Path], Format], str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """What `python -m analysis table` prints about these results."""

    def shown(results: Path | Sequence[Path], style: Format) -> str:
        capsys.readouterr()
        print_tables([results] if isinstance(results, Path) else results, style)
        return capsys.readouterr().out

    return shown


def trials_of(durations_s: Sequence[float], jobs: Sequence[str] | None = None) -> Trials:
    """One trial a minute, of a gigabyte, each in a job of its own unless said otherwise."""
    names = tuple(jobs or (f"job {number}" for number in range(len(durations_s))))
    return Trials(tuple(durations_s), names, tuple(1.75e9 + 60 * number for number in range(len(durations_s))), GB)


def _measured(
    label: str,
    save: Sequence[float] = (),
    load: Sequence[float] = (),
    *,
    kind: str = COLD,
    size_bytes: float = math.nan,
    facts: Mapping[str, str] | None = None,
    call: Sequence[float] = (),
    **other: Any,
) -> Measured:
    """A method with these seconds; `call` is the part of each save until it returned."""
    phases = (
        {"call": trials_of(call), "sync": trials_of([a - b for a, b in zip(save, call, strict=True)])} if call else {}
    )
    fields: dict[str, Any] = {
        "label": label,
        "strategy": label,
        "facts": facts or {},
        "save": trials_of(save),
        "phases": phases,
        "loads": {kind: trials_of(load)} if load else {},
        "size_bytes": size_bytes,
        "file_bytes": size_bytes / 4,
        "state_bytes": GB,
    }
    return Measured(**fields | other)


def _setting(*methods: Measured, write_gbps: float = math.nan, read_gbps: float = math.nan, **other: Any) -> Setting:
    """One node, one task, a shared target."""
    fields: dict[str, Any] = {
        "study": "tiny",
        "target": "disk",
        "nodes": 1,
        "tasks_per_node": 1,
        "apart": "",
        "node_local": False,
        "methods": methods,
        "ceilings_gbps": {"write": write_gbps, "read": read_gbps},
    }
    return Setting(**fields | other)


@pytest.fixture
def measured() -> Callable[..., Measured]:
    """Make a method of hand-chosen trials, without any log."""
    return _measured


@pytest.fixture
def setting() -> Callable[..., Setting]:
    """Make a setting of such methods."""
    return _setting


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% include '/etc/passwd' %}",
    "javascript:alert(1)",
    "</style><style>*{display:none}",
    "</svg><svg onload=alert(1)>",
    "\x1b[31m\u202ereversed\u2028line ]]> <!-- --> &lt;b&gt; $x^2$ 日本",
]


@pytest.fixture
def hostile_texts() -> list[str]:
    """Texts that each try to be something else in a page."""
    return HOSTILE


@pytest.fixture
def hostile_logs(three_methods: Any, tmp_path: Path) -> Path:
    """The logs of three methods with something hostile wherever a log holds a text."""
    directory = tmp_path / "hostile"
    (directory / "logs").mkdir(parents=True)
    for number, path in enumerate(sorted(three_methods.paths.logs.glob("*.h5"))):
        log = timing_log.read(path)
        texts = HOSTILE[number:] + HOSTILE[:number]
        log.header.study = HOSTILE[0] + HOSTILE[1]
        log.header.target = HOSTILE[2] + HOSTILE[4]
        log.header.label = texts[5] + texts[0]
        log.header.strategy = texts[1]
        log.header.job_id = f"{number}{texts[2]}"
        log.header.status, log.header.error = "failed", " ".join(texts)
        log.header.strategy_facts = '{"best_for": "<b onclick=alert(1)>", "other_readers": "<i>"}'
        log.header.created_utc = texts[1]
        log.provenance = dict.fromkeys(("host", "kernel", "packages", "cpu", "cpu_governor"), " ".join(texts))
        log.state["model"] = texts[0]
        log.write(directory / "logs" / f"{number}.h5")
    return directory


COMMIT_S = 0.25


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
        save: for each trial, the seconds of each rank's own work, half of it call and half of it sync; all ranks
            commit until `COMMIT_S` after the last has synced.
        load: for each trial, the seconds of each rank's cold load.
        number: the round.
        lost: (trial, operation, rank) of which there is no sample.
        reasons: (trial, operation) -> why the samples of all ranks may not be used.
        ceiling: seconds that each rank took to write, and to read, its share of the state; rank r starts r / 4 s late.
        disk: files and directories of each trial.
        clock_s: how well the clock of each rank but the first is known.
        state: what differs in `/state`; `sharding` replicated lets each rank load all of it.
        host: what the nodes are called, each with its number.
        header: what differs from the attributes of a complete job.
    """
    ranks, reasons, described = nodes * tasks, reasons or {}, STATE | {"sharding": "dim0", "contents": "weights"}
    described |= state or {}
    whole = described["sharding"] == "replicated"
    samples: list[Sample] = []

    def sample(trial: int, operation: str, phase: str, rank: int, start_s: float, seconds: float) -> None:
        reason = reasons.get((trial, operation), "")
        if (trial, operation, rank) in lost:
            return
        samples.append(
            Sample(
                trial=trial,
                warmup=False,
                rank=rank,
                operation=operation,
                phase=phase,
                start_s=start_s,
                duration_s=seconds,
                state_bytes=GIB if whole and operation == "load" else GIB // ranks,
                durability="committed" if operation == "save" else "n/a",
                cache="n/a" if operation == "save" else "cold",
                resident_fraction=math.nan if operation == "save" else 0.0,
                cpu_s=seconds if phase == "total" else math.nan,
                peak_rss_bytes=GIB if phase == "total" else -1,
                valid=not reason,
                reason=reason,
                peak_extra_bytes=(1 + rank) * 2**20 if phase == "total" else -1,
            )
        )

    for trial in range(max(len(save), len(load))):
        start_s = 1000.0 * trial
        for rank, seconds in enumerate(save[trial] if trial < len(save) else ()):
            end_s = max(save[trial]) + COMMIT_S
            sample(trial, "save", "call", rank, start_s, seconds / 2)
            sample(trial, "save", "sync", rank, start_s + seconds / 2, seconds / 2)
            sample(trial, "save", "commit", rank, start_s + seconds, end_s - seconds)
            sample(trial, "save", "total", rank, start_s, end_s)
        for rank, seconds in enumerate(load[trial] if trial < len(load) else ()):
            sample(trial, "load", "total", rank, start_s + 500, seconds)
    attributes: dict[str, Any] = {
        "study": directory.name,
        "job_id": f"r{number:02}-{label}-{target}-{nodes}x{tasks}",
        "strategy": label,
        "label": label,
        "strategy_options": "{}",
        "strategy_facts": "{}",
        "target": target,
        "round": number,
        "nodes": nodes,
        "tasks_per_node": tasks,
        "trials_planned": len(save),
        "created_utc": "2026-01-02T03:04:05+00:00",
        "clock_zero_unix_s": 1.75e9 + 1e6 * number,
        "status": "complete",
    }
    log = TimingLog(
        header=Header(**attributes | header),
        samples=samples,
        disk=[
            DiskUse(
                trial=trial, file_count=disk[0], apparent_bytes=GIB, allocated_bytes=GIB, small_file_count=0,
                largest_file_bytes=GIB, directory_count=disk[1],
            )
            for trial in range(len(save))
        ],
        ceiling=[
            Ceiling(
                when=when, operation=operation, size_bytes=GIB // ranks, start_s=start_s + rank / 4,
                duration_s=seconds, direct=True, rank=rank,
            )
            for when, start_s in (("before", 0.0), ("after", 1e5))
            for operation in ("write", "read")
            for rank, seconds in enumerate(ceiling)
        ],
        ranks=[
            Rank(
                rank=rank, host=f"{host}{rank // tasks}", node=rank // tasks, process_id=rank % tasks,
                clock_uncertainty_s=clock_s if rank else 0.0,
            )
            for rank in range(ranks)
        ],
        state=described,
        storage={"path": "/scratch", "filesystem": "lustre"},
        provenance={"host": "node0"},
    )  # fmt: skip
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    path = directory / "logs" / f"{log.header.job_id}.h5"
    log.write(path)
    return path


@pytest.fixture
def ranked(tmp_path: Path) -> Callable[..., Path]:
    """Write logs of jobs with several ranks into the directory of a study called `many`; returns it."""

    def write(**keys: Any) -> Path:
        ranked_log(tmp_path / "many", **keys)
        return tmp_path / "many"

    return write


@pytest.fixture
def scaled(ranked: Callable[..., Path]) -> Path:
    """Two strategies at six scales: one scales perfectly until two ranks share a node, the other not at all."""
    study = Path()
    for nodes, tasks in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)):
        ranks = nodes * tasks
        for label, seconds in (("torch_save", 8.0 / nodes), ("tensorstore_t5x", 4.0)):
            own_s = [seconds - 0.25] * (ranks - 1) + [seconds - 0.25 if ranks == 1 else seconds]
            for number in (1, 2):
                study = ranked(
                    label=label, nodes=nodes, tasks=tasks, number=number, save=[own_s] * 3, load=[own_s] * 3,
                    ceiling=[4.0 / nodes] * ranks, disk=(ranks, 1),
                )  # fmt: skip
    return study
