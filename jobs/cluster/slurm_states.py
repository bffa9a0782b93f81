"""What Slurm's words for a job mean: where it is, whether it can start, how it ended; pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class QueueState:
    """The state of a job on its cluster, and why it waits, or where it runs.

    A job is `stuck` if it can't start by itself, and `unknown` if the cluster doesn't answer, or hides it from this
    user. Of a job that is gone, the detail is how it ended, where the queue still knows that.
    """

    state: Literal["waiting", "running", "gone", "stuck", "unknown"]
    detail: str = ""


GONE = QueueState("gone")

QUEUE_FORMAT = "%i|%T|%N|%r"
"""What `in_queue` reads; the reason is the last, since it may be any text."""

ENDINGS_FORMAT = "JobID,State,ExitCode,NodeList,End"
"""What `endings` reads."""

_NOT_CONSIDERED = "Slurm has not considered it yet"

_REASON_HIDDEN = "Slurm shows the reason to the job's user alone"

_STARTED = {
    "RUNNING": "",
    "COMPLETING": "its processes are being ended",
    "REVOKED": "another cluster of the federation runs it",
    "SIGNALING": "it is being sent a signal",
    "STAGE_OUT": "its files are copied from the burst buffer",
}
_INTERRUPTED = {
    "CONFIGURING": "its nodes are being started",
    "STOPPED": "its processes were stopped by a signal; scancel --signal=CONT lets them go on",
    "SUSPENDED": "it goes on when Slurm or an administrator resumes it",
}
_QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED"})
_HELD = frozenset({"SPECIAL_EXIT", "REQUEUE_HOLD", "RESV_DEL_HOLD"})
_ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "TIMEOUT",
})  # fmt: skip

# Why a pending job can't start by itself, by Slurm's reason without spaces and underscores. The first that fits counts.
_NEVER_STARTS = (
    (r"held|^JobHold", "it is held: `scontrol release {number}` lets it start"),
    (
        r"PerJob|PerNode|^QOSMin|MaxMemPerLimit|^Partition(Node|Time)Limit|^Partition(Min|Max)Nodes",
        "it asks for more than a job may have: correct the study's [slurm], `cancel` the job, and run the study again",
    ),
    (
        r"(?<!Run)Minutes|GrpWallLimit",
        "the budget is used up: it starts when the account gets more; `cancel` takes it out of the queue",
    ),
    (
        r"NotAllowed|^Invalid|^BadConstraints|NeverSatisfied|^ReservationDeleted|^DeadLine",
        "it can't start by itself: correct the study's [slurm], `cancel` the job, and run the study again",
    ),
)

_EXPLAINED = {
    "0:53": "0:53 means that its output could not be opened: the results directory is not on that node",
    "0:125": "it used more memory than it asked for: raise `mem_gb` below [slurm]",
    "0:9": "it was killed by SIGKILL, as the system does where memory runs out",
    "137:0": "it was killed by SIGKILL, as the system does where memory runs out",
}


_EXITED = frozenset({"0:0", "1:0"})
"""How jobs exit that have written the end of their log; of one that SIGKILL ended, Slurm's exit code may be 9."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended."""

    state: str
    """Slurm's word, such as COMPLETED or CANCELLED."""
    detail: str
    """All that Slurm knows, in words."""
    ended_unix_s: float = 0.0
    """When, in seconds since 1970; 0 if that isn't known."""
    exited: bool = False
    """Whether it ended by itself, and not by a signal, as far as that is known."""


def in_queue(text: str) -> dict[str, QueueState]:
    """Where jobs are, by the lines that squeue prints of them."""
    jobs = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 3)
        if len(fields) == 4:  # a reason may have several lines
            number, state, nodes, reason = fields
            jobs[number] = whereabouts(number, state, reason, nodes)
    return jobs


def whereabouts(number: str, state: str, reason: str, nodes: str) -> QueueState:
    """Where a job is, by squeue's number, state, reason and nodes of it."""
    if state in _ENDED:
        return QueueState("gone", state)
    if state in _STARTED:
        return QueueState("running", _joined(nodes, _STARTED[state] and f"{state}: {_STARTED[state]}"))
    if state in _INTERRUPTED:
        return QueueState("waiting", _joined(nodes, f"{state}: {_INTERRUPTED[state]}"))
    if state in _HELD | _QUEUED:
        return _pending(number, reason, "held" if state in _HELD else reason)
    return QueueState("running", _joined(nodes, state))  # a word of a later Slurm


def _pending(number: str, reason: str, rule: str) -> QueueState:
    plain = re.sub(r"[ _]", "", rule)
    for pattern, remedy in _NEVER_STARTS:
        if re.search(pattern, plain, re.IGNORECASE):
            return QueueState("stuck", f"{reason}: {remedy.format(number=number)}")
    return QueueState("waiting", _NOT_CONSIDERED if reason == "None" else reason)


def _joined(nodes: str, words: str) -> str:
    return ", ".join(filter(None, [nodes, words]))


def endings(text: str) -> dict[str, Ending]:
    """How jobs ended, by the lines that sacct prints of them; times in them are in seconds since 1970.

    A line may be about many elements of an array that never started.
    """
    jobs: dict[str, Ending] = {}
    for line in text.splitlines():
        numbers, state, exit_code, nodes, end = line.strip().split("|", 4)
        word = state.split(" ", 1)[0]
        if word in _ENDED:
            ended_unix_s = float(end) if end.isdigit() else 0.0
            ending = Ending(word, _in_words(state, exit_code, nodes), ended_unix_s, exit_code in _EXITED)
            jobs |= dict.fromkeys(elements(numbers), ending)
    return jobs


def by_accounting(text: str) -> dict[str, QueueState]:
    """Where jobs are, by the lines that sacct prints of them: for whom the queue doesn't show them."""
    jobs: dict[str, QueueState] = {}
    for line in text.splitlines():
        numbers, state, _, nodes, _ = line.strip().split("|", 4)
        where = whereabouts(numbers, state.split(" ", 1)[0], _REASON_HIDDEN, nodes)
        jobs |= dict.fromkeys(elements(numbers), where)
    return jobs


def _in_words(state: str, exit_code: str, nodes: str) -> str:
    if nodes in {"", "None assigned"}:
        return f"{state}, before it started"
    why = _EXPLAINED.get("0:125" if state == "OUT_OF_MEMORY" else exit_code, "") if state != "COMPLETED" else ""
    return f"{state}, exit code {exit_code}, on {nodes}" + (f": {why}" if why else "")


def elements(numbers: str) -> Iterator[str]:
    """The jobs that a number stands for: `9_[1-3,7%1]` are four elements of an array, at most one at a time."""
    array, bracket, ranges = numbers.partition("_[")
    if not bracket:
        yield numbers
        return
    for part in ranges.partition("]")[0].partition("%")[0].split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part)
        if bounds:  # otherwise the list was cut off
            first, last, step = int(bounds[1]), int(bounds[2] or bounds[1]), int(bounds[3] or 1)
            for index in range(first, last + 1, step):
                yield f"{array}_{index}"


def arrays(numbers: Iterable[str]) -> list[str]:
    """The numbers of the arrays, and of single jobs, that jobs belong to; each once."""
    return list(dict.fromkeys(number.partition("_")[0] for number in numbers))
