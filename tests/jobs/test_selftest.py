"""The self-test passes on an honest pipeline, and fails on each doctored one."""

from __future__ import annotations

import gc
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import load_results
from analysis.selftest import verdicts
from analysis.verdict import Verdict
from ckpt.disk import durable, page_cache
from ckpt.disk.page_cache import Sight
from jobs import __main__ as command
from jobs.node.proof import Proof
from jobs.node.run import run_job
from jobs.node.trial import Trial
from jobs.paths import StudyPaths
from jobs.plan import plan as plans
from jobs.plan import study_file
from jobs.selftest import STUDIES, study_text
from support.filesystems import Mounts
from support.logs import GIB, LogBuilder, job

SMALL = "llama-50k"
"""A model for runs whose verdict doesn't depend on the size of the state."""


@pytest.fixture
def selftest(tmp_path: Path) -> Callable[..., list[Verdict]]:
    """Run the shipped study's jobs in this process, with shorter sleeps and fewer trials, and judge them."""

    def run(target: Path = tmp_path / "target", repeats: int = 2, model: str = "llama-15m") -> list[Verdict]:
        content = tomllib.loads(study_file.SHIPPED["selftest"].read_text())
        assert content["state"]["model"] == "llama-15m"
        content["state"]["model"] = model
        for strategy in content["strategies"]:
            if "sleep_s" in strategy:
                strategy["sleep_s"] *= 0.04
            if "bytes_per_s" in strategy:
                strategy["bytes_per_s"] *= 10
        content["trials"]["repeats"] = repeats
        target.mkdir()
        content["targets"]["here"]["path"] = str(target)
        planned = plans.make_plan(study_file.parse(content, "selftest.toml"))
        paths = StudyPaths(tmp_path / "results")
        paths.logs.mkdir(parents=True)
        paths.plan_json.write_text(plans.to_json(planned))
        for planned_job in planned.jobs:
            gc.freeze()  # a trial collects garbage: what the tests' process has imported is none
            run_job(str(paths.root), planned_job.id)
        return verdicts(load_results(paths.root))

    return run


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_on_a_named_target(name: str, tmp_path: Path) -> None:
    """The shipped study on another target differs from it in the target and in the name, which is new every time."""
    source, target = tmp_path / "selftest.toml", tmp_path / 'a "quoted" \\ path, größer'
    source.write_text(study_text(name, target), encoding="utf-8")

    asked, shipped = study_file.read(source), study_file.read(study_file.SHIPPED[name])

    assert asked.targets["here"].path == str(target)
    assert asked.name.startswith(f"{name}-2")
    assert asked.model_copy(update={"name": shipped.name, "targets": shipped.targets}) == shipped


def test_the_command_runs_all_studies_and_ends_with_the_worst_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves and loads, then the two loops; one failed verdict is enough, whichever study has it."""
    ran: list[str] = []
    codes = iter([0, 1, 0])

    def run(_: Any, plan: Any, cluster: str, *, wait: bool) -> None:
        ran.append(f"{plan.study.name} {cluster} {wait}")

    monkeypatch.setattr(command, "submit_and_follow", run)
    monkeypatch.setattr(command, "analyse", lambda *_: next(codes))

    assert command.selftest(target=tmp_path, results=tmp_path / "results", cluster="local") == 1
    assert [name.rpartition("-2")[0] for name in ran] == list(STUDIES)
    assert all(name.endswith(" local True") for name in ran)


def failed(verdicts: list[Verdict]) -> list[str]:
    """What was not found to be as it is known to be."""
    return [verdict.what for verdict in verdicts if not verdict.passed]


def test_an_honest_pipeline_passes(selftest: Callable[[], list[Verdict]]) -> None:
    """Whatever the machine's speed doesn't change is as it is known to be, and each dishonest strategy is caught."""
    judged = selftest()

    assert [what for what in failed(judged) if "sleep" not in what and "MB/s" not in what] == []
    assert {"wrong_data", "lazy", "unsynced"} <= {verdict.what.split(":")[0] for verdict in judged}


@pytest.mark.filesystems
@pytest.mark.parametrize("name", ["overlay", "gluster"])
def test_it_passes_where_dirty_pages_can_not_be_seen(
    name: str, mounts: Mounts, selftest: Callable[[Path, int], list[Verdict]]
) -> None:
    """There a save that isn't synced can't be caught: no save is called durable, and that is the verdict."""
    target = mounts.start(name) / "target"
    judged = selftest(target, 1)
    target.rmdir()

    assert [what for what in failed(judged) if "sleep" not in what and "MB/s" not in what] == []
    [unsynced] = [verdict.what for verdict in judged if verdict.what.startswith("unsynced")]
    assert unsynced == (
        "unsynced: 0 of 1 saves caught, and 1, whose dirty pages can't be seen here, are not called durable"
    )
    assert [verdict for verdict in judged if verdict.what.startswith("no save is called durable: ")] != []


def test_unseen_saves_that_are_called_durable_fail(
    selftest: Callable[..., list[Verdict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where dirty pages can't be seen, a save that is called durable all the same is a failure of the measurement."""
    monkeypatch.setattr(Proof, "sight", Sight(dirty=False, resident="cachestat"))
    judged = failed(selftest(model=SMALL))

    assert [what for what in judged if what.startswith("unsynced: 0 of 2 saves caught, and 0,")] != []
    assert [what for what in judged if what.startswith("saves are proven durable: 0")] != []


