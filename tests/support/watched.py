"""Studies whose jobs are watched: logs as jobs leave them, written without running any."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from jobs.cluster.processes import created_unix_s
from jobs.cluster.submissions import Submission
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.plan import Plan
from jobs.timing_log import Sample, TimingLog
from support.logs import header_of, job


def log_of(job_id: str, of: str, *, trials: int = 1, study: str = "tiny") -> TimingLog:
    """A log with so many finished trials of 3e9 bytes on two ranks: loaded in 2 s, the second rank a second later."""
    header = header_of(job("torch_save", "here"), study=study, job_id=job_id, status=of)
    samples = [
        Sample(
            trial=trial, warmup=False, rank=rank, operation=operation, phase=phase, start_s=rank, duration_s=2,
            state_bytes=1_500_000_000, durability="n/a", cache="cold", resident_fraction=0, cpu_s=0, peak_rss_bytes=0,
            valid=True, reason="",
        )
        for trial in range(trials) for operation, phase in (("save", "call"), ("save", "total"), ("load", "total"))
        for rank in range(2)
    ]  # fmt: skip
    return TimingLog(header=header, samples=samples, provenance={"code_version": "1", "code_version_submitted": "2"})


class Watched:
    """A study of which some jobs have ended, and the others run: all of them in this process."""

    def __init__(self, paths: StudyPaths, ended: int) -> None:
        self.paths = paths
        self._images: dict[tuple[str, int], bytes] = {}
        self.plan: Plan = plan.from_json(paths.plan_json.read_text(), "plan.json")
        self.ids = [job.id for job in self.plan.jobs]
        for number, job_id in enumerate(self.ids):
            self.log(job_id, "complete" if number < ended else "running")
        self.submit(*self.ids[ended:])

    def log(self, job_id: str, of: str, trials: int = 1) -> None:
        """Write a job's log as a job does, but for syncing it; the same for all jobs."""
        if (of, trials) not in self._images:
            path = self.paths.root / "log"
            log_of("j", of, trials=trials).write(path)
            self._images[of, trials] = path.read_bytes()
        partial = self.paths.log(job_id).with_suffix(".partial")
        partial.write_bytes(self._images[of, trials])
        partial.replace(self.paths.log(job_id))

    def submit(self, *job_ids: str) -> None:
        """Say that these are jobs of the local cluster, which run as long as this process does."""
        sent = [Submission(each, "local", str(os.getpid()), created_unix_s(os.getpid()), "", "") for each in job_ids]
        self.paths.submissions_json.write_text(json.dumps([asdict(each) for each in sent]))

    def log_names(self, opened: list[str]) -> list[str]:
        """The jobs whose logs are among what was opened."""
        return sorted(Path(name).stem for name in opened if name.endswith(".h5"))
