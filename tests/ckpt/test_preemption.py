"""`Preemption`: programs that get a real signal save once more if that fits, and keep the last checkpoint if not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import ckpt
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from ckpt.series import steps
from ckpt.series.preemption import Preemption
from ckpt.series.recent import RecentSaves
from support.series import state_of, step_in

HOUR_S = 3600.0
LONG_S = 100 * HOUR_S
SHORT_S = 1e-9

PROGRAM = """
import itertools
import signal
import sys
from pathlib import Path

import ckpt
from support.series import state_of

if __name__ == "__main__":
    directory, grace_s = sys.argv[1], float(sys.argv[2])
    with (
        ckpt.Preemption({signal.SIGUSR2: grace_s, signal.SIGTERM: grace_s}) as preemption,
        ckpt.Checkpointer(directory, every=3, preemption=preemption) as checkpoints,
    ):
        for step in itertools.count(1):
            if checkpoints.due(step):
                checkpoints.save(step, state_of(step))
                print(step, flush=True)
            if preemption.should_stop:
                break
    print("the program ends", flush=True)
"""


def run_until_signalled(directory: Path, grace_s: float, number: signal.Signals) -> tuple[str, str]:
    """Train, send a signal once a save is committed and measured, and return what the program printed."""
    directory.mkdir()
    script, errors = directory / "program.py", directory / "errors"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(directory / "run"), str(grace_s)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        errors.open("w") as file,
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=file) as program,
    ):
        assert program.stdout is not None
        output = program.stdout.readline() + program.stdout.readline()  # the second save has waited for the first one
        program.send_signal(number)
        output += program.stdout.read()
    assert program.returncode == 0, errors.read_text()
    assert output.endswith("the program ends\n")
    return output, errors.read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_save_that_fits(tmp_path: Path, number: signal.Signals) -> None:
    """The step that was running is the last, and is saved."""
    output, errors = run_until_signalled(tmp_path / "a", LONG_S, number)
    match = re.fullmatch(
        rf"{number.name}: training stops after step (\d+), which is saved( after step \d+)?: "
        r"(a save takes|two saves take) up to \S+ s, and \d+ h are left\n",
        errors,
    )
    assert match, errors
    last = int(match[1])
    assert output.splitlines()[-2] == str(last)
    assert max(steps.all_whole(tmp_path / "a" / "run")) == last
    assert step_in(ckpt.load(tmp_path / "a" / "run" / "latest")) == last


def test_a_save_that_does_not_fit(tmp_path: Path) -> None:
    """The checkpoint before stays the last one, the message names it, and the save in flight is finished."""
    output, errors = run_until_signalled(tmp_path / "a", SHORT_S, signal.SIGUSR2)
    match = re.fullmatch(
        r"SIGUSR2: training stops after step (\d+), and step (\d+)(, which is being saved, is| stays) the last "
        r"checkpoint: (a save takes|two saves take) up to \S+ s, and 0 s are left\n",
        errors,
    )
    assert match, errors
    assert int(match[1]) > int(match[2])
    assert output.splitlines()[-2] == match[2]
    assert max(steps.all_whole(tmp_path / "a" / "run")) == int(match[2])


def came(grace_s: float) -> Preemption:
    """As after the signal."""
    preemption = Preemption({signal.SIGUSR2: grace_s})
    preemption._handle(signal.SIGUSR2, None)
    return preemption


def saves(*latencies_h: float, in_flight: int | None = None) -> RecentSaves:
    """As after saves of steps 1, 2, … of these latencies in hours, and perhaps one that is in flight."""
    now_s = [0.0]
    recent = RecentSaves(lambda: now_s[0])
    for step, latency_h in enumerate(latencies_h, 1):
        now_s[0] = latency_h * HOUR_S
        recent.add(step, 0.0)
    if in_flight is not None:
        recent.add(in_flight, now_s[0], Future())
    return recent


@pytest.mark.parametrize(
    ("grace_s", "known", "fits", "message"),
    [
        (LONG_S, saves(5, 7, 6), True, "which is saved: a save takes up to 7 h, and 100 h are left"),
        (LONG_S, saves(5, 700), False, "and step 2 stays the last checkpoint: a save takes up to 700 h, and 100 h are"),
        (LONG_S, saves(40, in_flight=9), True, "which is saved after step 9: two saves take up to 80 h, and 100 h"),
        (LONG_S, saves(60, in_flight=9), False,
         "and step 9, which is being saved, is the last checkpoint: two saves take up to 120 h, and 100 h are left"),
        (LONG_S, saves(), True, "which is saved: no save was measured yet, and 100 h are left"),
        (LONG_S, saves(in_flight=9), False,
         "and step 9, which is being saved, is the last checkpoint: no save was measured yet, and 100 h are left"),
        (SHORT_S, saves(), False, "which is not saved: no save was measured yet, and 0 s are left"),
    ],
)  # fmt: skip
def test_decisions(
    grace_s: float, known: RecentSaves, fits: bool, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A save fits if the longest of the recent ones does; one in flight comes first. Decided once, and logged once."""
    preemption = came(grace_s)
    assert preemption.decide(10, known) is fits
    assert preemption.decide(10, known) is fits
    assert preemption.decide(11, known) is False
    (line,) = caplog.messages
    assert line.startswith(f"SIGUSR2: training stops after step 10, {message}")


