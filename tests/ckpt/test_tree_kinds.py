"""What a nested state may hold beside tensors: containers, plain values, how deep, how often."""

from __future__ import annotations

import json
import struct
import sys
import uuid
from argparse import Namespace
from collections import Counter, OrderedDict, UserList, defaultdict, deque
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import ml_dtypes
import numpy as np
import pytest
import torch

import ckpt
from ckpt.errors import CheckpointError
from ckpt.tree import nested
from ckpt.tree.containers import DEEPEST


def there_and_back(state: Any) -> Any:
    """A state through a JSON text, its tensors in memory of their own."""
    tensors, tied, rest = nested.flatten(state)
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    return nested.restore(json.loads(json.dumps(rest)), copies | {name: copies[owner] for name, owner in tied.items()})


KEPT = [
    Counter("abca"),
    defaultdict(list, a=[1]),
    defaultdict(None, {1: 2}),
    defaultdict(Counter),
    deque([1, 2, 3], maxlen=3),
    deque(),
    {1, "two", (3, None)},
    frozenset({b"x"}),
    Namespace(lr=0.1, layers=[1, 2]),
    SimpleNamespace(a=1),
    range(3, 9, 2),
    slice(None, 3),
    datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2), "here"), fold=1),
    datetime(1, 1, 1),  # noqa: DTZ001  # one without a zone is what is tested
    datetime(2020, 1, 1, tzinfo=UTC),
    date(2020, 1, 2),
    time_of_day(23, 59, fold=1),
    timedelta(-3, 4, 5),
    UTC,
    Path("a/b"),
    PurePosixPath("/a"),
    PureWindowsPath(r"c:\a"),
    Decimal("-NaN12"),
    Fraction(1, 3),
    uuid.uuid4(),
    bytearray(b"\0x"),
    10**6000,
    "\ud83d\ude00",  # two surrogates, which JSON would make one character of
    np.datetime64("2020-01-01", "ns"),
    np.timedelta64(3, "D"),
    np.str_("text"),
    np.longdouble(1) / 3,
    np.float16(0.1),
    np.complex64(1 + 2j),
    ml_dtypes.bfloat16(1.5),
    {np.int64(3): 1, np.bool_(True): 2, Path("key"): 3, frozenset({1}): 4, torch.float16: 5, UTC: 6},
]


def facts(value: Any) -> Any:
    """Its type, and all that its pickle would hold."""
    if isinstance(value, dict):
        return type(value), getattr(value, "default_factory", 0), [(facts(k), facts(v)) for k, v in value.items()]
    if isinstance(value, list | deque):
        return type(value), getattr(value, "maxlen", 0), [facts(each) for each in value]
    if isinstance(value, int):
        return type(value), hex(value)
    if isinstance(value, np.generic):
        return type(value), value.dtype, value.tobytes()
    return type(value), value.__reduce_ex__(4) if not isinstance(value, Decimal) else str(value)


@pytest.mark.parametrize("value", KEPT, ids=[f"{number}-{type(each).__name__}" for number, each in enumerate(KEPT)])
def test_kept(value: Any) -> None:
    """What training loops hold beside tensors comes back as it was, in its type."""
    assert facts(value) == facts(there_and_back({"a": [value]})["a"][0])


@pytest.mark.parametrize("bits", [0xFFF8 << 48, (0x7FF8 << 48) + 1, (0x7FF0 << 48) + 1, 0x7FF8 << 48, 1 << 63])
def test_floats_keep_their_bits(bits: int) -> None:
    """A NaN's sign and payload, and a zero's sign, alone and in a complex number."""
    (number,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    alone, real, imaginary = there_and_back([number, complex(number, 1), complex(1, number)])
    for found in (alone, real.real, imaginary.imag):
        assert bits.to_bytes(8, "big") == struct.pack(">d", found)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.ma.masked_array([1, 2], mask=[0, 1]), "MaskedArray"),
        (np.ma.masked, "MaskedConstant"),
        (np.ones((1, 1)).view(np.matrix), "matrix"),
        (np.array([(1, 2)], "i4,i4").view(np.recarray), "recarray"),
        (np.array([(1, 2)], "i4,i4"), "array of"),
        (np.array([(1, 2)], "i4,i4")[0], "numpy scalars of"),
        (np.array(["2020"], "M8[D]"), r"array of datetime64\[D\]"),
        (np.zeros(1, np.longdouble), "array of float128"),
        (defaultdict(lambda: 1), "defaultdict of <function"),
        (datetime(2020, 1, 1, tzinfo=ZoneInfo("UTC")), "time zone is a ZoneInfo"),
        (slice("a"), "bounds are not integers"),
        (UserList(), "UserList.*ckpt.register"),
        ({torch.ones(1): 1}, "Tensor, which can't be saved as a key"),
        (np.dtype("f4"), "numpy.dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "value",
)
def test_refused(value: Any, reason: str) -> None:
    """What would come back as something else is refused, by its place and type."""
    with pytest.raises(CheckpointError, match=rf"(?s)the state's 'a\.0.*{reason}"):
        nested.flatten({"a": [value]})


def test_memory_mapped_arrays(tmp_path: Path) -> None:
    """One is refused, since it would come back in memory; as a plain array it is kept."""
    mapped = np.memmap(tmp_path / "values", np.float32, "w+", shape=(3,))
    with pytest.raises(CheckpointError, match=r"'m' is a numpy\.memmap, .* numpy\.asarray"):
        nested.flatten({"m": mapped})
    assert np.array_equal(there_and_back(np.asarray(mapped)), mapped)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_of_arrays(order: Any) -> None:
    """An array in columns comes back in columns, as pickle has it; its values are those of its file."""
    array = np.array(np.arange(6).reshape(2, 3), order=order)
    found = there_and_back(array)
    assert (array.strides, array.flags.writeable) == (found.strides, found.flags.writeable)
    assert np.array_equal(array, found)


