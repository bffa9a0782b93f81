"""Jobs that Slurm has queued although their submission failed, as when its answer came too late: found, and ended.

An array's jobs could measure nothing, since what they should do never reached them. One job for a whole study could,
beside its next submission. And both would keep later jobs waiting.
"""

from __future__ import annotations

import time

from jobs.cluster import slurm, slurm_states
from jobs.cluster.submissions import submissions
from jobs.errors import NoAnswerError, StudyError
from jobs.paths import StudyPaths

_SUBMITTING_S = 60.0
"""How long another process may be at submitting jobs: its script looks like one of a submission that failed."""


def end_orphans(paths: StudyPaths, *, failed_now: bool = False) -> list[str]:
    """End this user's jobs of which a submission of the study left the script, and no number; returns their numbers.

    submitit makes a link of a script when Slurm has answered. With `failed_now`, scripts of this minute count too.

    Raises:
        NoAnswerError: if Slurm doesn't answer; the next submission looks again.
    """
    newest_unix_s = time.time() - (0.0 if failed_now else _SUBMITTING_S)
    scripts = {
        path.name
        for path in paths.slurm.glob(".submission_file_*.sh")
        if not path.is_symlink() and path.stat().st_mtime <= newest_unix_s
    }
    if not scripts:
        return []
    known = set(slurm_states.arrays(sent.scheduler_id for sent in submissions(paths)))
    try:
        queued = slurm.scripts()
        orphans = [number for number, script in queued.items() if script in scripts and number not in known]
        slurm.cancel(orphans)
    except StudyError as error:
        raise NoAnswerError(f"whether Slurm has queued jobs of a failed submission is not known: {error}") from error
    return orphans
