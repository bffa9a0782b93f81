"""`python -m analysis`: tables from timing logs, and many logs in one file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import track

from analysis.across import across_tables
from analysis.cells import printable
from analysis.columns import usable_cpus
from analysis.comparison import compare
from analysis.contrast import contrast
from analysis.errors import ResultsError
from analysis.load import Entry, Results, entries, frames
from analysis.merge import write_merged
from analysis.render import Format, render
from analysis.tables import all_tables
from ckpt.cli import run
from jobs.errors import TimingLogError

app = App(
    name="python -m analysis",
    help="Compare timing logs. RESULTS is a study's directory, a directory of studies, a log, or a merged file.",
    version_flags=[],
)

StyleOption = Annotated[Format, Parameter(name="--format")]
OutputOption = Annotated[Path, Parameter(name=["--output", "-o"])]


@app.command
def table(*results: Path, style: StyleOption = "text", reference: str = "") -> int:
    """Print the comparison tables: summary, relative to a reference, phases, bandwidth, cost; targets and scales.

    Args:
        results: where the logs are.
        reference: the method that the others are set against, by its label; torch_save by default.
        style: text, markdown, csv, latex or html.
    """
    if not results:
        raise ResultsError("name at least one RESULTS: a study's directory, a log, or a merged file")
    print_tables(results, style, reference)
    return 0


@app.command
def check(*results: Path) -> int:
    """Say what is missing, wrong, not comparable or unsure in the results. Exit code 1 if there is anything.

    Args:
        results: where the logs are.
    """
    if not results:
        raise ResultsError("name at least one RESULTS: a study's directory, a log, or a merged file")
    said = []
    for comparison in compare(_frames(results)):
        where = f"{comparison.study}, target {comparison.target}"
        if comparison.apart:
            said.append(f"{where}: {comparison.apart}")
        said += [f"{where}: {method.label}: {problem}" for method in comparison.methods for problem in method.problems]
        said += [f"{where}: {doubt}" for doubt in comparison.doubts]
    print("\n".join(printable(line) for line in said) or "nothing to say against these results")
    return 1 if said else 0


@app.command(name="compare")
def compare_two(a: Path, b: Path, /, *, style: StyleOption = "text") -> int:
    """Compare two results, before and after or here and there: each method on each target, and what else differs.

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
    if not results:
        raise ResultsError("name at least one RESULTS: a study's directory, a log, or a merged file")
    found = _entries(results)
    write_merged(found, output)
    without = sum(entry.log is None for entry in found)
    print(f"{output}: {len(found) - without} logs" + (f", {without} planned jobs without one" if without else ""))
    return 0


def _entries(results: Sequence[Path]) -> list[Entry]:
    """The jobs of the results, read by all CPUs; on a terminal a bar shows how far it is."""
    return entries(list(results), workers=usable_cpus(), progress=_progress)


def _frames(results: Sequence[Path]) -> Results:
    return frames(_entries(results))


def _progress(logs: Iterable[Any], count: int) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(logs, "reading logs", count, console=console, transient=True, disable=not console.is_terminal)


def print_tables(results: Sequence[Path], style: Format = "text", reference: str = "") -> None:
    """Print the tables of each comparison in the results, then those across them."""
    comparisons = compare(_frames(results), reference)
    tables = [table for comparison in comparisons for table in all_tables(comparison)]
    print(render([*tables, *across_tables(comparisons)], style))


if __name__ == "__main__":
    run(app, ResultsError, TimingLogError)
