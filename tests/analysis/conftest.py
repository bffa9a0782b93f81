"""Studies with hand-chosen samples, so that every number of a table can be computed by hand."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import print_tables
from analysis.advice.assumptions import USUAL
from analysis.logs.load import load_results
from analysis.measures.ceilings import Ceiling
from analysis.measures.method import Files, Method
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting
from analysis.measures.trials import Trials
from analysis.report import report
from analysis.tables.render import Format
from jobs import timing_log
from jobs.paths import StudyPaths
from support.logs import GB
from support.storage_studies import study_of_three_targets
from support.studies import MakeStudy, Ranked, Show, StudyOnDisk, ranked_log, study_maker


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Plan a study with these keys, in a directory `below` of its own, as `python -m jobs` would."""
    return study_maker(tmp_path)


@pytest.fixture
def three_methods(make_study: MakeStudy) -> StudyOnDisk:
    """Three complete jobs. Medians: save 4, 87.6, 43.8 s; cold 2, 25, 12.5 s; warm 1, 10, 12 s; 2, 1.5, 1.65 GiB.

    The warm-ups are so large that any statistic that counted one would show it.
    """
    return _three_methods(make_study)


def _three_methods(make_study: MakeStudy) -> StudyOnDisk:
    study = make_study()
    huge = 1e6
    study.log(
        "torch_save",
        save=[huge, 6, 2, 4],
        cold=[huge, 1, 3, 2],
        warm=[huge, 0.5, 1, 1.5],
        gib=[huge, 2, 2, 2],
        warmups=1,
    )
    study.log(
        "tensorstore_basic",
        save=[huge, huge, 80, 87.6, 100],
        cold=[huge, huge, 30, 20, 25],
        warm=[huge, huge, 9, 14, 10],
        gib=[huge, huge, 1.25, 1.5, 1.75],
        warmups=2,
    )
    study.log(
        "tensorstore_t5x",
        save=[huge, 43.8, 40, 50],
        cold=[huge, 12.5, 12, 13],
        warm=[huge, 12, 11, 13],
        gib=[huge, 1.65, 1.65, 1.65],
        warmups=1,
    )
    return study


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """What `python -m analysis table` prints about these results, on a terminal of so many columns."""

    def shown(results: Path | Sequence[Path], style: Format, columns: int = 1000) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        print_tables([results] if isinstance(results, Path) else results, style)
        return capsys.readouterr().out

    return shown


def trials_of(durations_s: Sequence[float], jobs: Sequence[str] | None = None) -> Trials:
    """One trial a minute, of a gigabyte, each in a job of its own unless said otherwise."""
    names = tuple(jobs or (f"job {number}" for number in range(len(durations_s))))
    started_s = tuple(1.75e9 + 60 * number for number in range(len(durations_s)))
    return Trials(tuple(durations_s), names, started_s=started_s, moved_bytes=GB)


def _measured(
    label: str,
    save: Sequence[float] = (),
    load: Sequence[float] = (),
    *,
    kind: Operation = Operation.LOAD_COLD,
    size_bytes: float = math.nan,
    facts: Mapping[str, str] | None = None,
    call: Sequence[float] = (),
    **other: Any,
) -> Method:
    """A method with these seconds; `call` is the part of each save until it returned."""
    phases = (
        {"call": trials_of(call), "sync": trials_of([a - b for a, b in zip(save, call, strict=True)])} if call else {}
    )
    fields: dict[str, Any] = {
        "label": label,
        "strategy": label,
        "facts": facts or {},
        "operations": {Operation.SAVE: trials_of(save)} | ({kind: trials_of(load)} if load else {}),
        "phases": phases,
        "files": Files(size_bytes=size_bytes, mean_file_bytes=size_bytes / 4),
    }
    return Method(**fields | other)


def _setting(*methods: Method, write_gbps: float = math.nan, read_gbps: float = math.nan, **other: Any) -> Setting:
    """One node, one task, a shared target."""
    fields: dict[str, Any] = {
        "study": "tiny",
        "target": "disk",
        "nodes": 1,
        "tasks_per_node": 1,
        "node_local": False,
        "methods": methods,
        "ceilings": {"write": Ceiling(write_gbps, ""), "read": Ceiling(read_gbps, "")},
    }
    return Setting(**fields | other)


