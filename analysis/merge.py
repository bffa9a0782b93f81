"""Many logs -> one HDF5 file that `table` reads as well; the order of the logs, and repeating it, change nothing.

/                       attrs: schema = "ckpt-timing-logs", schema_version
/jobs/<study>/<job id>  attrs: study, job_id, status, error, planned (JSON); and, if the job left a log,
/jobs/<study>/<job id>/log      the log, as the job wrote it
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py

from analysis.errors import ResultsError
from analysis.load import MERGED_SCHEMA, MERGED_VERSION, Entry


def write_merged(found: Sequence[Entry], output: Path) -> None:
    """Write the jobs, in the order of study and id, into one file that appears whole or not at all.

    Raises:
        ResultsError: if it can't be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent)
    except OSError as error:
        raise ResultsError(f"can't write {output}: {error}") from error
    os.close(descriptor)
    partial = Path(name)
    try:
        with h5py.File(partial, "w", locking="best-effort") as file:
            file.attrs["schema"] = MERGED_SCHEMA
            file.attrs["schema_version"] = MERGED_VERSION
            jobs = file.create_group("jobs")
            for entry in sorted(found, key=lambda each: (each.study, each.job_id)):
                group = jobs.require_group(entry.study).create_group(entry.job_id)
                for key in ("study", "job_id", "status", "error"):
                    group.attrs[key] = getattr(entry, key)
                group.attrs["planned"] = json.dumps(entry.planned, sort_keys=True)
                if entry.log is not None:
                    entry.log.write_to(group.create_group("log"))
        partial.chmod(0o644)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
