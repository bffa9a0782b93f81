"""`python -m jobs`: plan, run, submit, status, cancel."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ckpt.cli import run as run_command_line
from ckpt.errors import CheckpointError
from jobs import plan as plans
from jobs import status as statuses
from jobs import study as studies
from jobs import submit, targets
from jobs.errors import StudyError, TimingLogError
from jobs.paths import StudyPaths, find_study
from jobs.plan import Plan

app = App(
    name="python -m jobs",
    help="Plan, submit and follow checkpoint studies. STUDY is a TOML file, or the name of a shipped study.",
    version_flags=[],
)

ResultsOption = Annotated[Path, Parameter(name="--results")]
ClusterOption = Annotated[submit.ClusterName | None, Parameter(name="--cluster")]

_POLL_S = 0.5


@app.command
def plan(study: str) -> None:
    """Print the jobs of a study in the order of submission, and the bytes that each will write.

    Args:
        study: a TOML file, or the name of a shipped study.
    """
    planned = plans.make_plan(studies.read(studies.find(study)))
    _print_plan(planned)


@app.command
def run(
    study: str,
    *,
    results: ResultsOption = Path("results"),
    cluster: ClusterOption = None,
    dry_run: bool = False,
) -> int:
    """Plan, submit what is missing, wait, and print the comparison tables.

    Args:
        study: a TOML file, or the name of a shipped study.
        results: the directory that gets a directory for the study.
        cluster: debug (in this process), local (on this machine), slurm; by default slurm where there is one.
        dry_run: say what would be done, and do nothing.
    """
    prepared = _prepare(study, results, cluster, dry_run=dry_run)
    if prepared is None:
        return 0
    paths = prepared[0]
    code = _submit_and_follow(*prepared)
    from analysis.__main__ import print_tables  # the one look from here into analysis: the end of the pipe

    print_tables([paths.root])
    print(f"\nlogs: {paths.logs}   again: python -m analysis table {paths.root}")
    return code


@app.command(name="submit")
def submit_study(
    study: str,
    *,
    results: ResultsOption = Path("results"),
    cluster: ClusterOption = None,
    dry_run: bool = False,
) -> int:
    """Plan, and submit what is missing. With `local` and `debug` it returns when the last job has ended.

    Args:
        study: a TOML file, or the name of a shipped study.
        results: the directory that gets a directory for the study.
        cluster: debug (in this process), local (on this machine), slurm; by default slurm where there is one.
        dry_run: say what would be done, and do nothing.
    """
    prepared = _prepare(study, results, cluster, dry_run=dry_run)
    return 0 if prepared is None else _submit_and_follow(*prepared)


@app.command
def status(results: Path) -> int:
    """Print what has become of every job. Exit code 1 if one failed.

    Args:
        results: a study's directory, or one that holds a single study.
    """
    paths = find_study(results)
    found = statuses.of_study(paths, _read_plan(paths))
    _console().print(statuses.table(found))
    return 1 if any(each.state in {"failed", "interrupted", "lost"} for each in found) else 0


@app.command
def cancel(results: Path) -> None:
    """End the study's jobs that haven't ended, and no others.

    Args:
        results: a study's directory, or one that holds a single study.
    """
    ended = submit.cancel(submit.submissions(find_study(results)))
    print(f"cancelled: {', '.join(ended)}" if ended else "no job of this study is waiting or running")


@app.command(name="job")
def run_one_job(results: Path, job_id: str) -> int:
    """Run one planned job here and now, as the cluster would.

    Args:
        results: a study's directory.
        job_id: as `status` shows it.
    """
    from jobs.run import run_job

    paths = find_study(results)
    _read_plan(paths).job(job_id)
    return 0 if run_job(str(paths.root.resolve()), job_id) == "complete" else 1


def _prepare(
    study: str, results: Path, cluster: submit.ClusterName | None, *, dry_run: bool
) -> tuple[StudyPaths, Plan, submit.ClusterName] | None:
    """Everything that can be found wrong before anything is started or made; then the study's directory."""
    source = studies.find(study)
    planned = plans.make_plan(studies.read(source))
    paths = StudyPaths((results.expanduser() / planned.study.name).absolute())
    chosen = cluster or submit.default_cluster()
    if paths.plan_json.exists():
        _refuse_another_study(paths, planned)
    if chosen != "slurm":
        for name, target in planned.study.targets.items():
            largest = max(job.checkpoint_bytes for job in planned.jobs if job.target == name)
            targets.check(name, target, targets.resolve(name, target, os.environ), largest)
    if dry_run:
        _print_plan(planned)
        print(f"would go to {chosen}, with results in {paths.root}")
        return None
    try:
        paths.logs.mkdir(parents=True, exist_ok=True)
        paths.slurm.mkdir(exist_ok=True)
        paths.study_toml.write_bytes(source.read_bytes())
        partial = paths.plan_json.with_suffix(".partial")
        partial.write_text(plans.to_json(planned))
        partial.replace(paths.plan_json)
    except OSError as error:
        raise StudyError(f"can't write to the results directory {paths.root}: {error}. Try --results DIR") from error
    return paths, planned, chosen