@pytest.mark.parametrize("cls", [OrderedDict, Counter])
def test_attributes_of_containers(cls: Any) -> None:
    """What somebody noted on a container, as torch does on a state_dict, is kept, and is no value of the state."""
    noted = cls(a=1)
    noted._metadata = OrderedDict({"": {"version": 2}})
    found = there_and_back({"x": noted})["x"]
    assert (noted, vars(noted)) == (found, vars(found))
    assert nested.plain_values(nested.flatten(noted)[2]) == 1


def test_state_dicts_keep_their_versions() -> None:
    """Loading a state_dict does not migrate it again: a quantization observer keeps its `eps`, BatchNorm its count."""
    from torch.ao.quantization import MinMaxObserver

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(MinMaxObserver(eps=0.01), torch.nn.BatchNorm1d(2))

    first, second = model(), model()
    first(torch.randn(4, 2))
    second.load_state_dict(there_and_back(first.state_dict()))
    assert float(second[0].eps) == pytest.approx(0.01)  # type: ignore[index,operator]  # a Sequential
    assert int(second[1].num_batches_tracked) == 1  # type: ignore[index,operator,arg-type]  # the same


@pytest.mark.parametrize("depth", [200, DEEPEST])
def test_deep_states(depth: int, tmp_path: Path) -> None:
    """A state may be nested as deep as it says, wherever it is saved from."""

    def save_from(frames: int) -> None:
        if frames:
            save_from(frames - 1)
        else:
            ckpt.save(state, tmp_path / "deep")

    state: Any = {"w": torch.ones(2), "plain": 3}
    for level in range(depth - 1):
        state = ({"k": state}, [state], defaultdict(int, k=state))[level % 3]
    save_from(300)
    found = ckpt.load(tmp_path / "deep")
    assert ckpt.inspect(tmp_path / "deep").plain_values == 1
    while "w" not in found:
        assert type(found) is type(state)
        (found,) = found.values() if isinstance(found, dict) else found
        (state,) = state.values() if isinstance(state, dict) else state
    assert torch.equal(torch.ones(2), found["w"])


@pytest.mark.parametrize("depth", [DEEPEST + 1, 50_000])
def test_deeper_states(depth: int) -> None:
    """Deeper ones are refused in one short message, before anything is written."""
    state: Any = 1
    for _ in range(depth):
        state = {"k": state}
    with pytest.raises(CheckpointError, match=r"nested more than 1,000 containers deep") as caught:
        nested.flatten(state)
    assert len(str(caught.value)) < 400


def test_what_stands_at_several_places() -> None:
    """A container at two places is one again, whatever it is, and however many ways lead to it."""
    shared = [1, {"x": (2,)}]
    state: Any = {"a": shared, "b": (shared, deque([shared])), "c": shared[1]}
    found = there_and_back(state)
    assert state == found
    assert found["a"] is found["b"][0] is found["b"][1][0]
    assert found["c"] is found["a"][1]
    assert nested.plain_values(nested.flatten(state)[2]) == 2
    many: Any = [1]
    for _ in range(60):  # 2**60 paths
        many = [many, many]
    found = there_and_back(many)
    assert found[0] is found[1]


def test_many_tensors_take_linear_time() -> None:
    """Eight times as many tensors take eight times as many calls, of Python's and of C's functions."""

    def calls(count: int) -> int:
        seen = 0

        def profile(*_: Any) -> None:
            nonlocal seen
            seen += 1

        state = {"params": [torch.ones(2, 3).T for _ in range(count)]}
        sys.setprofile(profile)
        try:
            tensors, _, rest = nested.flatten(state)
            nested.restore(rest, tensors)
            nested.restore_named(rest, tensors)
            nested.plain_values(rest)
        finally:
            sys.setprofile(None)
        return seen

    assert calls(1600) < 9 * calls(200)


OLD = {
    "dict": [
        ["w", {"tensor": "w"}],
        ["a", {"array": "a"}],
        ["s", {"scalar": "s"}],
        ["f", [{"float": "nan"}, {"float": "-inf"}, {"complex": ["nan", 1.0]}, {"bytes": "eA=="}]],
        ["t", {"tuple": [1, {"Size": [2, 0]}, {"dtype": "torch.float16"}, {"device": "cuda:1"}]}],
        [{"tuple": [1, {"tuple": ["k"]}]}, {"OrderedDict": [[None, True]]}],
    ]
}


def test_older_checkpoints() -> None:
    """What earlier releases wrote is restored."""
    w = torch.ones(2)
    found = nested.restore(OLD, {"w": w, "a": torch.arange(3), "s": torch.tensor(1.5)})
    assert found["w"] is w
    assert np.array_equal(np.arange(3), found["a"])
    assert (np.float64, 1.5) == (type(there_and_back(np.float64(found["s"]))), found["s"])
    assert repr([float("nan"), float("-inf"), complex(float("nan"), 1), b"x"]) == repr(found["f"])
    assert (1, torch.Size([2, 0]), torch.float16, torch.device("cuda:1")) == found["t"]
    assert OrderedDict({None: True}) == found[1, ("k",)]
    assert nested.plain_values(OLD) == 10


def test_every_long_number() -> None:
    """The limit of Python's own conversion, and what lies around it."""
    digits = sys.get_int_max_str_digits()
    numbers = [10 ** (digits - 1), 10**digits, -(10**digits), 2**8192, 2**8192 - 1]
    assert numbers == there_and_back(numbers)
    assert {10**digits: 1} == there_and_back({10**digits: 1})
