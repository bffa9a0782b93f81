"""What a step of the training loop does: an update that can be taken back, and the same work every time."""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt.state.compare import as_bytes
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import State
from jobs.errors import StudyError
from jobs.node.loop import steps
from jobs.node.loop.steps import Piece, cores_of, piece_of, step_work
from jobs.node.loop.update import update
from support.ranks import whole

SHAPES = ((), (0, 7), (1,), (3, 2))


def state_of_every_kind(seed: int) -> State:
    """Each dtype in each shape with random bits, a column of a matrix, and ties."""
    random = torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in whole().items()}
    state["head"] = state[""]
    for dtype, size in BYTES_PER_ELEMENT.items():
        for shape in SHAPES:
            bits = torch.randint(0, 2 if dtype == "bool" else 256, (*shape, size), generator=random, dtype=torch.uint8)
            state[f"{dtype} {shape}"] = bits.view(getattr(torch, dtype)).reshape(shape)
    state["column"] = torch.randn(4, 4, generator=random)[:, 1]
    return state


def bits(state: State) -> dict[str, bytes]:
    """All tensors' bytes."""
    return {name: as_bytes(tensor).numpy().tobytes() for name, tensor in state.items()}


@given(some.integers(0, 100), some.lists(some.integers(-(2**40), 2**40), min_size=1, max_size=4))
def test_updates_can_be_taken_back(seed: int, numbers: list[int]) -> None:
    """Any updates, and as many taken back in any order, leave every bit as it was."""
    state = state_of_every_kind(seed)
    before = bits(state)
    for number in numbers:
        update(state, number)
    for number in reversed(numbers):
        update(state, -number)
    assert before == bits(state)


@given(some.integers(0, 100), some.integers(1, 5))
def test_an_update_changes_every_tensor(seed: int, times: int) -> None:
    """One update changes each tensor that has an element, in place; several are as many single ones; ties stay ties."""
    state, other = state_of_every_kind(seed), state_of_every_kind(seed)
    before, places = bits(state), {name: tensor.data_ptr() for name, tensor in state.items()}
    update(state)
    after = bits(state)
    assert {name for name, tensor in state.items() if tensor.numel()} == {n for n in before if before[n] != after[n]}
    assert places == {name: tensor.data_ptr() for name, tensor in state.items()}
    assert state["head"].data_ptr() == state[""].data_ptr()
    for _ in range(times - 1):
        update(state)
    update(other, times)
    assert bits(other) == bits(state)


class Machine:
    """A machine whose clock stands still but for the work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.pieces = 0
        monkeypatch.setattr(steps, "time", types.SimpleNamespace(perf_counter=lambda: self.now_s, sleep=self.work))

    def work(self, seconds: float) -> None:
        """Take some time."""
        self.now_s += seconds
        self.pieces += 1


@pytest.mark.parametrize(("piece_s", "update_s", "pieces"), [(0.01, 0.0, 100), (0.03, 0.1, 30), (0.6, 0.3, 1)])
def test_a_step_has_the_stated_length(
    piece_s: float, update_s: float, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its update, a step repeats a piece of work as often as fits, and as often in every step."""
    machine = Machine(monkeypatch)
    work = step_work("compute", Piece(lambda: machine.work(piece_s)), 1.0, update_s, lambda number: [number])
    for _ in range(3):
        before = machine.pieces
        work()
        assert before + pieces == machine.pieces


def test_the_time_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of an update that nothing held up, and the state is as before."""
    machine = Machine(monkeypatch)
    changes: list[int] = []

    def change(times: int) -> None:
        changes.append(times)
        machine.work(0.25 if len(changes) == 4 else 8.0)

    assert 0.25 == steps.time_of_update(change)
    assert 0 == sum(changes)


def test_all_ranks_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as the slowest rank can do in time, with room for the slowest update."""
    machine = Machine(monkeypatch)
    others = iter([[0.1, 0.5], [50, 7]])
    work = step_work("compute", Piece(lambda: machine.work(0.01)), 1.0, 0.1, lambda _: next(others))
    before = machine.pieces
    work()
    assert before + 7 == machine.pieces


