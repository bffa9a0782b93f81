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
from jobs import timing_log


def write_merged(found: Sequence[Entry], output: Path) -> None:
    """Write the jobs, in the order of study and id, into one file that appears whole or not at all.

    Raises:
        ResultsError: if it can't be written.
    """
    try:
        _write(found, output)
    except OSError as error:
        raise ResultsError(f"can't write {output}: {error}") from error


def _write(found: Sequence[Entry], output: Path) -> None:
    image = _image(found)
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent)
    partial = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, no path
            file.write(image)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _image(found: Sequence[Entry]) -> bytes:
    """The bytes of the file: from memory, since HDF5 kills the process where a disk is full."""
    with h5py.File("merged", "w", driver="core", backing_store=False) as file:
        file.attrs["schema"] = MERGED_SCHEMA
        file.attrs["schema_version"] = MERGED_VERSION
        jobs = file.create_group("jobs")
        for entry in sorted(found, key=lambda each: (each.study, each.job_id)):
            group = jobs.require_group(entry.study).create_group(entry.job_id)
            group.attrs["study"], group.attrs["job_id"] = entry.study, entry.job_id
            group.attrs["status"] = entry.status
            group.attrs["error"] = entry.error.encode("utf-8", "backslashreplace").decode()  # it may name any path
            group.attrs["planned"] = json.dumps(entry.planned, sort_keys=True)
            if entry.log is not None:
                entry.log.write_to(group.create_group("log"))
        file.flush()
        return timing_log.sealed(file.id.get_file_image())
