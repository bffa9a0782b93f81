"""`python -m jobs`: plan, run, check, prepare, submit, status, cancel, selftest, faults, job."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ckpt.cli import run as run_command_line
from ckpt.cli import unwritten
from ckpt.disk.durable import write_atomically
from ckpt.errors import CheckpointError
from jobs import check as preflight
from jobs import findings, plan_table, timing_log
from jobs import status as statuses
from jobs.analysing import analyse
from jobs.cluster import queue_state, slurm, submit
from jobs.cluster.arrays import batches, from_environment
from jobs.cluster.choice import ClusterName, default_cluster
from jobs.cluster.local import refuse_here
from jobs.cluster.one_job import OneJobSender
from jobs.cluster.submissions import submissions
from jobs.errors import StudyError, TimingLogError
from jobs.faults_command import faults
from jobs.follow import follow, submit_and_follow
from jobs.hanging import LOOK_S, bounded, must_answer, tell
from jobs.job_status import BAD
from jobs.node import targets
from jobs.paths import StudyPaths, find_study
from jobs.plan import plan as plans
from jobs.plan import study_file
from jobs.plan.plan import Plan
from jobs.selftest import STUDIES, study_text
from jobs.terminal import wide_console

app = App(
    name="python -m jobs",
    help="Plan, submit and follow checkpoint studies. STUDY is a TOML file, or the name of a shipped study.",
    version_flags=[],
)
app.command(faults)

StudyArgument = Annotated[str, Parameter(help="a TOML file, or the name of a shipped study")]
ResultsOption = Annotated[
    Path, Parameter(name="--results", help="the directory in which the study gets a directory of its own")
]
ClusterOption = Annotated[
    ClusterName | None,
    Parameter(
        name="--cluster",
        help="debug (in this process), local (on this machine), slurm; by default slurm where it is installed",
    ),
]
OneJobOption = Annotated[
    bool, Parameter(name="--in-one-job", negative="", help="on Slurm, one job that runs all jobs one after the other")
]
IdsOption = Annotated[bool, Parameter(help="for scripts, print one line per job: id, nodes, tasks per node")]
TargetOption = Annotated[Path, Parameter(help="the directory to write to, as the jobs see it")]
DryRunOption = Annotated[bool, Parameter(help="show what would be done, and do nothing")]


@app.command
def plan(study: StudyArgument, *, ids: IdsOption = False) -> None:
    """Print the jobs of a study in the order of submission, and what they will take."""
    planned = plans.make_plan(study_file.read(study_file.find(study)))
    if ids:
        print("\n".join(f"{job.id} {job.nodes} {job.scale.processes_per_node}" for job in planned.jobs))
    else:
        wide_console().print(plan_table.table(planned))


@app.command
def run(
    study: StudyArgument,
    *,
    results: ResultsOption = Path("results"),
    cluster: ClusterOption = None,
    in_one_job: OneJobOption = False,
    dry_run: DryRunOption = False,
) -> int:
    """Plan, submit what is missing, wait, and print the comparison tables. Exit code 1 if a job needs attention."""
    prepared = _prepare(study, results, cluster, dry_run=dry_run, in_one_job=in_one_job)
    if prepared is None:
        return 0
    paths = prepared[0]
    code = submit_and_follow(*prepared, wait=True, in_one_job=in_one_job)
    analysed = analyse("table", paths)
    print(f"\nlogs: {paths.logs}   again: python -m analysis table {paths.root}")
    return code or analysed


@app.command
def check(study: StudyArgument, *, results: ResultsOption = Path("results"), cluster: ClusterOption = None) -> int:
    """Check the study, the cluster and the targets before any node-hour is spent. Exit code 1 if there is a problem."""
    paths, planned, _ = _read_study(study, results)
    checks = list(preflight.findings(paths, planned, cluster or default_cluster()))
    print(findings.shown(checks))
    return 1 if any(finding.level == "problem" for finding in checks) else 0


@app.command
def prepare(study: StudyArgument, *, results: ResultsOption = Path("results")) -> None:
    """Make a study's directory and print its path: for scripts that run the jobs themselves with `job`."""
    paths, planned, source = _read_study(study, results)
    _make_directory(paths, planned, source)
    print(paths.root)


@app.command(name="submit")
def submit_study(
    study: StudyArgument,
    *,
    results: ResultsOption = Path("results"),
    cluster: ClusterOption = None,
    in_one_job: OneJobOption = False,
    dry_run: DryRunOption = False,
) -> int:
    """Plan, and submit what is missing. With `local` and `debug` it returns when the last job has ended."""
    prepared = _prepare(study, results, cluster, dry_run=dry_run, in_one_job=in_one_job)
    return 0 if prepared is None else submit_and_follow(*prepared, wait=False, in_one_job=in_one_job)


@app.command
def status(results: Path, *, as_json: Annotated[bool, Parameter(name="--json")] = False, watch: bool = False) -> int:
    """Print the state of every job. Exit code 1 if one needs attention.

    Args:
        results: a study's directory, or one that holds a single study.
        as_json: print every job with all that is known, for scripts.
        watch: on a terminal, refresh the table until the last job has ended.
    """
    paths = bounded(results, lambda: find_study(results))
    planned = bounded(results, lambda: _read_plan(paths))
    jobs = statuses.of_study(paths, planned)
    console = wide_console()
    if as_json:
        print(json.dumps([asdict(job) for job in jobs], indent=1))
    elif watch and console.is_terminal:
        jobs = follow(console, paths, planned)
        console.print(statuses.table(jobs))
    else:
        console.print(statuses.table(jobs))
    return 1 if any(job.state in BAD for job in jobs) else 0


