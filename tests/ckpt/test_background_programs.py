"""Whole programs that save in a process: however they are written and however they end, no process is left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

import ckpt
from support import tasks

SAVING = """
import sys
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
import torch
import ckpt
from ckpt.background.process import ProcessSaver
from support import tasks

place = Path(sys.argv[1])
state = {"w": torch.arange(5), "step": 3}

def started():
    saver = ProcessSaver()
    future = saver.start(saver.take({"w": state["w"]}), partial(tasks.hold_and_save, place))
    tasks.wait_for(place / "started")
    (place / "pid").write_text(str(saver.helpers[0]))
    (place / "ready").touch()
    return saver, future
"""

ENDS = SAVING + "saver, future = started()\n"

WITH = (
    SAVING
    + """
from time import sleep
saver, future = started()
with saver:
    sleep(60)
"""
)

SCRIPT = """
import sys, threading
from functools import partial
import tensorstore
import torch
import ckpt
from ckpt.background.process import ProcessSaver

print("the script runs")
state = {"w": torch.arange(5)}

def work():
    with ProcessSaver() as saver:
        saver.start(saver.take(state), partial(ckpt.save, directory=sys.argv[1], strategy="tensorstore_basic")).result()

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(ckpt.load(sys.argv[1])["w"].tolist())
"""

OF_THE_SCRIPT = """
from ckpt.background.process import ProcessSaver

def task(state):
    return 1

with ProcessSaver() as saver:
    try:
        saver.start(saver.take({}), task).result()
    except Exception as error:
        print(type(error).__name__, error)
"""


def is_gone(pid: int, within_s: float = 300) -> bool:
    """Whether a process ends in time; a zombie that nobody waits for has."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program whose save waits for the file `gate`, in a session of its own, and wait until the save is on."""
    running: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        script = tmp_path / "program.py"
        script.write_text(code)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        tasks.wait_for(tmp_path / "ready")
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def pid_of(place: Path) -> int:
    """The number of the process that saves."""
    return int((place / "pid").read_text())


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """The script runs once, saves from a thread, and had imported TensorStore before."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "latest")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(ckpt.__file__).parents[1],
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.stdout.splitlines() == ["the script runs", "[0, 1, 2, 3, 4]"], done.stderr


def test_a_task_of_the_main_script(tmp_path: Path) -> None:
    """One clear message, and no traceback of another process."""
    script = tmp_path / "script.py"
    script.write_text(OF_THE_SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.stdout.startswith("CheckpointError the process that saves can't import what it is to call"), done.stderr
    assert done.stdout.rstrip().endswith("and not of the program's main script")
    assert done.stderr == ""


def test_modules_of_the_current_directory(tmp_path: Path) -> None:
    """The process imports what the program imports, and not what happens to lie in the current directory."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("torch", "pickle", "ckpt"):
        (tmp_path / "elsewhere" / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "latest")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path / "elsewhere",
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.stdout.splitlines() == ["the script runs", "[0, 1, 2, 3, 4]"], done.stderr


def test_a_program_that_ends_in_a_save(start: Start, tmp_path: Path) -> None:
    """It waits for the save, though nobody closed the saver; the checkpoint is there, and the process gone."""
    program = start(ENDS)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(1)
    (tmp_path / "gate").touch()
    _, errors = program.communicate(timeout=600)
    assert (program.returncode, errors) == (0, "")
    assert ckpt.load(tmp_path / "latest")["w"].tolist() == [0, 1, 2, 3, 4]
    assert is_gone(pid_of(tmp_path))


FORKED = (
    SAVING
    + """
import os
import pickle
saver, future = started()
if not os.fork():
    os.setsid()
    tasks.wait_for(place / "gate")
    os._exit(0)
"""
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_program(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """The process ends with the program, in the middle of the save, though a child that the program forked has its
    files open and lives on; the next program saves to the same name.
    """
    program = start(FORKED)
    program.send_signal(number)
    program.wait(600)
    assert is_gone(pid_of(tmp_path))
    assert not (tmp_path / "latest").exists()
    ckpt.save({"w": [1]}, tmp_path / "latest")
    assert ckpt.load(tmp_path / "latest") == {"w": [1]}
    (tmp_path / "gate").touch()


def test_nobody_waits_for_the_answer() -> None:
    """A program that was killed a moment ago: the process ends without a traceback."""
    ours, theirs = Pipe()
    memory = os.memfd_create("snapshot")
    command = [sys.executable, "-m", "ckpt.background.worker", str(theirs.fileno()), str(memory), str(os.getpid())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with theirs, ours:
        process = subprocess.Popen(
            command, env=environment, pass_fds=(theirs.fileno(), memory), text=True, stderr=subprocess.PIPE
        )
        ours.send_bytes(pickle.dumps(None))
    os.close(memory)
    assert process.communicate(timeout=600)[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize("gate", [True, False])
def test_a_terminal(tmp_path: Path, gate: bool) -> None:
    """Ctrl-C reaches the program, and not the save, which is finished first; a second one ends both."""
    script = tmp_path / "program.py"
    script.write_text(WITH)
    terminal, inside = os.openpty()
    heeding = ["env", "--default-signal=INT"]  # a test run in the background ignores it, and so would the program
    command = [*heeding, "setsid", "--ctty", sys.executable, str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen(command, env=environment, stdin=inside, stdout=inside, stderr=inside)
    os.close(inside)
    tasks.wait_for(tmp_path / "ready")
    os.write(terminal, b"\x03")
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(1)
    if gate:
        (tmp_path / "gate").touch()
    else:
        os.write(terminal, b"\x03")
    output = b""
    try:
        while part := os.read(terminal, 4096):
            output += part
    except OSError:  # everybody who had the terminal open has ended
        pass
    assert program.wait(600) == -signal.SIGINT, output
    os.close(terminal)
    assert is_gone(pid_of(tmp_path))
    assert (tmp_path / "latest").exists() == gate
