"""The self-test's training loops, from the study to the verdicts: an honest pipeline passes, doctored ones fail."""

from __future__ import annotations

import gc
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import load_results
from analysis.selftest import verdicts
from ckpt.disk import durable
from jobs.node.loop import uneven
from jobs.node.loop.comparing import Comparison
from jobs.node.loop.ways import Way
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan as plans
from jobs.plan import study_file

Judge = Callable[..., list[str]]

HONEST: dict[str, Any] = {"name": "_selftest"}
FAULTY = [{"name": "_selftest", "behaviour": behaviour} for behaviour in ("torn", "swallows", "unsynced")]
SLOW: dict[str, Any] = {"name": "_selftest", "sleep_s": 0.5}


@pytest.fixture
def failed(tmp_path: Path) -> Judge:
    """Run jobs of the study in this process, with fewer blocks; returns what fails, known times left out."""

    def run(strategies: Sequence[dict[str, Any]], saves: int = 1, results: str = "results") -> list[str]:
        content = tomllib.loads(study_file.SHIPPED["selftest-loop"].read_text())
        content["strategies"] = list(strategies)
        content["loop"] |= {"ways": ["library"], "every": 2, "saves": saves, "blocks": 1, "settle_steps": 1}
        content["targets"]["here"]["path"] = str(tmp_path)
        planned = plans.make_plan(study_file.parse(content, "selftest-loop.toml"))
        paths = StudyPaths(tmp_path / results)
        paths.logs.mkdir(parents=True)
        paths.plan_json.write_text(plans.to_json(planned))
        for planned_job in planned.jobs:
            gc.freeze()  # what the tests' process has imported is no garbage of a job
            run_job(str(paths.root), planned_job.id)
        judged = [verdict for verdict in verdicts(load_results(paths.root)) if verdict.passed is False]
        return [verdict.what for verdict in judged if " is known" not in verdict.what]

    return run


def test_an_honest_pipeline_passes(failed: Judge) -> None:
    """Every faulty save of the study is caught, and no honest one; each step is in the log, with what blocked it."""
    assert failed([HONEST, *FAULTY]) == []


def test_a_skipped_comparison_fails(failed: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torn and lost checkpoints are no longer caught."""
    monkeypatch.setattr(Comparison, "_difference", lambda *_: "")

    assert {what.split(",")[0] for what in failed([HONEST, *FAULTY])} == {"torn", "swallows"}


def test_a_skipped_sync_fails(failed: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush, honest saves aren't durable either."""
    monkeypatch.setattr(durable, "flush", lambda *_, **__: None)

    assert any(what.startswith("nothing honest is called invalid") for what in failed([HONEST]))


def test_a_clock_that_starts_after_the_wait_fails(failed: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that waits for the one before must account for that."""
    honest = Way.save

    def doctored(self: Any, final: Path) -> Any:
        call = honest(self, final)
        call.called_s += call.wait_s
        call.wait_s = 0.0
        return call

    assert failed([SLOW], saves=2) == []
    monkeypatch.setattr(Way, "save", doctored)

    assert any(
        what.startswith("the step of a call has what its save blocked")
        for what in failed([SLOW], saves=2, results="doctored")
    )


def test_the_steps_of_jobs_differ_in_length() -> None:
    """Or a reference from another job would fit; the steps of one job are all as long."""
    lengths = {uneven.sleep(0.01, 1).args[0] for _ in range(20)}  # type: ignore[attr-defined]

    assert len(lengths) == 20
    assert all(0.01 <= length <= 0.02 for length in lengths)
    start_s = time.perf_counter()
    uneven.sleep(0.01, 1)()
    assert time.perf_counter() - start_s >= 0.01
