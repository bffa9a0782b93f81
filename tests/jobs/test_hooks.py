"""The commands of a study: before a job's trials, and between each save and its loads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import check, timing_log
from jobs.errors import StudyError
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import commands, plan, study_file
from jobs.timing_log import TimingLog

Planned = Callable[[Mapping[str, Any]], StudyPaths]


def run_only(paths: StudyPaths) -> TimingLog:
    """Run the study's only job; returns its log."""
    [job] = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    run_job(str(paths.root), job.id)
    return timing_log.read(paths.log(job.id))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("lfs setstripe -c {stripes} {directory}", ["lfs", "setstripe", "-c", "4", "/scratch/a b; rm -rf $HOME"]),
        ("'{directory}/x y' \"{stripes}\"", ["/scratch/a b; rm -rf $HOME/x y", "4"]),
        ("awk '{print $1}' {unknown}", ["awk", "{print $1}", "{unknown}"]),
    ],
)
def test_words_of_a_command(command: str, words: list[str]) -> None:
    """Values go into words as they are: whatever is in a directory's name, no shell sees it and nothing is split."""
    assert commands.words(command, {"directory": "/scratch/a b; rm -rf $HOME", "stripes": 4}) == words


def study(targets: Mapping[str, Any], **more: Any) -> Any:
    """A study of these targets, from the keys of its file."""
    content = {"name": "s", "strategies": ["torch_save"], "state": {"model": "llama-15m"}, "targets": targets}
    return study_file.parse(content | more, "study.toml")


def test_axes_make_targets() -> None:
    """Each combination of lists is a target with a name of its own; a single value only fills its place."""
    prepare = ["lfs setstripe -c {stripes} -S {size} -p {pool} {directory}"]
    axes = {"stripes": [1, 4], "size": ["1M", "zstd:3"], "pool": "flash"}
    planned = study({"lustre": {"path": "/lustre", "prepare": prepare, "axes": axes}, "disk": {"path": "/tmp"}})

    assert {name: target.axes for name, target in planned.targets.items()} == {
        "lustre+stripes=1+size=1M": {"stripes": 1, "size": "1M", "pool": "flash"},
        "lustre+stripes=1+size=zstd_3": {"stripes": 1, "size": "zstd:3", "pool": "flash"},
        "lustre+stripes=4+size=1M": {"stripes": 4, "size": "1M", "pool": "flash"},
        "lustre+stripes=4+size=zstd_3": {"stripes": 4, "size": "zstd:3", "pool": "flash"},
        "disk": {},
    }
    made = plan.make_plan(planned)
    ids = {job.id for job in made.jobs}
    assert "r01-torch_save-lustre+stripes=4+size=zstd_3-1x1" in ids
    for job in ids:
        timing_log.check_job_id(job)
    again = plan.from_json(plan.to_json(made), "plan.json")
    assert again.study.targets == planned.targets


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ({"axes": {"stripes": [1, 2]}}, {}, "the axis 'stripes' changes nothing: no command in prepare or between"),
        ({"prepare": "set {stripes}", "axes": {"stripes": []}}, {}, "the axis 'stripes' is empty"),
        ({"prepare": "set {node}", "axes": {"node": [1]}}, {}, "an axis can't be called 'node'"),
        ({"prepare": "set {a}", "axes": {"a": ["x:1", "x_1"]}}, {}, "two targets would be called 'here+a=x_1'"),
        ({"prepare": "set {a}", "axes": {"a": [True]}}, {}, "a"),
        ({"prepare": "echo 'no end"}, {}, "can't be split into words: No closing quotation"),
        ({"prepare": ["  "]}, {}, "a command is empty"),
        ({"between": "drop"}, {"trials": {"cold": False}}, "target 'here' has commands in `between`"),
    ],
)
def test_commands_that_make_no_sense(target: dict[str, Any], more: dict[str, Any], message: str) -> None:
    """A study whose commands or axes can't be meant so is refused before any job runs."""
    with pytest.raises(StudyError) as refused:
        study({"here": {"path": "/tmp", **target}}, **more)

    assert message in str(refused.value)


