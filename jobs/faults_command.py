"""`python -m jobs faults`: what checkpoints of every method of a study survive, tried on this machine."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.live import Live
from rich.text import Text

from ckpt.cli import unwritten
from jobs.analysing import analyse
from jobs.errors import StudyError
from jobs.faults import kept, work_directory
from jobs.faults.budget import Budget
from jobs.faults.outcomes import BIT_ROT, FAULTS, FILE, USES, VERDICTS, FaultLog
from jobs.faults.run import Runner, Tally
from jobs.faults.subject import Subject
from jobs.faults.tracing import require_strace
from jobs.hanging import LOOK_S, must_answer, tell
from jobs.node import targets
from jobs.node.interrupt import Interrupted, interruptible
from jobs.paths import StudyPaths
from jobs.plan import study_file
from jobs.plan.study import Study
from jobs.terminal import wide_console

_NEEDED_BYTES, _NEEDED_FILES = 2**30, 10_000
"""On the target, for copies of small checkpoints."""

_USUAL = Budget()


@dataclass(frozen=True)
class Selection:
    """Which cells to try.

    Attributes:
        method: only this one, by its label. With this option, or one of the next two, the counts and the smallest case
            of every verdict are printed, and no file is written.
        use: only as the library's users call it, or only with this package's commit.
        fault: only this kind of fault.
        target: the target to write to; it can be left out if the study has only one.
    """

    method: str = ""
    use: Literal["alone", "committed"] | None = None
    fault: Literal["power-cut", "failed-call", "kill", "bit-rot"] | None = None
    target: str = ""

    @property
    def is_part(self) -> bool:
        """Whether it leaves out cells of the study's table."""
        return bool(self.method or self.use or self.fault)

    def cells(self, study: Study) -> list[Tally]:
        """List the cells, in the order of the study's methods.

        Raises:
            StudyError: if the study has no such method.
        """
        methods = {method.label: method for method in study.methods()}
        if self.method and self.method not in methods:
            raise StudyError(f"study {study.name!r} has no method {self.method!r}; it has {', '.join(methods)}")
        chosen = [methods[self.method]] if self.method else list(methods.values())
        uses, faults_ = (self.use,) if self.use else USES, (self.fault,) if self.fault else FAULTS
        return [Tally(*names) for names in itertools.product(chosen, uses, faults_)]

    def directory(self, study: Study) -> tuple[str, Path]:
        """Find the target and its directory on this machine, and make sure that it can be written to.

        Raises:
            StudyError: if the study has no such target, or several and none is chosen.
            TargetError: if the directory can't be used.
        """
        name = self.target or (next(iter(study.targets)) if len(study.targets) == 1 else "")
        if name not in study.targets:
            wrong = f"has no target {name!r}" if name else "has several targets: choose one by --target"
            raise StudyError(f"study {study.name!r} {wrong}; it has {', '.join(study.targets)}")
        target = study.targets[name].model_copy(update={"allow_tmpfs": True})  # nothing is measured
        directory = targets.resolve(name, target, os.environ)
        targets.must_answer(name, directory, LOOK_S, tell)
        targets.check(name, target, directory, _NEEDED_BYTES, _NEEDED_FILES)
        return name, directory


