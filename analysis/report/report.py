"""One HTML file that needs nothing else: answer, tables and figures, faults, method, warnings, provenance, samples.

It has no script, fetches nothing (its own content security policy forbids it), and escapes all that comes from a log.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.advice.advice import advise
from analysis.advice.assumptions import Assumptions
from analysis.errors import ResultsError
from analysis.figures.figures import LOST_SHARE, Drawn, draw
from analysis.figures.svg import inline
from analysis.logs.frames import Results
from analysis.measures.caveats import in_short
from analysis.measures.comparison import Comparison, compare
from analysis.measures.setting import Setting
from analysis.tables.across import across_tables
from analysis.tables.advice import advice_tables, model
from analysis.tables.advice_words import HOW_SEPARATED, assumed, in_words
from analysis.tables.csv import no_formula
from analysis.tables.drains import drains_tables
from analysis.tables.faults import faults_table
from analysis.tables.html import html
from analysis.tables.methods import all_tables
from analysis.tables.storage import storage_tables
from analysis.tables.table import Cell, Number, Table, printable
from analysis.tables.targets import targets_tables
from ckpt.cli import unwritten
from jobs.faults.outcomes import FaultLog
from jobs.timing_log import write_atomically

MOST_EMBEDDED_BYTES = 8_000_000
"""The limit for compressed samples: a larger page would not pass as an attachment."""

MOST_JOBS = 200
"""Rows of the table of jobs; the compressed one has all."""

_LOST = "lost"
"""The name of the table that stands beside the figure of lost time."""

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class _Plot:
    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class _Section:
    """The part of the page about one setting."""

    anchor: str
    title: str
    words: list[str]
    thin: list[str]
    tables: list[Markup]
    plots: list[_Plot]


@dataclass(frozen=True, slots=True)
class _Loop:
    """What checkpoints cost the training loop of one setting: the first thing on the page."""

    title: str
    share: list[_Plot]
    tables: list[Markup]
    plots: list[_Plot]


@dataclass(frozen=True, slots=True)
class _Download:
    name: str
    uri: str
    says: str


def report(
    results: Results | None, assumptions: Assumptions, reference_target: str = "", faults: Sequence[FaultLog] = ()
) -> str:
    """Return the page as HTML. The same results give the same page.

    Args:
        results: the frames; None for a page about faults alone.
        assumptions: what the measurements can't know about the job.
        reference_target: the target that the others are compared with; the study's first by default.
        faults: what came of the studies' faults.

    Raises:
        ResultsError: if an assumption makes no sense, or there is no such target.
    """
    studies = {log.study for log in faults} | (set() if results is None else _studies(results))
    measured = {} if results is None else _measured(results, assumptions, reference_target)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.j2")
    return template.render(
        title=printable(f"Checkpoint study: {', '.join(sorted(studies))}"),
        style=Markup((_HERE / "report.css").read_text()),  # noqa: S704  # this package's own file
        is_measured=bool(measured),
        faults=[html(faults_table(log), f"faults-{number}") for number, log in enumerate(faults, 1)],
        **measured,
    )


def _studies(results: Results) -> set[str]:
    return set(results.jobs["study"].dropna().map(str))


def _measured(results: Results, assumptions: Assumptions, reference_target: str) -> dict[str, Any]:
    """Return what the page shows of the timing logs."""
    comparisons = compare(results)
    drawn, absent = draw([comparison.setting for comparison in comparisons])
    plots = [
        (figure, _Plot(inline(figure, f"plot-{number}"), printable(figure.caption)))
        for number, figure in enumerate(drawn, 1)
    ]
    downloads, not_embedded = _downloads(results)
    loops = [comparison.setting.loop for comparison in comparisons] or [None]
    return {
        "subtitle": _subtitle(results),
        "loops": list(_loops(comparisons, plots)),
        "sections": [
            _section(number, comparison, assumptions, plots) for number, comparison in enumerate(comparisons, 1)
        ],
        "targets": _of_targets(comparisons, reference_target),
        "target_plots": [plot for figure, plot in plots if figure.kind == "targets"],
        "across": [html(table, f"across-{number}") for number, table in enumerate(across_tables(comparisons), 1)],
        "across_plots": [plot for figure, plot in plots if figure.kind == "scale"],
        "assumed": list(dict.fromkeys(line for loop in loops for line in assumed(assumptions, loop))),
        "method": list(dict.fromkeys([HOW_SEPARATED, *map(model, loops)])),
        "warnings": [printable(line) for comparison in comparisons for line in _warnings(comparison.setting)],
        "absent": [printable(line) for line in (*_absent_tables(comparisons), *absent)],
        "facts": _facts(results.jobs),
        "jobs": html(_jobs(results.jobs), "jobs"),
        "downloads": downloads,
        "not_embedded": not_embedded,
    }


def write(page: str, path: Path) -> None:
    """Write the page: create the directory where it doesn't exist, and replace an older page as a whole.

    Raises:
        ResultsError: if it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page, sync=False)
    except OSError as error:
        raise ResultsError(unwritten(error, path)) from error


def _of_targets(comparisons: Sequence[Comparison], reference_target: str) -> list[Markup]:
    settings = [comparison.setting for comparison in comparisons]
    tables = [*storage_tables(settings), *targets_tables(settings, reference_target), *drains_tables(settings)]
    return [html(table, f"targets-{number}") for number, table in enumerate(tables, 1)]


