"""The status of one job, by its log, its state in the queue and how Slurm says that it ended; pure but for stderr."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs import timing_log
from jobs.cluster.slurm_states import Ending, QueueState
from jobs.cluster.submissions import Submission
from jobs.plan.plan import Job
from jobs.timing_log import Progress

State = Literal[
    "not submitted", "waiting", "running", "ending", "unknown", "stuck", "complete", "skipped", "failed", "interrupted",
    "cancelled", "lost",
]  # fmt: skip

ON_THEIR_WAY = frozenset({"waiting", "running", "ending", "unknown"})
"""States that change without anybody's help."""

BAD = frozenset({"failed", "interrupted", "cancelled", "lost", "stuck"})
"""States that need attention."""

_FILES_LAG_S = 90
"""How much later than on the node a file may appear here: NFS keeps what it knows of a directory for up to 60 s."""

_QUIET_S = 600.0
_QUIET_TRIALS = 10
"""A running job whose log is older than this, and than so many of its longest trial, may hang."""

_MEMORY = re.compile(r"oom.kill|out.of.memory|exceeded job memory", re.IGNORECASE)
"""What slurmstepd and srun print when a job took more memory than it asked for."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job: its state, and what a person wants to know about it."""

    job_id: str
    state: State
    detail: str
    """Why it waits, where it runs, or what went wrong."""
    trials_done: int
    trials: int
    last_bandwidth_gbps: float | None
    """Of the last operation, in GB/s of the state's logical size."""
    log: str
    """Path of its timing log, whether it is there yet or not."""
    part: str = "trial"
    """What `trials` counts: `trial`, or `block` in a job with a training loop."""


def derive(
    job: Job,
    reached: Progress | None,
    submission: Submission | None,
    where: QueueState | None,
    log_path: str,
    *,
    ending: Ending | None = None,
    ended_s: float = 0.0,
    quiet_s: float = 0.0,
    output: Path | None = None,
) -> JobStatus:
    """The status of a job by its log, its state in the queue, and how it ended `ended_s` seconds ago.

    Its log was last written `quiet_s` seconds ago. `output` is the file with what it printed as errors.
    """
    done, last = (reached.trials_done, reached.last_bandwidth_gbps) if reached else (0, None)

    def status(state: State, detail: str) -> JobStatus:
        return JobStatus(job.id, state, detail, done, job.parts, last, log_path, job.part)

    if reached is not None and reached.status == timing_log.COMPLETE:
        return status("complete", f"code {reached.code_changed}" if reached.code_changed else "")
    if where is not None and where.state == "unknown" and reached and reached.status != timing_log.RUNNING:
        log = f"its log is {reached.status}" + (f": {reached.error}" if reached.error else "")
        return status("unknown", f"{log}; whether it runs again is not known: {where.detail}")
    if where is not None and where.state != "gone":
        silence = _silence(reached, quiet_s) if where.state == "running" and reached else ""
        return status(where.state, where.detail + silence)
    state, detail = _gone(reached, submission, ending, ended_s)
    return status(state, detail + (_last_words(output) if state == "lost" else ""))


def _gone(
    reached: Progress | None, submission: Submission | None, ending: Ending | None, ended_s: float
) -> tuple[State, str]:
    """The state of a job that is in no queue, and what there is to say about it."""
    how = f" ({ending.detail})" if ending else ""
    for state in ("skipped", "failed"):
        if reached and reached.status == state:
            return state, reached.error
    if reached and reached.status == timing_log.INTERRUPTED:
        return "interrupted", reached.error + how
    if submission is None:
        return "not submitted", ""
    if ending and ending.state == "CANCELLED":
        return "cancelled", ending.detail
    has_exited = ending and (ending.state == "COMPLETED" or (ending.state == "FAILED" and ending.exited))
    if has_exited and ended_s < _FILES_LAG_S:
        return "ending", f"the job ended{how}, and the end of its log is not visible here yet"
    return "lost", f"the job ended{how} and {'its log is not finished' if reached else 'it left no log'}"


def _silence(reached: Progress, quiet_s: float) -> str:
    """How long a job has not written its log, if that is long for it; in steps of ten minutes."""
    if reached.status != timing_log.RUNNING or quiet_s < max(_QUIET_S, _QUIET_TRIALS * reached.longest_trial_s):
        return ""
    return f"; no news for {quiet_s // 600 * 10:.0f} min"


def _last_words(output: Path | None) -> str:
    """What a job last printed, if possible not by srun: the exception before it says more, unless memory ran out."""
    try:
        text = output.read_text(errors="replace") if output else ""
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    by_slurm = [line for line in lines if line.startswith(("srun:", "slurmstepd"))]
    if memory := [line for line in by_slurm if _MEMORY.search(line)]:
        return f"; it used more memory than it asked for, raise `mem_gb` below [slurm]: {memory[0]}"
    last = ([line for line in lines if line not in by_slurm] or lines or [""])[-1]
    return f"; the last line of its stderr is: {last}" if last else ""
