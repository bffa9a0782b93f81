"""What a timing log holds: the rows of its tables, its header, and the values of its status."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from jobs.timing_log.column import column
from jobs.timing_log.loop_rows import Block, LoopSave, Step

SCHEMA = "ckpt-timing-log"
SCHEMA_VERSION = 1

RUNNING, COMPLETE, FAILED, INTERRUPTED, SKIPPED = "running", "complete", "failed", "interrupted", "skipped"
"""The values of a log's `status`. A job is skipped where an optional library is missing; its error says which."""

GOOD = frozenset({COMPLETE, SKIPPED})
"""The values of a job that needs no attention. A skipped job is tried again: its library may be installed by then."""

NOT_APPLICABLE = "n/a"

SAVE, LOAD, LOAD_INTO = "save", "load", "load into"
"""The values of a sample's `operation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured phase of one trial on one rank."""

    trial: int = column("1", "number of the trial in its job, from 0")
    warmup: bool = column("1", "whether the trial only warms up; kept, but left out of every statistic")
    rank: int = column("1", "rank that measured it, from 0")
    operation: str = column("1", "save, load, or load into (memory that existed, and was filled)")
    phase: str = column("1", "call, sync, commit or total")
    start_s: float = column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = column("s", "duration, by a monotonic clock")
    state_bytes: int = column("byte", "logical size of this rank's share of the state")
    durability: str = column(
        "1", "what is safe when the phase ends: returned, synced, committed (proven) or committed-unproven"
    )
    cache: str = column(
        "1", "before a load: cold (comes from the device), client-cold (not in this node's cache), cold-unproven, warm"
    )
    resident_fraction: float = column("1", "share of the checkpoint's pages in the page cache before a load")
    cpu_s: float = column("s", "CPU time of the process, user and system, of a total; NaN for a part")
    peak_rss_bytes: int = column("byte", "largest resident set during a total; -1 for a part")
    valid: bool = column("1", "whether the sample may be used")
    reason: str = column("1", "why it may not; empty where it may")
    user_s: float = column("s", "CPU time in user mode, of a total", default=math.nan)
    system_s: float = column("s", "CPU time in the kernel, of a total", default=math.nan)
    peak_extra_bytes: int = column("byte", "largest resident set above what was resident before", default=-1)
    device_read_bytes: int = column("byte", "bytes that the process had fetched from storage", default=-1)
    device_write_bytes: int = column("byte", "bytes that the process caused to be sent to storage", default=-1)
    read_calls: int = column("1", "read system calls", default=-1)
    write_calls: int = column("1", "write system calls", default=-1)
    minor_faults: int = column("1", "page faults without I/O", default=-1)
    major_faults: int = column("1", "page faults with I/O", default=-1)
    dirty_pages: int = column("1", "pages of a saved checkpoint not yet on storage; -1 unknown", default=-1)
    load_number: int = column(
        "1", "which load of its trial: 0 cold, 1 warm, 2 into memory that existed; -1 for a save", default=-1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """What a trial's checkpoint took on disk."""

    trial: int = column("1", "number of the trial in its job, from 0")
    file_count: int = column("1", "regular files")
    apparent_bytes: int = column("byte", "sum of the files' sizes")
    allocated_bytes: int = column("byte", "blocks that the filesystem took for them")
    small_file_count: int = column("1", "files under 1 MiB")
    largest_file_bytes: int = column("byte", "size of the largest file")
    directory_count: int = column("1", "directories, the checkpoint's own included; -1 unknown", default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What the target, or the memory, did by itself, in the same job."""

    when: str = column("1", "before the first trial or after the last")
    operation: str = column("1", "write, read or copy (of memory)")
    size_bytes: int = column("byte", "bytes moved")
    start_s: float = column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = column("s", "duration; a write until it was synced")
    direct: bool = column("1", "whether it went past this node's page cache, as far as that can be seen")
    rank: int = column("1", "rank that measured it, at the same time as all others", default=0)
    buffered: bool = column("1", "whether it was meant to go through the page cache", default=False)
    resident_fraction: float = column(
        "1", "share of the files' pages in the page cache before a read", default=math.nan
    )
    files: int = column("1", "files per rank, written or read at the same time", default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process of the job."""

    rank: int = column("1", "its number, from 0; the samples' `rank`")
    host: str = column("1", "where it ran")
    node: int = column("1", "number of its node in the job, from 0")
    process_id: int = column("1", "its number on its node")
    clock_uncertainty_s: float = column("s", "how far its clock may be from the first rank's, at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Small files on the target: what one rank did with them, by itself or at the same time as the other ranks."""

    when: str = column("1", "before the first trial")
    operation: str = column("1", "mkdir, create, stat, read, unlink or rmdir")
    count: int = column("1", "files, or directories, that it was done to, one after the other")
    size_bytes: int = column("byte", "size of each file; 0 for directories")
    start_s: float = column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = column("s", "duration of all of them; nothing is synced")
    rank: int = column("1", "rank that did it, from 0")
    made_by: int = column("1", "rank that had made the files: another node's client can't have them cached")
    ranks: int = column("1", "how many ranks did the same at the same time, each in a directory of its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A command of the study that ran outside every clock."""

    when: str = column("1", "prepare (before the trials) or between (a save and its loads)")
    trial: int = column("1", "number of the trial in its job, from 0; -1 for prepare")
    command: str = column("1", "the command as it ran")
    start_s: float = column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = column("s", "duration")
    exit_code: int = column("1", "exit code: 0 if it succeeded, 124 if it ran too long, 127 if it can't be started")
    output: str = column("1", "the end of what it printed")
    rank: int = column("1", "rank that ran it, from 0")
    study_command: str = column("1", "the same as the study has it, with the values of its axes", default="")


TABLES: dict[str, type] = {
    "samples": Sample,
    "disk": DiskUse,
    "ceiling": Ceiling,
    "ranks": Rank,
    "metadata": Metadata,
    "hooks": Hook,
    "blocks": Block,
    "steps": Step,
    "saves": LoopSave,
}
OPTIONAL_TABLES = frozenset({"metadata", "hooks", "blocks", "steps", "saves"})
"""Those that are left out where they have no row."""

LATER_TABLES = OPTIONAL_TABLES | {"ceiling", "ranks"}
"""Those that the first logs lack."""

ATTRIBUTES = ("state", "storage", "provenance")
"""The groups that hold attributes only."""


@dataclass(slots=True, kw_only=True)
class Header:
    """The attributes of the root group."""

    study: str
    job_id: str
    strategy: str
    label: str
    """The strategy with the options that aren't at their default."""
    strategy_options: str
    """JSON."""
    strategy_facts: str
    """JSON: the strategy's description and capabilities as texts (`ckpt.strategy.Strategy.facts`)."""
    target: str
    round: int
    nodes: int
    tasks_per_node: int
    trials_planned: int
    """Valid trials that the study asks for, without warm-ups."""
    created_utc: str
    clock_zero_unix_s: float
    """Seconds since 1970 at the zero of every `start_s`."""
    status: str = RUNNING
    error: str = ""
    load_ranks: int = 0
    """How many ranks load, where that isn't how many save; 0 where it is."""
    read_shift: int = 0
    """How many nodes away from itself a rank's share was written that it loads."""
    way: str = ""
    """How the training loop saves: `sync`, `thread`, `process`, `library`, ...; empty in a job without a loop."""
    loop: str = ""
    """JSON: the loop that methods must share to be compared: its step, length, cores and intervals; empty without."""


def check_job_id(job_id: Any) -> None:
    """Make sure that an id, from whatever file, can't name a file anywhere else: a job's log has its name from it.

    Raises:
        ValueError: if it can.
    """
    if not (isinstance(job_id, str) and re.fullmatch(r"[A-Za-z0-9_+=-][A-Za-z0-9_.+=-]*", job_id)):
        raise ValueError(
            f"{job_id!r:.80} is no id of a job: expected letters, digits and `_.+=-`, as in r01-torch_save-nvme-1x1; "
            "`python -m jobs plan` shows the ids of a study"
        )
