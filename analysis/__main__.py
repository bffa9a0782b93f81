"""`python -m analysis`: tables, figures, a report, advice and projections from timing logs; merged logs; faults."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import track

from analysis.advice.advice import advise
from analysis.advice.assumptions import USUAL, Assumptions
from analysis.advice.levels import advise_levels
from analysis.advice.projection import Wanted, project
from analysis.errors import NoTimingLogsError, ResultsError
from analysis.logs.columns import usable_cpus
from analysis.logs.faults import fault_logs, required_fault_logs
from analysis.logs.frames import Entry, Results, frames
from analysis.logs.load import entries
from analysis.logs.merged import write_merged
from analysis.measures.comparison import compare
from analysis.measures.setting import settings
from analysis.selftest import verdicts
from analysis.tables.across import across_tables
from analysis.tables.advice import advice_tables
from analysis.tables.before_after import contrast
from analysis.tables.check import grouped, in_full, remarks
from analysis.tables.drains import drains_tables
from analysis.tables.faults import faults_table
from analysis.tables.levels import levels_table
from analysis.tables.methods import all_tables
from analysis.tables.projection import projection_table
from analysis.tables.render import Format, render
from analysis.tables.storage import storage_tables
from analysis.tables.table import printable
from analysis.tables.targets import targets_tables
from ckpt.cli import run
from jobs.faults.outcomes import FILE, FaultLog
from jobs.timing_log import TimingLogError

app = App(
    name="python -m analysis",
    help="Compare timing logs. RESULTS is a study's directory, a directory of studies, a log, or a merged file.",
    version_flags=[],
)

StyleOption = Annotated[Format, Parameter(name="--format")]
AssumptionOptions = Annotated[Assumptions, Parameter(name="*")]
OutputOption = Annotated[Path, Parameter(name=["--output", "-o"])]


@app.command
def table(*results: Path, style: StyleOption = "text", reference: str = "", reference_target: str = "") -> int:
    """Print the tables: targets; per target summary, ratios, phases, bandwidth, cost, ranks; across scales.

    Of a study with training loops, per target and kind of step: lost time, its parts, what saves take beside, ranks.

    Args:
        results: where the logs are.
        reference: the method that the others are set against, by its label; torch_save by default.
        reference_target: the target that the others are set against; the study's first by default.
        style: text, markdown, csv, latex or html.
    """
    print_tables(results, style, reference, reference_target)
    return 0


@app.command
def check(*results: Path, all_: Annotated[bool, Parameter(name="--all")] = False) -> int:
    """Say what is missing, wrong, not comparable or unsure in the results. Exit code 1 if there is anything.

    Args:
        results: where the logs are.
        all_: write everything on a line, instead of two lines for everything of a kind.
    """
    listed = remarks(settings(_frames(results)))
    lines = in_full(listed) if all_ else grouped(listed)
    print("\n".join(lines) or "no problems in these results")
    return 1 if listed else 0


@app.command
def selftest(results: Path) -> int:
    """Judge the results of the self-test: known costs, and known faults. Exit code 1 if a verdict is FAILED.

    A verdict is `unsure` where a machine was too busy to measure the known lost times of a training loop.

    Args:
        results: the directory of the study, as `python -m jobs selftest` or `python -m jobs run selftest` left it.
    """
    judged = verdicts(_frames([results]))
    for verdict in judged:
        print(printable(f"{verdict.word:>6}  {verdict.what}"))
    return 1 if any(verdict.passed is False for verdict in judged) else 0


@app.command(name="compare")
def compare_two(a: Path, b: Path, /, *, style: StyleOption = "text") -> int:
    """Compare two results, before and after or on two machines: every method on every target, and what else differs.

    Args:
        a: a study's directory, a directory of studies, a log, or a merged file.
        b: another.
        style: text, markdown, csv, latex or html.
    """
    names = str(a), str(b)
    print(render(contrast(_frames([a]), _frames([b]), names), style))
    return 0


@app.command
def merge(*results: Path, output: OutputOption) -> int:
    """Merge the logs into one HDF5 file, which `table` takes as well.

    Args:
        results: where the logs are; merged files too.
        output: the file to write.
    """
    jobs = _entries(results)
    write_merged(jobs, output)
    without = sum(job.log is None for job in jobs)
    print(f"{output}: {len(jobs) - without} logs" + (f", {without} planned jobs without one" if without else ""))
    return 0


@app.command(name="advise")
def advise_(
    *results: Path,
    assumptions: AssumptionOptions = USUAL,
    local_share: float | None = None,
    style: StyleOption = "text",
) -> int:
    """Say what to use where, how often to checkpoint, and what share of the machine that costs.

    Args:
        results: where the logs are.
        assumptions: what the measurements can't know about the job.
        local_share: the share of the failures that a checkpoint on node-local storage survives, such as 0.9: with it,
            two levels of checkpoints are compared with one.
        style: text, markdown, csv, latex or html.
    """
    studied = settings(_frames(results))
    tables = [table for setting in studied for table in advice_tables(advise(setting, assumptions))]
    if local_share is not None:
        tables += [levels_table(advice) for advice in advise_levels(studied, assumptions, local_share)]
    print(render(tables, style))
    return 0


@app.command(name="project")
def project_(
    *results: Path,
    parameters: float,
    nodes: int,
    bytes_per_parameter: float = 14,
    shared_limit_gbps: float | None = None,
    style: StyleOption = "text",
) -> int:
    """Say how long a bigger state on more nodes would take, as a range.

    Args:
        results: where the logs are.
        parameters: of the model, such as 405e9.
        nodes: that save and load it together.
        bytes_per_parameter: 14 for training in 16 bit with Adam (weights, their 32-bit copy, two moments).
        shared_limit_gbps: what the shared filesystem can do in all, in GB/s (1e9 bytes).
        style: text, markdown, csv, latex or html.
    """
    wanted = Wanted(parameters, bytes_per_parameter, nodes, shared_limit_gbps)
    wanted.check()
    studied = settings(_frames(results))
    # Where there is nothing but training loops, the error tells why these are not projected.
    alone = [setting for setting in studied if setting.loop is None] or studied
    print(render([projection_table(project(setting, wanted)) for setting in alone], style))
    for setting in studied:
        if setting.loop is not None:
            print(printable(f"not projected, for a lost time depends on its loop: {setting}"), file=sys.stderr)
    return 0


@app.command(name="faults")
def faults_(*results: Path, style: StyleOption = "text") -> int:
    """Print what methods survive, by method and fault: right, detected or silent; and the smallest bad cases.

    Args:
        results: directories of studies whose faults `python -m jobs faults` tried.
        style: text, markdown, csv, latex or html.
    """
    console = Console()
    tables = [faults_table(log) for log in required_fault_logs(results)]
    print(render(tables, style, color=console.color_system is not None and not console.no_color))
    return 0


@app.command(name="figures")
def figures_(*results: Path, output: OutputOption) -> int:
    """Draw every figure that there is data for, as SVG, PDF and PNG.

    Args:
        results: where the logs are.
        output: the directory to write them to.
    """
    from analysis.figures import figures  # only here: matplotlib takes a second to start

    drawn, absent = figures.draw(settings(_frames(results)))
    figures.write(drawn, output)
    for line in absent:
        print(printable(line))
    print(f"{output}: {len(drawn)} figures, each as {', '.join(figures.FORMATS)}")
    return 0


@app.command(name="report")
def report_(
    *results: Path,
    assumptions: AssumptionOptions = USUAL,
    reference_target: str = "",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Write one HTML file: answer, tables, figures, method, warnings, provenance; samples, disk and jobs as CSV.

    Of a study whose faults were tried, it has their table too; without timing logs, it has that alone.

    Args:
        results: where the logs are.
        assumptions: what the measurements can't know about the job.
        reference_target: the target that the others are set against; the study's first by default.
        output: the file to write; by default report/report.html in the study's directory.
    """
    from analysis.report import report  # only here: matplotlib takes a second to start

    assumptions.check()
    loaded, faults = _frames_and_faults(results)
    path = output or _usual_report(results)
    report.write(report.report(loaded, assumptions, reference_target, faults), path)
    print(path)
    return 0


