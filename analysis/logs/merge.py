"""Many logs -> one HDF5 file (`analysis.logs.merged`) that `table` reads as well.

The order of the logs, and repeating it, change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py

from analysis.errors import ResultsError
from analysis.logs import merged
from analysis.logs.frames import Entry
from jobs.timing_log import sealed, write_atomically


def write_merged(found: Sequence[Entry], output: Path) -> None:
    """Write the jobs, in the order of study and id, into one file that appears whole or not at all.

    Raises:
        ResultsError: if it can't be written.
    """
    try:
        write_atomically(output, _image(found), sync=True, mode=0o644)
    except OSError as error:
        raise ResultsError(f"can't write {output}: {error}") from error


def _image(found: Sequence[Entry]) -> bytes:
    """The bytes of the file: from memory, since HDF5 kills the process where a disk is full."""
    ordered = sorted(found, key=lambda each: (each.study, each.job_id))
    jobs = [
        {"study": e.study, "job_id": e.job_id, "status": e.status, "error": e.error, "planned": e.planned}
        for e in ordered
    ]
    with h5py.File("merged", "w", driver="core", backing_store=False) as file:
        merged.write(file, jobs, [entry.log for entry in ordered])
        file.flush()
        return sealed(file.id.get_file_image())