@app.command
def cancel(results: Path) -> None:
    """End the study's jobs that haven't ended, and no others.

    Args:
        results: a study's directory, or one that holds a single study.
    """
    cancelled = queue_state.cancel(submissions(find_study(results)))
    print(f"cancelled: {', '.join(cancelled)}" if cancelled else "no job of this study is waiting or running")


@app.command
def selftest(*, target: TargetOption, results: ResultsOption = Path("results"), cluster: ClusterOption = None) -> int:
    """Check the measurement itself: known costs must be measured, and known faults caught. About eight minutes."""
    codes = []
    for study in STUDIES:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "selftest.toml"
            file.write_text(study_text(study, target.absolute()), encoding="utf-8")
            prepared = _prepare(str(file), results, cluster, dry_run=False)
        assert prepared is not None  # it is no dry run
        submit_and_follow(*prepared, wait=True)
        codes.append(analyse("selftest", prepared[0]))
    return max(codes)


@app.command(name="job")
def run_one_job(
    study: str,
    job_id: str = "",
    *,
    strategy: str = "",
    target: str = "",
    round_number: Annotated[int, Parameter(name="--round")] = 1,
    scale: str = "",
    results: ResultsOption = Path("results"),
) -> int:
    """Run one job of a study here and now, as the cluster would: the body of slurm/*.sbatch. Exit code 75: interrupted.

    Args:
        study: a TOML file, the name of a shipped study, or the directory of a study that has been planned.
        job_id: as `plan` shows it; or name the job by the options below.
        strategy: its label, as `plan` shows it in the job id.
        target: its target.
        round_number: its round.
        scale: its nodes and tasks per node, such as 2x4, where the study has several.
        results: the directory in which the study gets a directory of its own.
    """
    from jobs.node.run import run_job

    if (Path(study) / "plan.json").is_file():
        paths = StudyPaths(Path(study).absolute())
        planned = _read_plan(paths)
    else:
        paths, planned, source = _read_study(study, results)
        _make_directory(paths, planned, source)
    job = planned.job(job_id) if job_id else planned.find(strategy, target, round_number, scale)
    status = run_job(str(paths.root), job.id)
    if status == timing_log.INTERRUPTED:
        return os.EX_TEMPFAIL
    return 0 if status in timing_log.GOOD else 1


def _read_study(study: str, results: Path) -> tuple[StudyPaths, Plan, Path]:
    """Where the study's results go, its plan, and the file it is written in; makes nothing."""
    source = study_file.find(study)
    planned = plans.make_plan(study_file.read(source))
    paths = StudyPaths((results.expanduser() / planned.study.name).absolute())
    must_answer(paths.root)
    if paths.plan_json.exists():
        _refuse_another_study(paths, planned)
    return paths, planned, source


def _make_directory(paths: StudyPaths, planned: Plan, source: Path) -> None:
    try:
        paths.logs.mkdir(parents=True, exist_ok=True)
        paths.slurm.mkdir(exist_ok=True)
        for path, content in ((paths.study_toml, source.read_text()), (paths.plan_json, plans.to_json(planned))):
            write_atomically(path, content, sync=False)
    except OSError as error:
        raise StudyError(
            f"{unwritten(error, f'to the results directory {paths.root}')}, or try --results DIR"
        ) from error


def _prepare(
    study: str, results: Path, cluster: ClusterName | None, *, dry_run: bool, in_one_job: bool = False
) -> tuple[StudyPaths, Plan, ClusterName] | None:
    """Check what can be checked before anything starts, then make the study's directory; None after a dry run."""
    paths, planned, source = _read_study(study, results)
    chosen = cluster or default_cluster()
    if in_one_job and chosen != "slurm":
        raise StudyError(f"--in-one-job is for Slurm, and this study would go to {chosen}: leave it out")
    if chosen != "slurm":
        for name, target in planned.study.targets.items():
            directory = targets.resolve(name, target, os.environ)
            targets.must_answer(name, directory, LOOK_S, tell)
            targets.check(name, target, directory, *planned.largest(name))
        for job in planned.jobs:
            refuse_here(job, chosen)
    if dry_run:
        wide_console().print(plan_table.table(planned))
        if in_one_job:
            print("", *OneJobSender(paths, planned, planned.jobs).scripts(), sep="\n")
        elif chosen == "slurm":
            for batch in batches(planned.study, planned.jobs, slurm.largest_array(), from_environment(os.environ)):
                print(f"\n--- sbatch script of {len(batch.jobs)} jobs ({batch.why})")
                print(submit.script(paths, planned, batch))
        print(f"would go to {chosen}, with results in {paths.root}")
        return None
    _make_directory(paths, planned, source)
    return paths, planned, chosen


def _refuse_another_study(paths: StudyPaths, planned: Plan) -> None:
    """Refuse a directory that has another study's logs: jobs may be added to a study, not changed or dropped."""
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


def _read_plan(paths: StudyPaths) -> Plan:
    return plans.from_json(paths.plan_json.read_text(errors="replace"), str(paths.plan_json))


if __name__ == "__main__":
    run_command_line(app, StudyError, CheckpointError, TimingLogError)
