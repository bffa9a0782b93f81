"""What faults are tried, and that a method that can't survive one is seen to fail: real saves, real restarts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import StudyError
from jobs.faults import bit_rot, power_cut, restarting
from jobs.faults.bit_rot import Part, drawn
from jobs.faults.budget import Budget
from jobs.faults.crash_states import UNORDERED, State, states
from jobs.faults.outcomes import DETECTED, RIGHT, SILENT, Outcome
from jobs.faults.recorded_steps import described
from jobs.faults.recording import Operation, Recording, Sync
from jobs.faults.restarting import Restarts
from jobs.faults.tracing import record
from support.faults import require_strace
from support.faults_study import prints, program, subject

FEW = Budget(seed=1, flips=24)


def counts(outcomes: list[Outcome]) -> Counter[str]:
    """How many there are of each verdict."""
    return Counter(outcome.verdict for outcome in outcomes)


def test_a_power_cut_spoils_what_is_never_synced(tmp_path: Path) -> None:
    """Of torch.save alone: while it writes, and after its return, when the older checkpoint is what is left."""
    require_strace()
    outcomes = list(power_cut.outcomes(subject("torch_save", "alone"), tmp_path, FEW))
    assert counts(outcomes)[DETECTED] > 10
    (silent,) = [outcome for outcome in outcomes if outcome.verdict == SILENT]
    assert silent.what == "power cut after the return of the save (synced): the restart has step 1"
    first = next(outcome for outcome in outcomes if outcome.verdict == DETECTED)
    assert first.what.startswith("power cut after the creation of step-2 (everything): the restart ends with ")


def test_a_power_cut_leaves_what_is_committed(tmp_path: Path) -> None:
    """By this package's commit: the older checkpoint or the newer one, and after the return the newer one."""
    require_strace()
    outcomes = list(power_cut.outcomes(subject("safetensors_tuned", "committed"), tmp_path, FEW))
    assert counts(outcomes) == {RIGHT: len(outcomes)}
    assert len(outcomes) > 20
    assert {outcome.what.rpartition(": ")[2] for outcome in outcomes} == {
        "the restart has step 1", "the restart has step 2",
    }  # fmt: skip


def test_more_states_of_a_power_cut(tmp_path: Path) -> None:
    """Of ten blocks that no sync covers; those after every call stay as they are."""
    require_strace()
    root = tmp_path / "run"
    root.mkdir()
    lines = ["import os, sys", "file = os.open(sys.argv[1] + '/file', os.O_WRONLY | os.O_CREAT)"]
    recording = record(root, [*program(*lines, "[os.write(file, bytes([n]) * 4096) for n in range(1, 11)]"), str(root)],
                       tmp_path / "trace")  # fmt: skip
    few, many = (list(states(recording, seed=1, single=1, least=least)) for least in (0, 1000))

    def different(drawn: list[State], *models: str) -> set[frozenset[tuple[str, bytes | str | None]]]:
        return {frozenset(state.content.items()) for state in drawn if state.model in models}

    assert len(few) < len(many) == 1000
    assert few == many[: len(few)]
    assert 2 * len(different(few, UNORDERED)) < len(different(many, UNORDERED))


def test_what_a_recording_misses_is_noticed(tmp_path: Path) -> None:
    """A program that writes to mapped memory has no states from which a power cut could be judged."""
    require_strace()
    root = tmp_path / "run"
    root.mkdir()
    lines = ["import mmap, sys", "file = open(sys.argv[1] + '/file', 'w+b')", "file.truncate(8)", "file.flush()"]
    change = ["memory = mmap.mmap(file.fileno(), 8)", "memory[:4] = b'text'", "memory.flush()"]
    recording = record(root, [*program(*lines), str(root)], tmp_path / "trace")
    power_cut.check_complete(recording, root)
    (root / "file").unlink()
    recording = record(root, [*program(*lines, *change), str(root)], tmp_path / "trace")
    with pytest.raises(StudyError, match="file differs from what was recorded"):
        power_cut.check_complete(recording, root)


