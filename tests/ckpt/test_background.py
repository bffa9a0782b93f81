"""Saves behind a program: the state as it was, every error, and nothing left; in a thread and in a process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

import ckpt
from ckpt.background.process import ProcessSaver
from ckpt.background.saver import BackgroundSaver
from ckpt.background.thread import ThreadSaver
from ckpt.errors import CheckpointError
from ckpt.state.compare import as_bytes, poison
from ckpt.state.layout import State, layout_of_state
from ckpt.testing.states import every_dtype, exact, state_dicts
from support import tasks
from support.strategies import CORE, usable

WAYS = {"thread": ThreadSaver, "process": ProcessSaver}


@pytest.fixture(scope="module")
def savers() -> Iterator[Callable[[str], BackgroundSaver]]:
    """One saver of each kind, started when a test first asks for it."""
    started: dict[str, BackgroundSaver] = {}

    def saver(way: str) -> BackgroundSaver:
        if way not in started:
            started[way] = WAYS[way]()
        return started[way]

    yield saver
    for one in started.values():
        one.close()


@pytest.fixture(params=WAYS)
def saver(request: pytest.FixtureRequest, savers: Callable[[str], BackgroundSaver]) -> BackgroundSaver:
    """A saver in a thread, and one in a process."""
    return savers(request.param)


@pytest.fixture
def process(savers: Callable[[str], BackgroundSaver]) -> ProcessSaver:
    """The saver in a process."""
    found = savers("process")
    assert isinstance(found, ProcessSaver)
    found.warm()
    return found


def save(saver: BackgroundSaver, state: State, task: Callable[[State], object]) -> object:
    """Take a snapshot, start the task, and wait for it."""
    return saver.start(saver.take(state), task).result().value


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture],
)
@given(drawn=state_dicts())
@example(drawn=every_dtype())
@example(drawn={})
def test_the_state_at_the_call(saver: BackgroundSaver, drawn: State) -> None:
    """A task sees every tensor as it was when the copy was taken, whatever happens to the state afterwards."""
    before = exact(drawn)
    snapshot = saver.take(drawn)
    poison(drawn)
    assert before == saver.start(snapshot, tasks.bits).result().value


def test_ties_are_ties(saver: BackgroundSaver) -> None:
    """Tied tensors are the same memory where the task runs, so that they are written once."""
    weight = torch.ones(3)
    one, other, third = save(saver, {"a": weight, "b": weight, "c": torch.ones(3)}, tasks.addresses)
    assert one == other != third


@contextmanager
def optimizer(state: State) -> Iterator[None]:
    """Change every tensor at once, and in a thread of its own again and again meanwhile."""
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for tensor in state.values():
                as_bytes(tensor.contiguous()).bitwise_not_()
            time.sleep(0.001)  # the saver needs the interpreter's lock too

    poison(state)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("strategy", CORE)
def test_a_changing_state(saver: BackgroundSaver, strategy: str, tmp_path: Path) -> None:
    """A checkpoint holds the state at the call, though every tensor is changed before the first byte is written, and
    again and again while it is.
    """
    state = every_dtype()
    expected = exact(state)
    method, directory, gate = usable(strategy), tmp_path / "checkpoint", tmp_path / "gate"
    directory.mkdir()
    future = saver.start(saver.take(state), partial(tasks.save_once, gate, method, directory))
    with optimizer(state):
        gate.touch()
        files = future.result().value
    assert exact(method.load(directory)) == expected
    assert sorted(files) == sorted(path for path in directory.rglob("*") if path.is_file())


def test_the_library_as_a_task(saver: BackgroundSaver, tmp_path: Path) -> None:
    """`ckpt.save` is a task: every checkpoint is bit for bit the state at its call, which goes on changing."""
    for step in range(3):
        state = every_dtype() | {"step": torch.tensor(step)}
        expected = exact(state)
        future = saver.start(saver.take(state), partial(ckpt.save, directory=tmp_path / "latest"))
        with optimizer(state):
            future.result()
        assert exact(ckpt.load(tmp_path / "latest")) == expected


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("os", OSError, "[Errno 28] No space left on device"),
        ("own", CheckpointError, "the disk is full of eels"),
        ("memory", MemoryError, "no memory"),
    ],
)
def test_an_error_arrives(saver: BackgroundSaver, kind: str, error: type[Exception], message: str) -> None:
    """It has its type and its message, and the next save works."""
    with pytest.raises(error) as raised:
        save(saver, {"w": torch.ones(2)}, partial(tasks.fail, kind))
    assert str(raised.value) == message
    assert type(raised.value) is error
    assert save(saver, {"w": torch.ones(2)}, tasks.has_torch) is True


def test_errors_that_pickle_loses(process: ProcessSaver) -> None:
    """Such an error is one of this package that has the type and the text; the place where it was raised is a note."""
    with pytest.raises(CheckpointError, match=r"^OddError: one and other$"):
        save(process, {}, partial(tasks.fail, "odd"))
    with pytest.raises(CheckpointError, match=r"^LossyError: the text$"):
        save(process, {}, partial(tasks.fail, "lossy"))
    with pytest.raises(OSError, match="No space left") as raised:
        save(process, {}, partial(tasks.fail, "os"))
    assert "support/tasks.py" in raised.value.__notes__[0]


def test_what_cannot_be_sent(process: ProcessSaver) -> None:
    """A function without a module is refused at once, and a result that can't be pickled by one message; neither
    disturbs the next save.
    """
    pid = process.helpers
    with pytest.raises(CheckpointError, match=r"can't be sent there \(.*lambda.*\): it needs a function of a module"):
        process.start(process.take({}), lambda _: None)
    with pytest.raises(CheckpointError, match=r"can't be sent to the program \(TypeError: .*let the task return what"):
        save(process, {}, tasks.unpicklable)
    assert process.helpers == pid
    assert save(process, {}, tasks.own_process) == pid[0] != os.getpid()


def test_one_save_at_a_time(saver: BackgroundSaver, tmp_path: Path) -> None:
    """Neither a copy nor a second save is possible while a save uses the memory."""
    started, gate = tmp_path / "started", tmp_path / "gate"
    snapshot = saver.take({"w": torch.ones(2)})
    future = saver.start(snapshot, partial(tasks.hold, started, gate))
    tasks.wait_for(started)
    with pytest.raises(CheckpointError, match=r"still running.*wait for its result\(\) first"):
        saver.take({"w": torch.ones(2)})
    with pytest.raises(CheckpointError, match="still running"):
        saver.start(snapshot, tasks.bits)
    gate.touch()
    assert future.result().value == 1


@pytest.mark.parametrize("way", WAYS)
def test_closing_waits(way: str, tmp_path: Path) -> None:
    """The end of the context waits for the save, whose result is still there, and leaves neither process nor memory."""
    gate, before = tmp_path / "gate", tasks.open_here()
    threading.Timer(0.3, gate.touch).start()
    with WAYS[way]() as saver:
        saver.reserve(layout_of_state({"w": torch.ones(2)}))
        future = saver.start(saver.take({"w": torch.ones(2)}), partial(tasks.hold, tmp_path / "started", gate))
    assert future.done()
    assert future.result().value == 1
    assert saver.helpers == []
    assert tasks.open_here() == before


def test_closing_after_an_error() -> None:
    """An error that nobody has asked for yet doesn't disturb the end, and is still there."""
    with ThreadSaver() as saver:
        future = saver.start(saver.take({}), partial(tasks.fail, "own"))
    with pytest.raises(CheckpointError, match="eels"):
        future.result()


