"""A trial loop with a clock that stands still, and a strategy that notes what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ckpt.state.layout import State, TensorLayout
from ckpt.strategy import Capabilities
from jobs.node.ceiling import measure_ceiling
from jobs.node.context import JobContext
from jobs.node.groups import ProcessGroups
from jobs.node.measure import run_trials
from jobs.node.proof import PROVEN, examine
from jobs.node.recorder import Progress, Recorder
from jobs.node.subject import Subject
from jobs.node.topology import assign
from jobs.paths import StudyPaths
from jobs.plan.plan import make_plan
from jobs.plan.study import Trials
from jobs.plan.study_file import parse
from jobs.timing_log import Sample, TimingLog
from support.logs import header_of, job

MIB = 2**20


class FakeClock:
    """A clock that stands still until someone takes time."""

    def __init__(self, events: list[str]) -> None:
        self.now_s, self._events = 100.0, events

    def __call__(self) -> float:
        """The time, in seconds."""
        self._events.append("clock")
        return self.now_s


class FakeStrategy:
    """One file per tensor, written and read with plain file operations; tells `events` what it is asked for."""

    capabilities = Capabilities()

    def __init__(self, clock: FakeClock, events: list[str]) -> None:
        self._clock, self._events = clock, events

    def write(self, state: State, directory: Path, *_: Any) -> list[Path]:
        """Save: the tests' state has one shard."""
        return self.save(state, directory)

    def read(self, directory: Path, *_: Any) -> State:
        """Load: the tests' state has one shard."""
        return self.load(directory)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write the files; takes 3 s."""
        self._events.append("save")
        self._clock.now_s += 3
        for name, tensor in state.items():
            (directory / name).write_bytes(tensor.numpy().tobytes())
        return [directory / name for name in state]

    def load(self, directory: Path) -> State:
        """Read them into new memory; takes 5 s."""
        self._events.append("load")
        self._clock.now_s += 5
        return {
            file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32)
            for file in directory.iterdir()
        }


class EventRecorder(Recorder):
    """Tells `events` when the log would be written."""

    def __init__(self, log: TimingLog, events: list[str]) -> None:
        super().__init__(log, None)
        self._events = events

    def flush(self) -> None:
        """Write nothing."""
        self._events.append("log")


@dataclass
class Bench:
    """What a trial loop needs, and the loop."""

    target: Path
    scratch: Path
    state: State
    log: TimingLog
    events: list[str] = field(default_factory=list)
    trials: Trials = field(default_factory=lambda: Trials(ceiling=False, metadata=False, repeats=1, warmups=0))

    def __post_init__(self) -> None:
        self.clock = FakeClock(self.events)
        self.strategy: Any = FakeStrategy(self.clock, self.events)
        self.recorder = EventRecorder(self.log, self.events)
        # As on a local disk, whatever the tests run on, with what this kernel shows.
        examined = examine(self.target, ProcessGroups.alone(), shifted=False)
        self.proof = replace(examined, durability=PROVEN, cold=PROVEN)

    def run(self, **trials: Any) -> None:
        """Run the trials that are missing."""
        self.trials = self.trials.model_copy(update=trials)
        progress = Progress.of(self.log, self.trials)
        run_trials(self.subject(), self.scratch, self.context(), self.recorder, progress)

    def measure_ceiling(self, clock: Any = None) -> None:
        """Measure the ceiling once."""
        chosen: Any = clock or self.clock
        context = replace(self.context(), clock=chosen)
        measure_ceiling("before", self.subject(), self.scratch, context, self.recorder)

    def context(self) -> JobContext:
        """What the process knows of its job."""
        content = {
            "name": "s",
            "strategies": ["torch_save"],
            "state": {"model": "llama-15m"},
            "targets": {"t": {"path": str(self.target)}},
        }
        study = parse(content, "study.toml").model_copy(update={"trials": self.trials})
        clock: Any = self.clock
        job, paths = make_plan(study).jobs[0], StudyPaths(self.target)
        return JobContext(study, job, self.strategy, paths, ProcessGroups.alone(), clock, self.proof)

    def subject(self) -> Subject:
        """What is saved and loaded, by this process alone."""
        layout = tuple(TensorLayout(name, tuple(each.shape), "float32") for name, each in self.state.items())
        groups = ProcessGroups.alone()
        assignment = assign(groups.scale, groups.process, layout, "dim0", 0, node_local=False)
        return Subject(self.strategy, groups, assignment, self.state, self.state)

    def samples(self, operation: str = "", phase: str = "") -> list[Sample]:
        """The samples of an operation and a phase."""
        return [s for s in self.log.samples if operation in {"", s.operation} and phase in {"", s.phase}]


def new_bench(tmp_path: Path) -> Bench:
    """A bench with a state of 2 MiB, which is on a disk where tmp_path is."""
    target = tmp_path / "target"
    scratch = target / "scratch"
    scratch.mkdir(parents=True)
    state = {"a": torch.arange(MIB / 4, dtype=torch.float32), "b": torch.ones(MIB // 4)}
    header = header_of(job("fake", "t"), study="s", trials_planned=1, status="running")
    return Bench(target, scratch, state, TimingLog(header=header, state={"state_bytes": 2 * MIB}))
