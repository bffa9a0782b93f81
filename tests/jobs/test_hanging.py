"""A filesystem whose servers hang: GlusterFS with stopped bricks. Nothing waits for long, and each says what hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import answering
from jobs import check_targets, timing_log
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.study import Target
from support.filesystems import Mounts

Planned = Callable[[Mapping[str, Any]], StudyPaths]


@pytest.fixture
def hung(mounts: Mounts) -> Iterator[Path]:
    """A directory of a volume that stops answering when the test stops its bricks; they go on when it ends."""
    directory = mounts.start("gluster") / "hung"
    directory.mkdir()
    yield directory
    mounts.signal_bricks(signal.SIGCONT)
    while answering._left:
        answering._left.pop().communicate(timeout=600)
    subprocess.run(["rm", "-r", directory], check=True, timeout=600)


def test_what_answers(tmp_path: Path) -> None:
    """A directory that answers leaves no trace of having been asked; one that isn't there answers too."""
    assert answering.silence(tmp_path, 60, write=True) == ""
    assert answering.silence(tmp_path / "nothing", 60, write=True) == ""
    assert [] == list(tmp_path.iterdir())


def test_what_does_not_answer(tmp_path: Path) -> None:
    """A look that lasts too long ends, here at a pipe that nobody writes to; so does one with a device's error."""
    os.mkfifo(tmp_path / "pipe")
    assert answering.silence(tmp_path, 0.5, read=["pipe"]) == "has not answered for 0 s"
    assert answering.silence(Path("/proc/self"), 60, read=["mem"]) == "can't be used (Input/output error)"
    assert [] == answering._left


@pytest.mark.filesystems
def test_check_goes_on(hung: Path, mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One target that hangs is a problem with the server's name; the others are looked at."""
    monkeypatch.setattr(check_targets, "NOTICE_S", 1)
    studied = {"hung": Target(path=str(hung)), "here": Target(path=str(tmp_path), allow_tmpfs=True)}
    mounts.signal_bricks(signal.SIGSTOP)
    first, second, *others = check_targets.findings(studied, {"hung": (1, 1), "here": (1, 1)})

    assert (first.level, first.what) == ("problem", f"target 'hung' ({hung}) has not answered for 1 s")
    assert first.remedy.startswith(f"is the server of {mounts.root}/mnt/gluster (fuse.glusterfs, ")
    assert (second.level, second.about) == ("ok", "target 'here'")
    assert others == []


@pytest.mark.filesystems
def test_status_ends(hung: Path, mounts: Mounts) -> None:
    """`status` of a study whose results lie there ends with one message, although its question is never answered."""
    program = "import sys, jobs.hanging as h; h.must_answer.__kwdefaults__['limit_s'] = 1; "
    program += "h.bounded.__kwdefaults__['limit_s'] = 1; from jobs.__main__ import app; app(sys.argv[1:])"
    mounts.signal_bricks(signal.SIGSTOP)
    done = subprocess.run(
        [sys.executable, "-c", program, "status", hung], capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {hung} has not answered for 1 s: is the server of {mounts.root}/mnt/gluster (")
    assert line.endswith(f"When `ls {hung}` answers, repeat the command")


@pytest.mark.filesystems
def test_a_job_gives_up(hung: Path, mounts: Mounts, tiny: dict[str, Any], planned: Planned) -> None:
    """It waits for its target as long as ranks wait for one another, and its log has the reason."""
    tiny["targets"] = {"hung": {"path": str(hung)}}
    tiny["trials"] = {"repeats": 1, "rank_timeout_s": 2}
    paths = planned(tiny)
    [job] = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    mounts.signal_bricks(signal.SIGSTOP)

    assert run_job(str(paths.root), job.id) == "failed"
    error = timing_log.read(paths.log(job.id)).header.error
    assert error.startswith(f"TargetError: target 'hung' ({hung}) has not answered for 2 s: is the server of ")