def test_nothing_leaks(saver: BackgroundSaver) -> None:
    """After many saves of states that grow and shrink there are as many descriptors, mappings, threads and processes
    as after the first, here and where the saves run.
    """
    states = [{"w": torch.ones(count)} for count in (5000, 3, 40_000, 10)]
    for state in states:
        save(saver, state, tasks.descriptors_and_mappings)
    there, here = save(saver, {}, tasks.descriptors_and_mappings), (tasks.open_here(), count(), saver.helpers)
    for number in range(40):
        assert there == save(saver, states[number % 4], tasks.descriptors_and_mappings)
    assert here == (tasks.open_here(), count(), saver.helpers)


def count() -> int:
    """The threads of this process, once those that save are gone."""
    end = time.monotonic() + 30
    while any(thread.name == "checkpoint" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return threading.active_count()


def test_a_killed_process(process: ProcessSaver, tmp_path: Path) -> None:
    """A process that is killed in a save is one error, which names the signal; the next save starts another process."""
    (pid,) = process.helpers
    future = process.start(process.take({}), partial(tasks.hold, tmp_path / "started", tmp_path / "gate"))
    tasks.wait_for(tmp_path / "started")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(CheckpointError, match=r"was ended by SIGKILL, probably because memory ran out, before it"):
        future.result()
    assert process.helpers == []
    other = save(process, {}, tasks.own_process)
    assert [other] == process.helpers
    assert other != pid


def test_a_process_that_dies_between_saves(process: ProcessSaver) -> None:
    """A process that was killed when it had nothing to do is started again, and nobody notices."""
    (pid,) = process.helpers
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert save(process, {"w": torch.ones(3)}, tasks.own_process) != pid


def test_a_task_that_ends_the_process(process: ProcessSaver) -> None:
    """A library that calls `exit` is one error with the exit code."""
    with pytest.raises(CheckpointError, match="ended with exit code 3, before it answered"):
        save(process, {}, partial(tasks.fail, "exit"))
    assert save(process, {}, tasks.has_torch) is True


def test_signals_that_reach_everybody(process: ProcessSaver) -> None:
    """The process survives what a terminal and Slurm send to all processes of a program."""
    (pid,) = process.helpers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    assert save(process, {}, tasks.own_process) == pid


def test_preparation() -> None:
    """It is called once in the process, before the first task; its error is raised by `warm`, or by the save."""
    with ProcessSaver(tasks.preparation) as saver:
        saver.warm()
        (pid,) = saver.helpers
        assert save(saver, {}, tasks.prepared) == "yes"
        assert saver.helpers == [pid]
    with ProcessSaver(tasks.failing_preparation) as saver:
        with pytest.raises(RuntimeError, match="there is no library here"):
            saver.warm()
        assert saver.helpers == []
        with pytest.raises(RuntimeError, match="there is no library here"):
            save(saver, {}, tasks.prepared)


def test_output(capfd: pytest.CaptureFixture[str]) -> None:
    """What a task prints goes where the program prints, before the save is done."""
    with ProcessSaver() as saver:
        save(saver, {}, partial(tasks.speak, "a task"))
        printed = capfd.readouterr()
    assert "a task on stdout" in printed.out
    assert "a task on stderr" in printed.err