@pytest.fixture
def measured() -> Callable[..., Method]:
    """Make a method of hand-chosen trials, without any log."""
    return _measured


@pytest.fixture
def setting() -> Callable[..., Setting]:
    """Make a setting of such methods."""
    return _setting


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% include '/etc/passwd' %}",
    "javascript:alert(1)",
    "</style><style>*{display:none}",
    "</svg><svg onload=alert(1)>",
    "\x1b[31m\u202ereversed\u2028line ]]> <!-- --> &lt;b&gt; $x^2$ 日本",
]


@pytest.fixture
def hostile_texts() -> list[str]:
    """Texts that each try to be something else in a page."""
    return HOSTILE


@pytest.fixture
def hostile_logs(three_methods: StudyOnDisk, tmp_path: Path) -> Path:
    """The logs of three methods with something hostile wherever a log holds a text."""
    return _hostile_logs(three_methods, tmp_path / "hostile")


def _hostile_logs(study: StudyOnDisk, directory: Path) -> Path:
    (directory / "logs").mkdir(parents=True)
    for number, path in enumerate(sorted(study.paths.logs.glob("*.h5"))):
        log = timing_log.read(path)
        texts = HOSTILE[number:] + HOSTILE[:number]
        log.header.study = HOSTILE[0] + HOSTILE[1]
        log.header.target = HOSTILE[2] + HOSTILE[4]
        log.header.label = texts[5] + texts[0]
        log.header.strategy = texts[1]
        log.header.job_id = f"{number}{texts[2]}"
        log.header.status, log.header.error = "failed", " ".join(texts)
        log.header.strategy_facts = '{"best_for": "<b onclick=alert(1)>", "other_readers": "<i>"}'
        log.header.created_utc = texts[1]
        log.provenance = dict.fromkeys(("host", "kernel", "packages", "cpu", "cpu_governor"), " ".join(texts))
        log.state["model"] = texts[0]
        log.write(directory / "logs" / f"{number}.h5")
    return directory


@pytest.fixture(scope="session")
def three_methods_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The report about `three_methods` (`plain`) or `hostile_logs` (`hostile`), which is made once for all tests."""
    directory = tmp_path_factory.mktemp("three-methods")

    @cache
    def page(which: str) -> str:
        study = _three_methods(study_maker(directory / which))
        results = study.root if which == "plain" else _hostile_logs(study, directory / which / "hostile")
        return report.report(load_results(results), USUAL)

    return page


@pytest.fixture(scope="session")
def three_targets(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    """Two methods on three targets, of which two lie on one disk; made once for all tests, which must not change it."""
    return study_of_three_targets(study_maker(tmp_path_factory.mktemp("three-targets")))


@pytest.fixture
def three_targets_copy(three_targets: StudyOnDisk, tmp_path: Path) -> StudyOnDisk:
    """A copy of it, which a test may change."""
    root = tmp_path / "results" / three_targets.root.name
    shutil.copytree(three_targets.root, root)
    return replace(three_targets, paths=StudyPaths(root))


@pytest.fixture
def ranked(tmp_path: Path) -> Ranked:
    """Write logs of jobs with several ranks into the directory of a study called `many`; returns it."""

    def write(**keys: Any) -> Path:
        ranked_log(tmp_path / "many", **keys)
        return tmp_path / "many"

    return write


@pytest.fixture
def scaled(ranked: Ranked) -> Path:
    """Two strategies at six scales: one scales perfectly until two ranks share a node, the other not at all."""
    study = Path()
    for nodes, tasks in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)):
        ranks = nodes * tasks
        for label, seconds in (("torch_save", 8.0 / nodes), ("tensorstore_t5x", 4.0)):
            own_s = [seconds - 0.25] * (ranks - 1) + [seconds - 0.25 if ranks == 1 else seconds]
            for number in (1, 2):
                study = ranked(
                    label=label, nodes=nodes, tasks=tasks, number=number, save=[own_s] * 3, load=[own_s] * 3,
                    ceiling=[4.0 / nodes] * ranks, disk=(ranks, 1),
                )  # fmt: skip
    return study