@pytest.mark.parametrize("incomplete", [2, 3])
def test_a_recording_that_is_not_complete(incomplete: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is made, and then one more; after that, nothing can be tried."""
    require_strace()
    checks: list[None] = []

    def check(recording: Recording, root: Path) -> None:
        checks.append(None)
        if len(checks) <= incomplete:
            raise StudyError("file differs from what was recorded")
        complete(recording, root)

    complete = power_cut.check_complete
    monkeypatch.setattr(power_cut, "check_complete", check)
    outcomes = power_cut.outcomes(subject("torch_save", "committed"), tmp_path, Budget())
    if incomplete < 3:
        assert next(outcomes).verdict == "right"
    else:
        with pytest.raises(StudyError, match="differs from what was recorded"):
            next(outcomes)
    assert len(checks) == 3


@pytest.mark.parametrize(("use", "silent"), [("alone", True), ("committed", False)])
def test_bit_rot(use: str, silent: bool, tmp_path: Path) -> None:
    """torch.save has no checks of its own for tensors; a manifest has their checksums."""
    outcomes = list(bit_rot.outcomes(subject("torch_save", use), tmp_path, FEW))
    assert len(outcomes) == FEW.flips
    assert (counts(outcomes)[SILENT] > 0) == silent
    assert (counts(outcomes)[DETECTED] > 0) or silent
    assert all(" flipped: the restart " in outcome.what for outcome in outcomes)


SIZES = st.lists(st.integers(1, 3 * bit_rot.HEADER_BYTES), min_size=1, max_size=5)


@given(sizes=SIZES, flips=st.integers(1, 60), seed=st.integers(0, 9))
def test_bits_are_drawn(sizes: list[int], flips: int, seed: int) -> None:
    """Different ones, in the files, a quarter or more in headers; the same ones for the same seed."""
    parts = [Part(Path(str(number)), 0, size, "", is_header=number == 0) for number, size in enumerate(sizes)]
    bits = list(drawn(parts, flips, seed))
    assert bits == list(drawn(parts, flips, seed))
    assert len({(part.file, offset, bit) for part, offset, bit in bits}) == len(bits) == min(flips, 8 * sizes[0])
    assert all(0 <= offset < part.size_bytes and 0 <= bit < 8 for part, offset, bit in bits)
    assert sum(part.is_header for part, _, _ in bits) >= len(bits) // 4


def test_parts_cover_all_files(tmp_path: Path) -> None:
    """Every byte once; an empty file has none."""
    (tmp_path / "big").write_bytes(bytes(20_000))
    (tmp_path / "small").write_bytes(bytes(100))
    (tmp_path / "empty").touch()
    parts = bit_rot.parts(tmp_path)
    assert [(part.file.name, part.start, part.size_bytes, part.is_header) for part in parts] == [
        ("big", 0, 4096, True), ("big", 4096, 11_808, False), ("big", 15_904, 4096, True), ("small", 0, 100, True),
    ]  # fmt: skip


WORKER = [
    "import json, os, signal, sys, time",
    prints("ready"),
    "for line in sys.stdin:",
    "    what = os.path.basename(json.loads(line))",
    "    if what == 'hangs': time.sleep(600)",
    "    if what == 'ends': os.kill(os.getpid(), signal.SIGSEGV)",
    "    print(json.dumps({'step': 2, 'what': what}), flush=True)",
]


def test_a_restart_may_crash_or_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error then, and the next restart is made all the same."""
    monkeypatch.setattr(restarting, "python", lambda *_: program(*WORKER))
    with Restarts(subject("torch_save", "alone"), longest_s=1) as restarts:
        ends, fine = restarts.restart(tmp_path / "ends"), restarts.restart(tmp_path / "fine")
        hangs, again = restarts.restart(tmp_path / "hangs"), restarts.restart(tmp_path / "again")
    assert (ends.is_error, ends.what) == (True, "the restart's process ends with SIGSEGV")
    assert (hangs.is_error, hangs.what) == (True, "the restart hangs: no answer in 1 s")
    assert (fine.step, fine.what, again.step, again.what) == (2, "fine", 2, "again")


def test_a_worker_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is the reason."""
    monkeypatch.setattr(restarting, "python", lambda *_: program("import sys", "sys.exit('no such thing')"))
    with (
        Restarts(subject("torch_save", "alone")) as restarts,
        pytest.raises(StudyError, match="exit code 1 before its first restart: no such thing"),
    ):
        restarts.restart(tmp_path)


def test_a_program_that_fails_is_not_recorded(tmp_path: Path) -> None:
    """Its last line is the reason."""
    require_strace()
    with pytest.raises(StudyError, match="ends with exit code 3: what it printed"):
        record(tmp_path, program("print('what it printed')", "raise SystemExit(3)"), tmp_path.with_name("trace"))


def test_steps_in_words() -> None:
    """Files have the names that they had then."""
    steps = [
        "begin", Operation("add", 0, "a", 1), Operation("write", 1, data=bytes(5000)), Sync(1),
        Operation("rename", 0, "a", 1, 0, "b"), Sync(1), Operation("exchange", 0, "b", 1, 0, "old", 2),
        Operation("truncate", 2, offset=7), Operation("remove", 0, "b", 2), Sync(0), Sync(None), "returned",
    ]  # fmt: skip
    assert described(Recording(steps=list(steps), entries={0: {"old": 2}})) == [
        "the beginning of the save", "the creation of a", "a write of 5,000 bytes to a", "the sync of a",
        "the rename of a to b", "the sync of b", "the exchange of b and old",
        "the change of the size of b to 7 bytes", "the removal of b", "the sync of the run's directory",
        "the sync of everything", "the return of the save",
    ]  # fmt: skip