def _usual_report(results: Sequence[Path]) -> Path:
    if len(results) == 1 and ((results[0] / "logs").is_dir() or (results[0] / FILE).is_file()):
        return results[0] / "report" / "report.html"
    raise ResultsError(
        "RESULTS is not one study's directory, so the report has no default path: name the file with -o FILE"
    )


def _entries(results: Sequence[Path]) -> list[Entry]:
    """Read the jobs of the results with all CPUs; a terminal shows the progress as a bar."""
    if not results:
        raise ResultsError("name at least one RESULTS: a study's directory, a log, or a merged file")
    return entries(list(results), workers=usable_cpus(), progress=_progress)


def _frames(results: Sequence[Path]) -> Results:
    return frames(_entries(results))


def _frames_and_faults(results: Sequence[Path]) -> tuple[Results | None, list[FaultLog]]:
    """Read what a report is about: timing logs, faults, or both."""
    try:
        loaded = _frames(results)
    except NoTimingLogsError:
        if faults := fault_logs(results):
            return None, faults
        raise
    return loaded, fault_logs(results)


def _progress(logs: Iterable[Any], count: int) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(logs, "reading logs", count, console=console, transient=True, disable=not console.is_terminal)


def print_tables(
    results: Sequence[Path], style: Format = "text", reference: str = "", reference_target: str = ""
) -> None:
    """Print what the targets are and how fast, the tables of every comparison in the results, then those across."""
    comparisons = compare(_frames(results), reference)
    studied = [comparison.setting for comparison in comparisons]
    targets = [*storage_tables(studied), *targets_tables(studied, reference_target), *drains_tables(studied)]
    tables = [table for comparison in comparisons for table in all_tables(comparison)]
    print(render([*targets, *tables, *across_tables(comparisons)], style))


if __name__ == "__main__":
    run(app, ResultsError, TimingLogError)