def test_idle_steps_sleep_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle step sleeps for as long as its update leaves."""
    machine = Machine(monkeypatch)
    work = step_work("idle", piece_of("idle", 1, 1.0), 1.0, 0.25, lambda number: [number])
    work()
    assert 0.75 == machine.now_s


@pytest.mark.parametrize(
    ("piece_s", "update_s", "message"),
    [
        (0.1, 1.0, "a step of 1.0 s is too short for the update of the state, which takes 1.00 s"),
        (0.8, 0.5, "a step of 1.0 s is too short for the kind 'compute', which takes 1.300 s at least"),
    ],
)
def test_a_step_that_is_too_short(
    piece_s: float, update_s: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A length that can't be kept is an error, which says how long a step takes here."""
    machine = Machine(monkeypatch)
    with pytest.raises(StudyError, match=message.replace(".", r"\.")):
        step_work("compute", Piece(lambda: machine.work(piece_s)), 1.0, update_s, lambda number: [number])


class Operations(TorchDispatchMode):
    """Counts what torch is asked for, by name and by the bytes of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, and count it."""
        result = func(*args, **(kwargs or {}))
        self.counts[func.overloadpacket.__name__, result.nbytes] += 1
        return result


@pytest.mark.parametrize(
    ("kind", "operation", "times"),
    [
        ("compute", ("mm", 4 * 512 * 512), 3),
        ("memory", ("copy_", 32 * 2**20), 1),
        ("launch", ("add_", 4 * 16), 1000),
    ],
)
def test_what_kinds_of_steps_do(kind: str, operation: tuple[str, int], times: int) -> None:
    """A piece of each is matrix products, a copy of memory, or many small calls, on as many threads as it has cores."""
    threads = torch.get_num_threads()
    try:
        piece = piece_of(kind, threads + 1, 1.0)
        with Operations() as done:
            piece.run()
        assert times == done.counts[operation]
        assert threads + 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's module."""
    module = types.ModuleType("my_steps")
    monkeypatch.setitem(sys.modules, "my_steps", module)
    return module


def test_a_step_of_the_users_own(own: Any) -> None:
    """It is made once, with the step's length and cores, and called once a step."""
    calls: list[str] = []

    def make(step_s: float, cores: int) -> Callable[[], None]:
        calls.append(f"made for {step_s} s on {cores}")
        return lambda: calls.append("step")

    own.make = make
    work = step_work("my_steps:make", piece_of("my_steps:make", 3, 0.5), 0.5, 0.1, lambda number: [number])
    work()
    work()
    assert ["made for 0.5 s on 3", "step", "step"] == calls


def _fails(**_: Any) -> Any:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("no_such_module:make", None, "can't be made (ModuleNotFoundError"),
        ("my_steps:nothing", None, "can't be made (AttributeError"),
        ("my_steps:make", lambda: None, "can't be made (TypeError"),
        ("my_steps:make", _fails, "can't be made (ValueError: no): expected a function"),
        ("my_steps:make", lambda step_s, cores: step_s + cores, "returned float, expected something to call"),
        ("my_steps:make", lambda **_: lambda: 1 / 0, "failed in a step (ZeroDivisionError"),
    ],
)
def test_a_step_of_the_users_own_that_is_none(kind: str, make: Any, message: str, own: Any) -> None:
    """What is wrong with it is told, with what is expected."""
    own.make = make
    with pytest.raises(StudyError) as caught:
        piece_of(kind, 1, 1.0).run()
    assert str(caught.value).startswith(f"loop.step = {kind!r} ")
    assert message in str(caught.value)


def test_more_cores_than_there_are() -> None:
    """A rank that may not use as many says what to do; where nothing is asked, it takes all or its share."""
    with pytest.raises(StudyError, match="cpus_per_task"):
        cores_of(10**6, 1)
    assert 1 == cores_of(1, 1)
    assert 1 <= cores_of(None, 2) <= cores_of(None, 1)