def _loops(comparisons: Sequence[Comparison], drawn: Sequence[tuple[Drawn, _Plot]]) -> Iterator[_Loop]:
    for number, comparison in enumerate(comparisons, 1):
        setting = comparison.setting
        of_setting = [(figure.kind, plot) for figure, plot in drawn if figure.setting is setting]
        tables = [table for table in all_tables(comparison) if table.name == _LOST]
        if setting.loop:
            yield _Loop(
                title=printable(f"{setting}: {setting.loop}"),
                share=[plot for kind, plot in of_setting if kind == LOST_SHARE],
                tables=[html(table, f"lost-{number}-{index}") for index, table in enumerate(tables, 1)],
                plots=[plot for kind, plot in of_setting if kind != LOST_SHARE],
            )


def _section(
    number: int, comparison: Comparison, assumptions: Assumptions, drawn: Sequence[tuple[Drawn, _Plot]]
) -> _Section:
    advice = advise(comparison.setting, assumptions)
    loop = comparison.setting.loop
    elsewhere = {*in_words(advice), *advice.thin, HOW_SEPARATED, model(loop)}
    elsewhere |= {f"assumed: {line}" for line in assumed(assumptions, loop)} | {f"thin: {line}" for line in advice.thin}
    tables = [
        *all_tables(comparison),
        *(
            replace(table, notes=tuple(note for note in table.notes if note not in elsewhere))
            for table in advice_tables(advice)
        ),
    ]
    return _Section(
        anchor=f"place-{number}",
        title=printable(str(comparison.setting)),
        words=[printable(line) for line in in_words(advice)],
        thin=[printable(line) for line in advice.thin],
        tables=[
            html(table, f"table-{number}-{index}")
            for index, table in enumerate(tables, 1)
            if table.rows and table.name != _LOST
        ],
        plots=[plot for figure, plot in drawn if figure.setting is comparison.setting and not figure.setting.loop],
    )


def _subtitle(results: Results) -> str:
    jobs, complete = len(results.jobs), int((results.jobs["status"] == "complete").sum())
    first, last = (str(results.jobs["created_utc"].dropna().agg(end)) for end in ("min", "max"))
    counts = {"samples": len(results.samples), "saves beside a loop": int((results.saves["rank"] == 0).sum())}
    measured = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no samples"
    return printable(f"{complete} of {jobs} jobs complete; {measured}; jobs from {first} to {last}")


def _absent_tables(comparisons: Sequence[Comparison]) -> Iterator[str]:
    for table in (table for comparison in comparisons for table in all_tables(comparison) if not table.rows):
        yield f"no table {table.title}: {'; '.join(table.notes)}"


def _warnings(setting: Setting) -> Iterator[str]:
    if setting.apart:
        yield f"{setting.name}: {setting.apart}"
    for method in setting.methods:
        for problem in method.problems:
            yield f"{setting.name}: {method.label}: {problem}"
    for line in in_short(setting.caveats):
        yield f"{setting.name}: {line}"


def _facts(jobs: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """List what differs between machines and days, every value once."""
    named = {
        "state_model": "state", "state_digest": "digest of the state", "node_type": "kind of node", "kernel": "kernel",
        "packages": "packages", "cpu_governor": "CPU governor", "cold_loads": "cold loads",
        "durability": "durability of saves", "storage_fsync_guarantee": "what fsync guarantees",
    }  # fmt: skip
    return [
        (name, sorted({printable(str(value)) for value in jobs[column].dropna()}))
        for column, name in named.items()
        if column in jobs and jobs[column].notna().any()
    ]


def _jobs(jobs: pd.DataFrame) -> Table:
    columns = {"job_id": "job", "status": "status", "host": "host", "created_utc": "created (UTC)", "error": "error"}
    known = [column for column in columns if column in jobs]
    rows: list[tuple[Cell, ...]] = []
    for record in jobs.head(MOST_JOBS).to_dict("records"):
        texts = ["-" if pd.isna(record[column]) else str(record[column]) for column in known]
        steal = record.get("steal_share", float("nan"))
        rows.append((*texts, Number(100 * float(steal), 1)))
    more = len(jobs) - MOST_JOBS
    notes = (f"and {more} more, in jobs.csv.gz",) if more > 0 else ()
    headings = (*(columns[column] for column in known), "CPU taken by a hypervisor [%]")
    return Table("jobs", "Jobs", headings, tuple(rows), notes)


def _harmless(value: Any) -> Any:
    return no_formula(value) if isinstance(value, str) else value


def _downloads(results: Results) -> tuple[list[_Download], list[str]]:
    """Return the frames that are small enough as files inside the page, and messages on what to do about the others."""
    downloads, messages = [], []
    for name, frame in (("samples", results.samples), ("disk", results.disk), ("jobs", results.jobs)):
        words = {str(name): column.map(_harmless) for name, column in frame.items() if column.dtype.kind == "O"}
        packed = gzip.compress(frame.assign(**words).to_csv(index=False).encode("utf-8", "backslashreplace"), mtime=0)
        if len(packed) > MOST_EMBEDDED_BYTES:
            messages.append(
                f"{name}: {len(packed) / 1e6:.0f} MB compressed, too much for this page. "
                "`python -m analysis merge` puts all logs in one file."
            )
            continue
        uri = "data:application/gzip;base64," + base64.b64encode(packed).decode()
        downloads.append(_Download(f"{name}.csv.gz", uri, f"{len(frame)} rows, {len(packed) / 1e3:.0f} kB"))
    return downloads, messages