def _refuse_another_study(paths: StudyPaths, planned: Plan) -> None:
    """Logs of one study only in one directory: jobs may be added to it, not changed or dropped."""
    before = _read_plan(paths)
    changed = [
        key for key in ("state", "trials", "targets")
        if getattr(before.study, key) != getattr(planned.study, key)
    ]  # fmt: skip
    dropped = {job.id for job in before.jobs} - {job.id for job in planned.jobs}
    if changed or dropped:
        what = f"another {' and '.join(changed)}" if changed else f"jobs that are not planned now ({min(dropped)}, …)"
        raise StudyError(
            f"{paths.root} holds results of a study {planned.study.name!r} with {what}: give the new study another "
            "name, choose another --results DIR, or move the old directory away"
        )


def _submit_and_follow(paths: StudyPaths, planned: Plan, cluster: submit.ClusterName) -> int:
    missing = statuses.missing(statuses.of_study(paths, planned))
    to_send = [job for job in planned.jobs if job.id in missing]
    console = _console()
    console.print(Text(f"{planned.study.name}: {len(to_send)} of {len(planned.jobs)} jobs to run, on {cluster}"))
    submitter = submit.Submitter(paths, cluster, planned.study.slurm)
    submitter.submit(to_send)
    found = _follow(console, paths, planned, submitter)
    failed = [each for each in found if each.state != "complete"]
    for each in failed:
        console.print(Text(f"{each.job_id}: {each.state}: {each.detail}"))
    return 1 if failed else 0


def _follow(
    console: Console, paths: StudyPaths, planned: Plan, submitter: submit.Submitter
) -> list[statuses.JobStatus]:
    """Start what has to be started here and show all jobs until they have ended.

    A terminal gets a table that changes, anything else a line for each change.
    """
    shown: dict[str, tuple[str, int]] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            more = submitter.advance()
            found = statuses.of_study(paths, planned)
            if console.is_terminal:
                live.update(statuses.table(found), refresh=True)
            for each in found if not console.is_terminal else ():
                if shown.get(each.job_id, ("not submitted", 0)) != (each.state, each.trials_done):
                    shown[each.job_id] = (each.state, each.trials_done)
                    console.print(Text(f"{each.job_id}: {each.state}, trial {each.trials_done} of {each.trials}"))
            if not more:
                return found
            time.sleep(_POLL_S)


def _read_plan(paths: StudyPaths) -> Plan:
    return plans.from_json(paths.plan_json.read_text(), str(paths.plan_json))


def _print_plan(planned: Plan) -> None:
    shown = Table(box=None, pad_edge=False)
    for heading in ("order", "job", "files ≤", "checkpoint ≤", "trials", "writes ≤"):
        shown.add_column(heading, justify="left" if heading == "job" else "right", no_wrap=True)
    for job in planned.jobs:
        sizes = f"{job.checkpoint_bytes / 1e9:.2f} GB", str(job.trials), f"{job.written_bytes / 1e9:.2f} GB"
        shown.add_row(str(job.order), job.id, f"{job.checkpoint_files:,}", *sizes)
    console = _console()
    console.print(shown)
    state = planned.jobs[0].state_bytes
    total = sum(job.written_bytes for job in planned.jobs)
    console.print(Text(
        f"{len(planned.jobs)} jobs; state {state / 1e9:.2f} GB ({state / 2**30:.2f} GiB); "
        f"writes at most {total / 1e9:.2f} GB, one checkpoint at a time"
    ))  # fmt: skip


def _console() -> Console:
    """Where people read: as wide as the terminal; wide enough for a job id where there is none."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)


if __name__ == "__main__":
    run_command_line(app, StudyError, CheckpointError, TimingLogError)