def test_a_failed_save_is_not_measured() -> None:
    """Nor does it count as the last checkpoint."""
    recent = saves(3)
    future: Future[None] = Future()
    recent.add(2, 0.0, future)
    future.set_exception(OSError())
    assert recent.commit_s == 3 * HOUR_S
    assert recent.in_flight is None
    assert recent.committed is not None
    assert recent.committed.step == 1


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """A handler of the program for SIGUSR2, which notes the signals."""
    numbers: list[int] = []

    def handle(number: int, _: Any) -> None:
        numbers.append(number)

    before = signal.signal(signal.SIGUSR2, handle)
    yield numbers
    signal.signal(signal.SIGUSR2, before)


def test_the_handlers_of_the_program(handled: list[int]) -> None:
    """They are called too, and restored after the block."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    with Preemption({signal.SIGUSR2: 10, signal.SIGTERM: 10}) as preemption:
        assert not preemption.came
        os.kill(os.getpid(), signal.SIGUSR2)
        assert preemption.came
        assert handled == [signal.SIGUSR2]
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    os.kill(os.getpid(), signal.SIGUSR2)
    assert handled == [signal.SIGUSR2] * 2


def test_the_loop_stops_when_a_save_was_decided_on(tmp_path: Path) -> None:
    """A signal between `due` and the end of the step doesn't cost the last save: the step after it is the last."""
    with (
        Preemption({signal.SIGUSR2: LONG_S}) as preemption,
        Checkpointer(tmp_path / "run", every=5, preemption=preemption, background="none") as checkpoints,
    ):
        assert not checkpoints.due(1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert not preemption.should_stop
        assert checkpoints.due(2)
        assert preemption.should_stop
        checkpoints.save(2, state_of(2))
        assert not checkpoints.due(5)
    assert checkpoints.steps() == [2]


def test_the_earliest_end_counts(caplog: pytest.LogCaptureFixture) -> None:
    """Of two signals, the one after which less time is left."""
    grace_s = {signal.SIGUSR1: 3 * LONG_S, signal.SIGUSR2: LONG_S, signal.SIGTERM: 2 * LONG_S}
    with Preemption(grace_s) as preemption:
        for number in grace_s:
            os.kill(os.getpid(), number)
    assert not preemption.decide(3, saves(150))
    assert caplog.messages[0].startswith("SIGUSR2: training stops after step 3, and step 1 stays the last checkpoint")


def test_another_thread() -> None:
    """Python handles signals in the main thread: one clear message elsewhere."""
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with Preemption({signal.SIGUSR2: 10}):
                pass
        except CheckpointError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "Python does so in the main thread only" in str(errors[0])


@pytest.mark.parametrize(
    "grace_s", [{}, {signal.SIGKILL: 10}, {signal.SIGUSR2: 0}, {signal.SIGUSR2: float("nan")}, {99: 10}]
)
def test_arguments_that_can_t_be_used(grace_s: Any) -> None:
    """They are refused, with what to type."""
    with pytest.raises(CheckpointError, match=r"isn't possible: .* Preemption\(\{signal.SIGUSR2: 120\}\)"):
        Preemption(grace_s)