def test_commands_run_around_trials(
    tiny: dict[str, Any], target: Path, planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`prepare` runs once, in the scratch directory; `between` after each save, elsewhere; all are logged."""
    seen = tmp_path / "seen"
    look = (
        f'sh -c \'echo {{mode}} $(pwd) $(ls $0 | tr "\\n" " ") >> {seen}; echo done; echo problem >&2\' {{directory}}'
    )
    tiny["targets"]["here"] |= {"prepare": [look, "true"], "between": look, "axes": {"mode": "fast"}}
    log = run_only(planned(tiny))

    assert log.header.status == "complete"
    first, *others = [line.split() for line in seen.read_text().splitlines()]
    assert first[0] == "fast"
    assert first[1].startswith(f"{target}/ckpt-"), "in a directory of the job's own"
    assert len(first) == 2, "which is empty"
    assert [line[1:] for line in others] == [["/", "trial-0"], ["/", "trial-1"], ["/", "trial-2"]]
    hooks = [(hook.when, hook.trial, hook.exit_code, hook.output, hook.rank) for hook in log.hooks]
    assert hooks == [
        ("prepare", -1, 0, "done\nproblem", 0),
        ("prepare", -1, 0, "", 0),
        *(("between", trial, 0, "done\nproblem", 0) for trial in range(3)),
    ]
    assert log.hooks[0].command.endswith(first[1]), "as it ran"
    assert [hook.study_command for hook in log.hooks[:2]] == [look.replace("{mode}", "fast"), "true"]
    assert f"rank 0: {log.hooks[1].command} (" in capsys.readouterr().out


def test_a_file_that_a_command_leaves_stays(tiny: dict[str, Any], planned: Planned) -> None:
    """What `prepare` writes into the directory is there for every trial's `between`."""
    tiny["targets"]["here"] |= {"prepare": "sh -c 'echo striped > note'", "between": "cat {directory}/note"}
    log = run_only(planned(tiny))

    assert log.header.status == "complete"
    assert [(hook.trial, hook.output) for hook in log.hooks if hook.when == "between"] == [
        (trial, "striped") for trial in range(3)
    ]


def test_no_measured_time_has_a_command_in_it(tiny: dict[str, Any], planned: Planned) -> None:
    """Commands begin when the save has ended, and end before the load begins."""
    tiny["targets"]["here"]["between"] = "sleep 0.2"
    log = run_only(planned(tiny))

    for hook in log.hooks:
        samples = [sample for sample in log.samples if sample.trial == hook.trial and sample.phase == "total"]
        save, *loads = sorted(samples, key=lambda sample: sample.start_s)
        assert save.start_s + save.duration_s <= hook.start_s
        assert hook.duration_s >= 0.2
        assert all(hook.start_s + hook.duration_s <= load.start_s for load in loads)
    assert len(log.hooks) == 3


@pytest.mark.parametrize("when", ["prepare", "between"])
@pytest.mark.parametrize(
    ("command", "code", "ending"),
    [
        ("sh -c 'echo first; echo no such pool >&2; exit 7'", 7, "ended with exit code 7 on "),
        ("no-such-program -x", 127, "could not be started on "),
        ("sh -c 'kill -9 $$'", 137, "ended with exit code 137 on "),
    ],
)
def test_a_command_that_fails_ends_the_job(
    when: str, command: str, code: int, ending: str, tiny: dict[str, Any], target: Path, planned: Planned
) -> None:
    """One message names the command, its exit code and what it printed; the log has it, and nothing is left behind."""
    tiny["targets"]["here"] |= {when: [command, "true"]}
    log = run_only(planned(tiny))

    assert log.header.status == "failed"
    for part in (ending, f"({when})", f"correct `{when}` below [targets.here]"):
        assert part in log.header.error
    assert ("first / no such pool" in log.header.error) == (code == 7)
    assert len(log.header.error.splitlines()) == 1
    [hook] = log.hooks
    assert hook.exit_code == code
    assert list(target.iterdir()) == []


def test_a_command_that_hangs_is_stopped_with_what_it_started(
    tiny: dict[str, Any], planned: Planned, tmp_path: Path
) -> None:
    """It may take a little less than ranks wait for one another; its children are ended too."""
    pid = tmp_path / "pid"
    tiny["targets"]["here"]["prepare"] = f"sh -c 'sleep 600 & echo $! > {pid}; echo waiting; wait'"
    tiny["trials"]["rank_timeout_s"] = 10
    log = run_only(planned(tiny))

    assert "took too long and was stopped" in log.header.error
    assert (log.hooks[0].exit_code, log.hooks[0].output) == (124, "waiting")
    deadline = time.monotonic() + 300
    while _runs(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_only_the_end_of_a_long_output_is_kept(tiny: dict[str, Any], planned: Planned) -> None:
    """A command may print as much as it likes."""
    tiny["targets"]["here"]["prepare"] = f'{sys.executable} -c \'print("x" * 10**6); print("the end")\''
    [hook] = run_only(planned(tiny)).hooks

    assert hook.output.endswith("x\nthe end")
    assert len(hook.output) <= 2000
    assert os.linesep in hook.output


def test_check_misses_a_program(tiny: dict[str, Any], planned: Planned) -> None:
    """A command whose program isn't there is a problem of its target before any job runs."""
    tiny["targets"]["here"] |= {"prepare": "no-such-lfs setstripe -c {n} {directory}", "axes": {"n": [1, 2]}}
    paths = planned(tiny)
    found = list(check.findings(paths, plan.from_json(paths.plan_json.read_text(), "plan.json"), "local"))

    problems = [finding.what for finding in found if finding.level == "problem"]
    command = "has the command 'no-such-lfs setstripe -c {n} {directory}', and there is no program no-such-lfs here"
    assert problems == [f"target 'here+n=1' {command}", f"target 'here+n=2' {command}"]
