"""Where jobs go if the user doesn't say it: never to a login node because a batch system is silent, or another one."""

from __future__ import annotations

import shutil
from typing import Literal

from jobs.cluster import slurm
from jobs.errors import StudyError, SubmissionError

ClusterName = Literal["debug", "local", "slurm"]

_OTHERS = {
    "qsub": 'qsub … -v CKPT_STUDY_ARGUMENTS="STUDY" slurm/study.pbs',
    "bsub": "bsub … bash slurm/study.pbs STUDY",
    "flux": "flux batch … slurm/study.pbs STUDY",
}
"""The commands of batch systems that jobs can't be submitted to, and how a study runs in one allocation of each."""


_OR_HERE = "or, if this is not a login node, run the jobs on this machine by --cluster local"


def default_cluster() -> ClusterName:
    """Slurm where it is installed, and this machine where there is no batch system.

    Raises:
        SubmissionError: if Slurm is installed and doesn't answer, or there is another batch system.
    """
    if shutil.which("sbatch"):
        try:
            slurm.ask("sinfo", "--noheader", "--format=%R")
        except StudyError as error:
            raise SubmissionError(
                f"Slurm is installed here and does not answer ({error}), so no job was started: try again when it "
                f"does, {_OR_HERE}"
            ) from None
        return "slurm"
    for command, whole_study in _OTHERS.items():
        if shutil.which(command):
            raise SubmissionError(
                f"{command} is installed here, so this may be a login node, and no job was started: run the whole "
                f"study in one allocation with `{whole_study}` (see docs/guide/cluster.md), {_OR_HERE}"
            )
    return "local"