def faults(
    study: Annotated[str, Parameter(help="a TOML file, or the name of a shipped study")],
    *,
    selection: Annotated[Selection, Parameter(name="*")] = Selection(),
    budget: Annotated[Budget, Parameter(name="*")] = _USUAL,
    results: Path = Path("results"),
    again: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Try power cuts, failed calls, kills and bit rot on every method of a study; print what a restart has afterwards.

    Every method is tried as its library's users call it (alone), and with this package's commit (committed), on this
    machine, without Slurm. RESULTS/NAME/faults.json has the outcomes; a second run tries what is missing.

    Args:
        study: a TOML file, or the name of a shipped study; its state has 4 MiB at most.
        selection: which cells to try.
        budget: how much to try.
        results: the directory in which the study gets a directory of its own.
        again: try everything anew, and replace what an earlier run kept.
    """
    read = study_file.read(study_file.find(study))
    cells = selection.cells(read)
    Subject(cells[0].method.name, {}, USES[0], read.state)  # refuses a state that is too large
    if any(cell.fault != BIT_ROT for cell in cells):
        require_strace()
    target, directory = selection.directory(read)
    for path in work_directory.sweep(directory):
        print(f"removed {path}, which a run that was killed had left")
    runner = Runner(read.state, budget, directory)
    if selection.is_part:
        for cell in sorted(_run(runner, cells, lambda _: None), key=cells.index):
            _print_cases(cell)
        return 0
    paths = StudyPaths((results.expanduser() / read.name).absolute())
    must_answer(paths.root)
    log = kept.begun(read, _command(study, selection.target, budget), target, directory, budget)
    with kept.locked(paths.root):
        _keep(runner, cells, log, paths, again=again)
    return analyse("faults", paths)


def _keep(runner: Runner, cells: Sequence[Tally], log: FaultLog, paths: StudyPaths, *, again: bool) -> None:
    """Run the cells that the study's file lacks, and write it after every one."""
    labels = list(dict.fromkeys(cell.method.label for cell in cells))
    if not again:
        log = kept.continued(paths.root / FILE, log, labels)
    tried = {(cell.method, cell.use, cell.fault) for cell in log.cells}
    missing = [cell for cell in cells if (cell.method.label, cell.use, cell.fault) not in tried]

    def keep(cell: Tally) -> None:
        kept.put(log, cell.cell(), labels)
        _write(log, paths)

    _write(log, paths)
    try:
        _run(runner, missing, keep)
    except KeyboardInterrupt:
        print(f"{paths.root / FILE} has their outcomes; the same command tries the others")
        raise


def _command(study: str, target: str, budget: Budget) -> str:
    """Build the command that repeats the study's faults, with the options that differ from the usual ones."""
    usual = asdict(_USUAL)
    chosen = {"target": target} | {name: value for name, value in asdict(budget).items() if value != usual[name]}
    words = [word for name, value in chosen.items() if value != "" for word in (f"--{name}", str(value))]
    return shlex.join(["python", "-m", "jobs", "faults", study, *words])


def _write(log: FaultLog, paths: StudyPaths) -> None:
    try:
        log.write(paths.root / FILE)
    except OSError as error:
        raise StudyError(f"{unwritten(error, paths.root / FILE)}, or try --results DIR") from error


def _run(runner: Runner, cells: Sequence[Tally], keep: Callable[[Tally], None]) -> list[Tally]:
    """Run cells, and show how they go: on a terminal those that run, everywhere those that have ended."""
    console = wide_console()
    ended: list[Tally] = []
    try:
        with (
            interruptible(lambda _: None),
            Live(console=console, auto_refresh=False, transient=True) as live,
            runner,
        ):

            def look(running: Sequence[Tally]) -> None:
                if console.is_terminal:
                    lines = [f"{len(ended)} of {len(cells)} cells", *map(_in_words, running)]
                    live.update(Text("\n".join(lines)), refresh=True)

            for cell in runner.run(cells, look):
                ended.append(cell)
                keep(cell)
                console.print(Text(f"{len(ended)} of {len(cells)}: {_in_words(cell)}"))
    except Interrupted as interruption:
        console.print(Text(f"{interruption}: {len(ended)} of {len(cells)} cells were tried"))
        raise KeyboardInterrupt from None
    return ended


def _in_words(cell: Tally) -> str:
    counts = ", ".join(f"{cell.counts[verdict]} {verdict}" for verdict in VERDICTS if cell.counts[verdict])
    return f"{cell.name}: {f'not tried: {cell.skipped}' if cell.skipped else counts or 'begun'}"


def _print_cases(cell: Tally) -> None:
    print(f"\n{_in_words(cell)}")
    for verdict in VERDICTS:
        if verdict in cell.smallest and not cell.skipped:
            print(f"  the smallest case of {verdict}: {cell.smallest[verdict].what}")
