"""The commands that a study runs around its trials, outside every clock: before them, and between save and load."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from jobs.errors import TargetError
from jobs.node import received
from jobs.node.context import JobContext
from jobs.node.recorder import Recorder, journal
from jobs.plan import commands
from jobs.timing_log import Hook

_LONGEST_OUTPUT = 2000
"""Bytes of a command's output that are kept, from its end."""

_TOO_LONG, _NOT_STARTED = 124, 127


def run_hooks(
    when: Literal["prepare", "between"], directory: Path, context: JobContext, recorder: Recorder, trial: int = -1
) -> None:
    """Run a target's commands, on all processes that have to; every process of the job calls it.

    `prepare` runs where the directory was made, on the job's first rank, or on each node's if it is node-local; in the
    directory. `between` runs on each node's first rank, in `/`, so that a filesystem can be mounted anew.

    Raises:
        TargetError: on all processes, if one command failed; the rest of that process's commands don't run.
    """
    target, groups = context.target, context.groups
    asked = target.prepare if when == "prepare" else target.between
    if not asked:
        return
    groups.world.barrier()  # `between`: all have ended their save
    rows: list[Hook] = []
    problem = ""
    if groups.is_leader if when == "prepare" else groups.node.rank == 0:
        values = {**target.axes, commands.DIRECTORY: directory, commands.NODE: groups.process.node}
        for command in asked:
            row = _run(commands.words(command, values), when, directory, context, trial)
            rows.append(replace(row, study_command=commands.filled(command, target.axes)))
            if row.exit_code:
                problem = _problem(row)
                break
    sent = groups.world.gather((problem, [asdict(row) for row in rows]))
    problems = []
    for reason, hooks in groups.world.read(sent, received.pair(received.text, received.rows(Hook))):
        recorder.hooks(hooks)
        problems += [reason] if reason else []
        for hook in hooks if when == "prepare" else ():
            journal(context.job.id, f"rank {hook.rank}: {hook.command} ({hook.duration_s:.2f} s)")
    failed = groups.world.broadcast(problems[0] if problems else "", received.text)
    if failed:
        recorder.flush()
        raise TargetError(failed, f"try it there by hand, and correct `{when}` below [targets.{context.job.target}]")


def _problem(row: Hook) -> str:
    what = {_TOO_LONG: "took too long and was stopped", _NOT_STARTED: "could not be started"}
    ending = what.get(row.exit_code, f"ended with exit code {row.exit_code}")
    printed = " / ".join(row.output.split("\n")[-5:]) or "it printed nothing"
    return f"the command {row.command!r} ({row.when}) {ending} on {platform.node()}, rank {row.rank} ({printed})"


def _run(words: list[str], when: str, directory: Path, context: JobContext, trial: int) -> Hook:
    start_s = context.clock()
    with tempfile.TemporaryFile() as printed:
        where = directory if when == "prepare" else Path("/")
        exit_code = _exit_code(words, where, printed.fileno(), context.patience_s)
        end_s = context.clock()
        if exit_code == _NOT_STARTED and not printed.seek(0, os.SEEK_END):
            printed.write(f"{words[0]}: no such program".encode())
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _LONGEST_OUTPUT))
        output = printed.read().decode(errors="replace").strip()
    return Hook(
        when=when,
        trial=trial,
        command=shlex.join(words),
        start_s=start_s,
        duration_s=end_s - start_s,
        exit_code=exit_code,
        output=output,
        rank=context.groups.process.rank,
    )


def _exit_code(words: list[str], where: Path, output: int, timeout_s: float) -> int:
    """Run a command to its end, or stop it and what it has started; signals count as shells have it: 128 and more."""
    try:
        process = subprocess.Popen(
            words, cwd=where, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError:
        return _NOT_STARTED
    try:
        code = process.wait(timeout_s)
        return code if code >= 0 else 128 - code
    except subprocess.TimeoutExpired:
        return _TOO_LONG
    finally:  # also where the job is interrupted
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
