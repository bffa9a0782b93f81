"""`python -m jobs`, as a person types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from jobs import timing_log
from jobs.paths import StudyPaths
from jobs.plan import plan, study_file
from jobs.timing_log import TimingLog
from support.logs import header_of

Planned = Callable[[Mapping[str, Any]], StudyPaths]

NOT_ON_A_LOGIN_NODE = ("torch", "transformers", "tensorstore", "pandas", "submitit", "psutil")


def write_study(path: Path, content: Mapping[str, Any]) -> Path:
    """A study file. JSON's strings and lists are TOML's, its tables are not."""

    def value(each: Any) -> str:
        if isinstance(each, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in each.items()) + "}"
        return json.dumps(each)

    path.write_text("".join(f"{json.dumps(key)} = {value(each)}\n" for key, each in content.items()))
    return path


@pytest.fixture
def tiny_toml(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny study as a file."""
    return write_study(tmp_path / "tiny.toml", tiny)


def test_plan_quick(python: Any, file_regression: FileRegressionFixture) -> None:
    """`plan` prints the jobs in order, what each will write, and the sums."""
    found = python("-m", "jobs", "plan", "quick")

    assert (found.returncode, found.stderr) == (0, "")
    file_regression.check(found.stdout, encoding="utf-8")


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["plan", "openllama-3b"], ["status", "{results}"]])
def test_on_a_login_node(command: list[str], python: Any, tiny: dict[str, Any], planned: Planned) -> None:
    """Planning and looking need nothing that only compute nodes have: it isn't even looked for."""
    results = planned(tiny).root
    arguments = [each.format(results=results) for each in command]

    found = python("-m", "jobs", *arguments, without=NOT_ON_A_LOGIN_NODE)

    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout


def test_dry_run_makes_nothing(python: Any, tiny_toml: Path, target: Path, tmp_path: Path) -> None:
    """`--dry-run` prints the plan and where it would go, and makes no file and no directory."""
    before = sorted(tmp_path.rglob("*"))
    found = python("-m", "jobs", "run", tiny_toml, "--dry-run", "--cluster", "local", "--results", "out")

    assert found.returncode == 0, found.stderr
    assert "r01-torch_save-here-1x1" in found.stdout
    assert f"would go to local, with results in {tmp_path}/out/tiny" in found.stdout
    assert [path for path in sorted(tmp_path.rglob("*")) if "site" not in path.parts] == [
        path for path in before if "site" not in path.parts
    ]
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rouns": 2}, "'rouns'"),
        ({"strategies": ["torch_sav"]}, "'torch_sav'"),
        ({"state": {"model": "openlama-3b"}}, "'openlama-3b'"),
        ({"state": {"model": "openllama-3b", "tensors": 999}}, "state.tensors = 999"),
        ({"targets": {"here": {"path": "/no/such/place"}}}, "/no/such/place"),
        ({"targets": {"here": {"path": "$NO_SUCH_VARIABLE"}}}, "$NO_SUCH_VARIABLE"),
    ],
    ids=["key", "strategy", "model", "tensors", "target", "variable"],
)
def test_invalid_study(changed: dict[str, Any], told: str, python: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    """A study that can't run is told in one message on stderr, with exit code 2, before anything is made."""
    file = write_study(tmp_path / "study.toml", tiny | changed)

    found = python("-m", "jobs", "run", file, "--cluster", "local", "--results", "out")

    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert told in found.stderr
    assert found.stderr.count("error:") == 1
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["plan", "quik"], ["status", "nowhere"], ["cancel", "nowhere"], ["frobnicate"], ["job", "quik", "x"]]
)
def test_wrong_command(arguments: list[str], python: Any, tmp_path: Path) -> None:
    """A mistake on the command line ends with exit code 2, is told without a traceback, and makes nothing."""
    found = python("-m", "jobs", *arguments)

    assert found.returncode == 2
    assert arguments[-1] in found.stdout + found.stderr or arguments[1] in found.stderr
    assert "Traceback" not in found.stderr
    assert [tmp_path / "site"] == list(tmp_path.iterdir())


def test_from_run_to_status(python: Any, tiny: dict[str, Any], target: Path, tmp_path: Path) -> None:
    """A study runs once: later calls do nothing, another of its name is refused, and there is nothing to cancel."""
    file, results = write_study(tmp_path / "tiny.toml", tiny), tmp_path / "results" / "tiny"
    log = results / "logs" / "r01-torch_save-here-1x1.h5"

    first = python("-m", "jobs", "run", file, "--cluster", "local")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "tiny: 1 of 1 jobs to run, on local" in first.stdout
    assert "Summary: tiny, target here" in first.stdout
    assert [log] == list((results / "logs").iterdir())
    assert file.read_text() == (results / "study.toml").read_text()
    assert list(target.iterdir()) == []
    before = log.read_bytes()

    again = python("-m", "jobs", "run", file, "--cluster", "local")
    assert again.returncode == 0
    assert "tiny: 0 of 1 jobs to run, on local" in again.stdout
    assert "Summary: tiny, target here" in again.stdout

    status = python("-m", "jobs", "status", "results")
    assert status.returncode == 0
    (shown,) = [line.split() for line in status.stdout.splitlines() if line.startswith(log.stem)]
    assert shown[1:3] == ["complete", "3/3"]

    cancel = python("-m", "jobs", "cancel", "results")
    assert (cancel.returncode, cancel.stdout) == (0, "no job of this study is waiting or running\n")

    write_study(file, tiny | {"trials": {"repeats": 9}})
    other = python("-m", "jobs", "run", file, "--cluster", "local")
    assert (other.returncode, other.stdout) == (2, "")
    assert f"{results} holds results of a study 'tiny' with another trials" in other.stderr

    assert before == log.read_bytes()


