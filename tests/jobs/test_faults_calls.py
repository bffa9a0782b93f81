"""Saves whose system calls fail, and saves whose process is killed: what a restart has, and how that is judged."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ckpt.workload.spec import StateSpec
from jobs.errors import StudyError
from jobs.faults import failed_calls, kills
from jobs.faults.budget import Budget
from jobs.faults.children import Child
from jobs.faults.lost_writes import lose
from jobs.faults.outcomes import ALONE, COMMITTED, DETECTED, RIGHT, SILENT, Outcome
from jobs.faults.replacing import Replacing
from jobs.faults.subject import Subject
from support.faults import require_strace

STRATEGIES = Path(__file__).parent / "strategies"


@pytest.fixture
def spec(model: Path) -> StateSpec:
    """A state of 21 tensors."""
    return StateSpec(str(model))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A cell's directory."""
    path = tmp_path / "work"
    path.mkdir()
    return path


def failing(
    subject: Subject, work: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch, calls: int = 1
) -> list[Outcome]:
    """What comes of the first calls of these kinds that fail."""
    require_strace()
    kinds = {kind.what: kind for kind in failed_calls.KINDS}
    monkeypatch.setattr(failed_calls, "KINDS", [kinds[name] for name in names])
    return list(failed_calls.outcomes(subject, work, Budget(calls=calls)))


def test_a_library_that_raises(spec: StateSpec, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves a file that can't be loaded; a directory that can't be made leaves the old state."""
    names = ["write fails with EIO", "mkdir fails with ENOSPC", "fsync fails with EIO"]
    subject = Subject("torch_save", {}, ALONE, spec)
    outcomes = failing(subject, work, names, monkeypatch, calls=2)
    assert [(outcome.verdict, outcome.size) for outcome in outcomes] == [(DETECTED, 1), (DETECTED, 2), (RIGHT, 1)]
    first, second, third = (outcome.what for outcome in outcomes)
    assert first.startswith("the 1st write fails with EIO, the save raises RuntimeError: ")
    assert second.startswith("the 2nd write fails with EIO, the save raises RuntimeError: ")
    assert third.startswith("the 1st mkdir fails with ENOSPC, the save raises OSError: ")
    assert third.endswith(": the restart has step 1")


def test_a_commit(spec: StateSpec, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this package's commit, a restart has the old state or the new one, whichever the save reported."""
    names = [kind.what for kind in failed_calls.KINDS]
    outcomes = failing(Subject("safetensors_tuned", {}, COMMITTED, spec), work, names, monkeypatch)
    assert [outcome.what for outcome in outcomes if outcome.verdict != RIGHT] == []
    texts = " ".join(outcome.what for outcome in outcomes)
    assert [name for name in names if f"the 1st {name}, the save " not in texts] == []


def test_an_error_that_is_ignored(spec: StateSpec, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that returns although its fsync failed has lost what the kernel could not write: nobody notices."""
    (tmp_path / "site").mkdir()
    line = f"import ckpt.strategies\nckpt.strategies.__path__.append({str(STRATEGIES)!r})\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    [outcome] = failing(Subject("careless", {}, ALONE, spec), work, ["fsync fails with EIO"], monkeypatch)
    assert outcome.verdict == SILENT
    assert outcome.what.startswith("the 1st fsync fails with EIO, the save returns: the restart has another state (")


def test_kills(spec: StateSpec, work: Path) -> None:
    """A process that is killed at any moment of a commit leaves the old state or the new one, and the next save works;
    the same seed draws the same moments.
    """
    outcomes = list(kills.outcomes(Subject("safetensors_tuned", {}, COMMITTED, spec), work, Budget(seed=3, kills=6)))
    assert [outcome.verdict for outcome in outcomes] == [RIGHT] * 6, outcomes
    assert any(" is ended by " in outcome.what for outcome in outcomes)
    assert {outcome.what.partition(" after ")[0] for outcome in outcomes} <= {
        "SIGKILL",
        "SIGTERM",
        "SIGSTOP and SIGKILL",
    }


def test_what_comes_after_a_fault(spec: StateSpec, work: Path) -> None:
    """The next save is judged too: what stays beside the checkpoint is a case."""
    with Replacing(Subject("safetensors_tuned", {}, COMMITTED, spec), work) as replacing:
        ending = replacing.replace()
        (work / "root" / "left").touch()
        right, left = replacing.outcomes(ending, "nothing", 1)
    assert (right.verdict, left.verdict) == (RIGHT, DETECTED)
    assert left.what == "nothing: the next save leaves left beside the checkpoint"


def test_a_method_that_can_not_save(spec: StateSpec, work: Path) -> None:
    """What the library raises without any fault is the reason why a cell can't be tried."""
    with pytest.raises(StudyError, match=r"the process that saves ended with exit code 1: .*crc = 'perhaps'"):
        next(kills.outcomes(Subject("torch_save", {"crc": "perhaps"}, ALONE, spec), work, Budget()))


def test_zeros_for_what_a_sync_lost(tmp_path: Path) -> None:
    """A file is followed from the name under which its sync failed; lines of several threads are put together."""
    for name in ("moved", "other", "directory/inner"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    (tmp_path / "log").write_text(
        f"12 fsync(3<{tmp_path}/old> <unfinished ...>\n"
        f'13 rename("{tmp_path}/x", "{tmp_path}/y") = 0\n'
        f"12 <... fsync resumed>) = -1 EIO (Input/output error) (INJECTED)\n"
        f'12 renameat2(AT_FDCWD</>, "{tmp_path}/old", 5<{tmp_path}>, "moved", RENAME_EXCHANGE) = 0\n'
        f"12 fdatasync(4<{tmp_path}/stage/inner>) = -1 EIO (Input/output error) (INJECTED)\n"
        f'12 rename("{tmp_path}/stage", "{tmp_path}/directory") = 0\n'
        f"12 fsync(5<{tmp_path}/other>) = 0\n"
    )
    lose(tmp_path / "log")
    contents = [(tmp_path / name).read_bytes() for name in ("moved", "other", "directory/inner")]
    assert contents == [bytes(3), b"123", bytes(3)]


@pytest.mark.filterwarnings("ignore:.*fork")  # other tests may have started threads here
def test_how_a_child_ends() -> None:
    """Its report says whether the work returned before a signal ended the process, and what it raised otherwise."""

    def ending_of(work: Callable[[], object]) -> str:
        child = Child(lambda: work)
        child.go_on()
        return child.ending().what

    assert ending_of(lambda: None) == "returns"
    assert ending_of(lambda: int("x")).startswith("raises ValueError: invalid literal")
    assert ending_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == "is ended by SIGTERM"
    assert ending_of(lambda: os._exit(0)) == "ends its process without an error"

    def unprepared() -> Callable[[], object]:
        raise OSError(28, "No space left on device")

    with pytest.raises(ChildProcessError, match=r"raises OSError: \[Errno 28\] .* before its save"):
        Child(unprepared)
