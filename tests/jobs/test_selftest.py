"""The self-test passes on an honest pipeline, and fails on each doctored one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import load_results
from analysis.selftest import Verdict, verdicts
from ckpt.disk import durable, page_cache
from jobs.node.run import run_job
from jobs.node.trial import Trial
from jobs.paths import StudyPaths
from jobs.plan import plan as plans
from jobs.plan import study as studies
from jobs.selftest import study_text


@pytest.fixture
def selftest(tmp_path: Path) -> Callable[[], list[Verdict]]:
    """Run the shipped study's jobs in this process, with shorter sleeps and fewer trials, and judge them."""

    def run() -> list[Verdict]:
        content = tomllib.loads(studies.SHIPPED["selftest"].read_text())
        for strategy in content["strategies"]:
            if "sleep_s" in strategy:
                strategy["sleep_s"] *= 0.4
        content["trials"]["repeats"] = 2
        target = tmp_path / "target"
        target.mkdir()
        content["targets"]["here"]["path"] = str(target)
        planned = plans.make_plan(studies.parse(content, "selftest.toml"))
        paths = StudyPaths(tmp_path / "results")
        paths.logs.mkdir(parents=True)
        paths.plan_json.write_text(plans.to_json(planned))
        for job in planned.jobs:
            run_job(str(paths.root), job.id)
        return verdicts(load_results(paths.root))

    return run


def test_the_study_on_a_named_target(tmp_path: Path) -> None:
    """The shipped study on another target differs from it in the target and in the name, which is new every time."""
    source, target = tmp_path / "selftest.toml", tmp_path / 'a "quoted" \\ path, größer'
    source.write_text(study_text(target), encoding="utf-8")

    asked, shipped = studies.read(source), studies.read(studies.SHIPPED["selftest"])

    assert asked.targets["here"].path == str(target)
    assert asked.name.startswith("selftest-2")
    assert asked.model_copy(update={"name": shipped.name, "targets": shipped.targets}) == shipped


def failed(verdicts: list[Verdict]) -> list[str]:
    """What was not found to be as it is known to be."""
    return [verdict.what for verdict in verdicts if not verdict.passed]


def test_an_honest_pipeline_passes(selftest: Callable[[], list[Verdict]]) -> None:
    """Known costs are shown as they are, and every liar is caught."""
    judged = selftest()

    # How long a sleep lasts is the machine's business; what is caught is not.
    assert [what for what in failed(judged) if "sleep" not in what and "MB/s" not in what] == []
    assert {"wrong_data", "lazy", "unsynced"} <= {verdict.what.split(":")[0] for verdict in judged}


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
