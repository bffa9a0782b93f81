"""The one place that knows the name of every file of a study.

<results>/<study>/
  study.toml          as it was submitted
  plan.json           every job that should exist
  logs/<job id>.h5    one timing log per job
  slurm/              what submitit wrote, and which job went out under which number
  report/             tables, figures, the merged file
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.errors import StudyError
from jobs.timing_log import check_job_id


@dataclass(frozen=True, slots=True)
class StudyPaths:
    """The files of one study, below its directory."""

    root: Path

    @property
    def study_toml(self) -> Path:
        """The study as it was submitted."""
        return self.root / "study.toml"

    @property
    def plan_json(self) -> Path:
        """Every job that should exist."""
        return self.root / "plan.json"

    @property
    def logs(self) -> Path:
        """The directory of the timing logs."""
        return self.root / "logs"

    def log(self, job_id: str) -> Path:
        """One job's timing log.

        Raises:
            StudyError: if the id is no name of a file in the directory of the logs.
        """
        try:
            check_job_id(job_id)
        except ValueError as error:
            raise StudyError(str(error)) from None
        return self.logs / f"{job_id}.h5"

    @property
    def slurm(self) -> Path:
        """What submitit wrote: scripts, pickles, stdout, stderr."""
        return self.root / "slurm"

    @property
    def submissions_json(self) -> Path:
        """Which job went out when, to which cluster, under which number."""
        return self.slurm / "submissions.json"

    @property
    def submissions_lock(self) -> Path:
        """Locked by a process that changes the list of submissions."""
        return self.slurm / "submissions.lock"

    @property
    def report(self) -> Path:
        """Tables, figures, the merged file."""
        return self.root / "report"


def find_study(results: Path) -> StudyPaths:
    """The study in a results directory: the directory itself, or the only study below it.

    Raises:
        StudyError: if there is none, or more than one.
    """
    if StudyPaths(results).plan_json.is_file():
        return StudyPaths(results)
    below = sorted(path.parent for path in results.glob("*/plan.json")) if results.is_dir() else []
    if len(below) == 1:
        return StudyPaths(below[0])
    if not below:
        raise StudyError(
            f"{results} holds no study: expected a directory with a plan.json, as `python -m jobs run` makes it"
        )
    raise StudyError(f"{results} holds several studies, name one of them: {', '.join(map(str, below))}")
