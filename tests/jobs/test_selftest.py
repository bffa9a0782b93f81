"""The self-test passes on an honest pipeline, and fails on each doctored one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import load_results
from ckpt.disk import durable, page_cache
from jobs import timing_log
from jobs.node.run import run_job
from jobs.node.trial import Trial
from jobs.paths import StudyPaths
from jobs.plan import plan as plans
from jobs.plan import study as studies
from jobs.selftest import SelfTest, Verdict


@pytest.fixture
def selftest(tmp_path: Path) -> Callable[[], list[Verdict]]:
    """Run the self-test's jobs in this process, through plan, job, log and analysis, and judge them."""

    def run() -> list[Verdict]:
        asked = SelfTest(sleep_s=0.2, repeats=2)
        source = tmp_path / "selftest.toml"
        target = tmp_path / "target"
        target.mkdir()
        source.write_text(asked.study(target))
        planned = plans.make_plan(studies.read(source))
        paths = StudyPaths(tmp_path / "results")
        paths.logs.mkdir(parents=True)
        paths.plan_json.write_text(plans.to_json(planned))
        for job in planned.jobs:
            run_job(str(paths.root), job.id)
        caveat = str(timing_log.read(paths.log(planned.jobs[0].id)).storage["cache_caveat"])
        return list(asked.verdicts(load_results(paths.root), caveat))

    return run


def failed(verdicts: list[Verdict]) -> list[str]:
    """What was not found to be as it is known to be."""
    return [verdict.what for verdict in verdicts if not verdict.passed]


def test_an_honest_pipeline_passes(selftest: Callable[[], list[Verdict]]) -> None:
    """Known costs are shown as they are, and every liar is caught."""
    verdicts = selftest()

    # How long a sleep lasts is the machine's business; what is caught is not.
    assert [what for what in failed(verdicts) if "sleep" not in what and "MB/s" not in what] == []
    assert {"wrong_data", "lazy", "unsynced"} <= {verdict.what.split(":")[0] for verdict in verdicts}


def test_a_clock_that_stops_before_the_sync_fails(
    selftest: Callable[[], list[Verdict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save's total without its sync is noticed."""
    honest = Trial._sample

    def doctored(self: Any, operation: str, phase: str, start: float, end: float, size: int, **rest: Any) -> None:
        if phase == "sync":
            self.synced_s = end - start
        if operation == "save" and phase == "total":
            end -= self.synced_s
        honest(self, operation, phase, start, end, size, **rest)

    monkeypatch.setattr(Trial, "_sample", doctored)

    assert [what for what in failed(selftest()) if what.startswith("a save's total")] != []


def test_a_skipped_sync_fails(selftest: Callable[[], list[Verdict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush, honest strategies aren't durable either."""
    monkeypatch.setattr(durable, "flush", lambda *_, **__: None)

    assert "nothing honest is called invalid" in failed(selftest())


def test_a_skipped_eviction_fails(selftest: Callable[[], list[Verdict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads from the page cache are not called cold."""
    monkeypatch.setattr(page_cache, "evict", lambda *_: None)

    assert [what for what in failed(selftest()) if what.startswith("cold loads are proven")] != []


def test_a_skipped_verification_fails(selftest: Callable[[], list[Verdict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong and lazily mapped data are no longer caught, and that is told."""
    monkeypatch.setattr(Trial, "_verify", lambda *_: "")

    assert {"wrong_data", "lazy"} <= {what.split(":")[0] for what in failed(selftest())}