def test_tables_that_cannot_be_printed(python: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Where the analysis can't start, the run's logs stay, and its end names the command that failed."""
    file = write_study(tmp_path / "tiny.toml", tiny)
    results = tmp_path / "results" / "tiny"
    assert python("-m", "jobs", "run", file, "--cluster", "local").returncode == 0

    found = python("-m", "jobs", "run", file, "--cluster", "local", without=("pandas",))

    assert found.returncode == 1, found.stdout + found.stderr
    last = found.stderr.splitlines()[-1]
    assert last.startswith("error: the results are kept")
    assert f"`python -m analysis table {results}` failed (exit code 1)" in last
    assert timing_log.read(results / "logs" / "r01-torch_save-here-1x1.h5").header.status == "complete"


def test_a_strategy_that_fails(python: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Where a strategy fails, the others run, the end names the job and the reason, and the exit code is 1."""
    tiny["strategies"] = ["tensorstore_basic", "torch_save"]
    file = write_study(tmp_path / "tiny.toml", tiny)

    found = python("-m", "jobs", "run", file, "--cluster", "local", without=("tensorstore",), COLUMNS="1000")

    assert found.returncode == 1, found.stdout + found.stderr
    (told,) = [line for line in found.stdout.splitlines() if "needs tensorstore, which can't be imported" in line][-1:]
    assert "r01-tensorstore_basic-here-1x1" in told
    assert "failed" in told
    status = python("-m", "jobs", "status", "results")
    assert status.returncode == 1
    assert {"complete", "failed"} <= set(status.stdout.split())
    assert "strategy tensorstore_basic needs tensorstore" in status.stdout


def test_status_of_an_unfinished_study(python: Any, tiny: dict[str, Any], planned: Planned) -> None:
    """`status` shows each planned job: done, never submitted, failed with its reason; and damaged logs as failed."""
    tiny["rounds"] = 4
    paths = planned(tiny)
    never = python("-m", "jobs", "status", paths.root)
    jobs = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    for job, status, error in [(jobs[0], "complete", ""), (jobs[1], "failed", "OSError: disk on fire")]:
        header = header_of(job, status=status, error=error)
        TimingLog(header=header).write(paths.log(job.id))
    paths.log(jobs[2].id).write_text("damaged")
    found = python("-m", "jobs", "status", paths.root)

    assert never.returncode == 0
    assert never.stdout.count("not submitted") >= 4
    assert found.returncode == 1
    shown = {line.split()[0]: line for line in found.stdout.splitlines() if line.startswith("r0")}
    assert {job.id for job in jobs} == set(shown)
    assert " complete " in shown[jobs[0].id]
    assert " failed " in shown[jobs[1].id]
    assert "disk on fire" in shown[jobs[1].id]
    assert " failed " in shown[jobs[2].id]
    assert " not submitted " in shown[jobs[3].id]


def test_hostile_paths(python: Any, tiny: dict[str, Any], weird_path: Path) -> None:
    """A study runs on this machine's own cluster with results and target below a path with spaces, quotes, newlines."""
    target = weird_path / "target"
    target.mkdir()
    # By a variable, as on clusters; in the path itself a `$` would begin one.
    tiny["targets"]["here"]["path"] = "$TARGET"
    tiny["trials"] = {"repeats": 1, "warmups": 0}
    model = weird_path / "config.json"
    shutil.copy(tiny["state"]["model"], model)
    tiny["state"]["model"] = "config.json"
    file = write_study(weird_path / "tiny study.toml", tiny)

    found = python(
        "-m", "jobs", "submit", file, "--cluster", "local", "--results", weird_path / "results", TARGET=str(target)
    )  # fmt: skip

    assert found.returncode == 0, found.stdout + found.stderr
    log = timing_log.read(weird_path / "results" / "tiny" / "logs" / "r01-torch_save-here-1x1.h5")
    assert (log.header.status, log.header.error) == ("complete", "")
    assert (str(target), str(model)) == (log.storage["path"], log.state["model"])
    assert all(s.valid for s in log.samples)
    assert list(target.iterdir()) == []
    assert study_file.read(weird_path / "results" / "tiny" / "study.toml").name == "tiny"