MEASURED = {"{}": 0.1, '{"sleep_s": 0.5}': 0.6, '{"sleep_s": 1.0}': 1.1, '{"bytes_per_s": 1e9}': 0.1 + GIB / 1e9}
"""What a save and a load of a gibibyte take with these options: a tenth of a second more than asked for."""


@pytest.mark.parametrize(
    ("other", "seconds", "expected"),
    [
        ("", [], set()),
        ("{}", [0.1, 0.4, 0.4], set()),
        ('{"sleep_s": 1.0}', [2.0], {"save: 1.0 s", "load: 1.0 s"}),
        ('{"sleep_s": 0.5}', [0.2], {"save: 1.0 s", "load: 1.0 s"}),
        ('{"bytes_per_s": 1e9}', [0.2], {"save: 1000 MB/s", "load: 1000 MB/s"}),
        ('{"bytes_per_s": 1e9}', [2.0], {"save: 1000 MB/s", "load: 1000 MB/s"}),
    ],
    ids=["as asked for", "disturbed", "a longer sleep", "a shorter sleep", "a higher rate", "a lower rate"],
)
def test_known_costs(other: str, seconds: list[float], expected: set[str], tmp_path: Path) -> None:
    """Sleeps of known length and a known rate pass where they were measured as that, and fail where they weren't.

    Other work of the node that disturbs the job without either is no failure.
    """
    for number, (options, right_s) in enumerate(MEASURED.items()):
        times_s = seconds if options == other else [right_s]
        log = LogBuilder(job("_selftest"), job_id=f"j{number}", label=f"m{number}", strategy_options=options)
        for time_s in times_s * (3 // len(times_s)):
            log.trial(save=time_s, cold=time_s)
        log.write(tmp_path / "logs" / f"{number}.h5")

    judged = verdicts(load_results(tmp_path))

    costs = [verdict for verdict in judged if "sleep" in verdict.what or "MB/s" in verdict.what]
    assert len(costs) == 4
    assert expected == {" ".join(verdict.what.split()[:3]) for verdict in costs if not verdict.passed}


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


def test_a_skipped_sync_fails(selftest: Callable[..., list[Verdict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush, honest strategies aren't durable either."""
    monkeypatch.setattr(durable, "flush", lambda *_, **__: None)

    assert "nothing honest is called invalid" in failed(selftest(model=SMALL))


def test_a_skipped_eviction_fails(selftest: Callable[..., list[Verdict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads from the page cache are not called cold."""
    monkeypatch.setattr(page_cache, "evict", lambda *_: None)

    assert [what for what in failed(selftest(model=SMALL)) if what.startswith("cold loads are proven")] != []


def test_a_skipped_verification_fails(selftest: Callable[..., list[Verdict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong and lazily mapped data are no longer caught, and that is told."""
    monkeypatch.setattr(Trial, "_verify", lambda *_: "")

    assert {"wrong_data", "lazy"} <= {what.split(":")[0] for what in failed(selftest(model=SMALL))}
