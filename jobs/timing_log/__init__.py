"""The timing log: the HDF5 file that a job leaves. Schema, writer and reader; imports neither torch nor submitit.

    /            attributes of the job (`Header`)
    /samples     one row per measured phase of a trial on a rank (`Sample`), one dataset per column
    /disk        one row per trial: what the checkpoint took on disk (`DiskUse`)
    /ceiling     what the target did by itself before the first trial and after the last (`Ceiling`)
    /ranks       one row per process of the job (`Rank`): where it ran, how well its clock is known
    /metadata    one row per rank and operation on small files (`Metadata`); left out if there is none
    /hooks       one row per command of the study that ran outside every clock (`Hook`); left out if there is none
    /blocks      one row per block of a training loop and rank (`Block`); left out without a loop, as the next two
    /steps       one row per step of the loop and rank (`Step`)
    /saves       one row per save of the loop and rank (`LoopSave`)
    /state, /storage, /provenance    attributes: what was saved, where, by what

Every column has `units` and `long_name`, and lies on a dimension scale, so that h5py, xarray and h5dump read it.
The format's history:
    1  first version; columns came later: a load without a load_number gets the one that analysis derives
"""

from jobs.errors import TimingLogError
from jobs.timing_log.file_checks import LOG, MERGED, Bounds
from jobs.timing_log.loop_rows import Block, LoopSave, Step, blocks_of_runs
from jobs.timing_log.objects import Group
from jobs.timing_log.progress import Progress
from jobs.timing_log.reading import (
    LogColumns,
    columns_of,
    header_of,
    opened,
    plain_fact,
    read,
    read_columns,
    read_progress,
)
from jobs.timing_log.schema import (
    ATTRIBUTES,
    COMPLETE,
    FAILED,
    GOOD,
    INTERRUPTED,
    LOAD,
    LOAD_INTO,
    NOT_APPLICABLE,
    RUNNING,
    SAVE,
    SCHEMA,
    SCHEMA_VERSION,
    SKIPPED,
    TABLES,
    Ceiling,
    DiskUse,
    Header,
    Hook,
    Metadata,
    Rank,
    Sample,
    check_job_id,
)
from jobs.timing_log.seal import sealed
from jobs.timing_log.writing import TimingLog, write_atomically

__all__ = [
    "ATTRIBUTES", "COMPLETE", "FAILED", "GOOD", "INTERRUPTED", "LOAD", "LOAD_INTO", "LOG", "MERGED",
    "NOT_APPLICABLE", "RUNNING", "SAVE", "SCHEMA",
    "SCHEMA_VERSION", "SKIPPED", "TABLES", "Block", "Bounds", "Ceiling", "DiskUse", "Group", "Header", "Hook",
    "LogColumns", "LoopSave", "Metadata", "Progress", "Rank", "Sample", "Step", "TimingLog", "TimingLogError",
    "blocks_of_runs", "check_job_id", "columns_of", "header_of", "opened", "plain_fact", "read", "read_columns",
    "read_progress", "sealed", "write_atomically",
]  # fmt: skip
