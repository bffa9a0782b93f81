"""Classes of the user's own: registered, saved, rebuilt; and never imported because a file says so."""

from __future__ import annotations

import enum
import json
import sys
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import torch

import ckpt
from ckpt.errors import CheckpointError
from ckpt.tree import converters, nested


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "of_type", {})
    monkeypatch.setattr(converters, "of_name", {})


Old = namedtuple("Old", "a")  # noqa: PYI024  # as older code has them


class Level(enum.IntEnum):
    """An enum that `==` takes for a number."""

    LOW = 1


class Flags(enum.Flag):
    """Several at once have no name of their own."""

    A = 1
    B = 2


class Point(NamedTuple):
    """A named tuple, of a tensor and a number."""

    x: torch.Tensor
    y: int = 0


class Odd(Old):
    """A named tuple that makes itself in a way of its own, and may have attributes."""

    def __new__(cls, a: int) -> Self:
        """Doubled."""
        return super().__new__(cls, 2 * a)


@dataclass
class Config:
    """What a training run is made with; it counts how often it was made."""

    lr: float
    name: str = "x"
    steps: list[int] = field(default_factory=list)
    derived: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.lr *= 2
        self.derived = self.lr


@dataclass(frozen=True, slots=True)
class Key:
    """A frozen one with slots: a key of a dict."""

    a: int


class Range:
    """A class like any other."""

    def __init__(self, low: int, high: int) -> None:
        self.bounds = low, high


def through(state: Any) -> Any:
    """A state through a JSON text."""
    tensors, tied, rest = nested.flatten(state)
    return nested.restore(
        json.loads(json.dumps(rest)), tensors | {name: tensors[owner] for name, owner in tied.items()}
    )


def test_what_says_itself_what_it_consists_of(tmp_path: Path) -> None:
    """Enums, named tuples and dataclasses need no more than to be registered; also as keys, and through a file."""
    for cls in (Level, Flags, Point, Old, Odd, Config, Key):
        assert ckpt.register(cls) is cls
    state = {
        "level": Level.LOW,
        "flags": Flags.A | Flags.B,
        "point": Point(torch.ones(2), 3),
        "old": Old([Level.LOW]),
        "odd": Odd(2),
        "config": Config(0.5, steps=[1]),
        Key(1): Key(2),
        (Level.LOW, 1): 1,
    }
    ckpt.save(state, tmp_path / "run")
    found = ckpt.load(tmp_path / "run")
    assert list(state) == list(found)
    for key in state.keys() - {"point"}:
        assert (type(state[key]), state[key]) == (type(found[key]), found[key])
    assert type(found["point"]) is Point
    assert torch.equal(torch.ones(2), found["point"].x)
    assert ["point.x"] == [each.name for each in ckpt.inspect(tmp_path / "run").tensors or ()]
    assert ckpt.inspect(tmp_path / "run").plain_values == 11


def test_any_other_class() -> None:
    """With converters, whatever the class is; what stands at two places is one object again."""
    ckpt.register(Range, lambda value: list(value.bounds), lambda plain: Range(*plain))
    ckpt.register(np.ma.MaskedArray, lambda a: [a.data, np.ma.getmaskarray(a)], lambda p: np.ma.MaskedArray(*p))
    value = Range(1, 2)
    found = through({"a": value, "b": [value], "m": np.ma.masked_array([1, 2], [False, True])})
    assert found["a"].bounds == (1, 2)
    assert found["a"] is found["b"][0]
    assert [1, None] == found["m"].tolist()


@pytest.mark.parametrize("value", [Level.LOW, Old(1), Key(1), Range(1, 2)], ids=["enum", "tuple", "dataclass", "other"])
def test_what_is_not_registered(value: Any) -> None:
    """The refusal names the place, the class, and the call that helps."""
    name = type(value).__qualname__
    more = ", to_plain, from_plain" if name == "Range" else ""
    with pytest.raises(CheckpointError) as caught:
        nested.flatten({"a": [value]})
    assert f"the state's 'a.0' is of type {type(value).__module__}.{name}" in str(caught.value)
    assert f"ckpt.register({name}{more})" in str(caught.value)


def test_subclasses_are_not_registered() -> None:
    """A subclass of a registered class would come back as its base: it is another class."""
    ckpt.register(Config)

    @dataclass
    class Special(Config):
        pass

    with pytest.raises(CheckpointError, match=r"Special.*ckpt\.register\(.*Special\)"):
        nested.flatten([Special(1.0)])


def test_a_class_that_moved(tmp_path: Path) -> None:
    """What a script saved is in `__main__`; under that name another program loads it."""

    @dataclass
    class Config:
        a: int

    Config.__module__, Config.__qualname__ = "__main__", "Config"
    ckpt.register(Config)
    ckpt.save(Config(1), tmp_path / "run")
    converters.of_name.clear()
    with pytest.raises(
        CheckpointError, match=r"__main__\.Config, .* with name='__main__\.Config' if the class has moved"
    ):
        ckpt.load(tmp_path / "run")
    ckpt.register(Key, name="__main__.Config")
    assert Key(1) == ckpt.load(tmp_path / "run")


def test_a_load_without_the_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message names the class and the call; nothing that the file names is imported, nor any class used."""
    ckpt.register(Key)
    ckpt.save({"key": Key(1), "w": torch.ones(1)}, tmp_path / "run")
    monkeypatch.setattr(converters, "of_name", {})
    with pytest.raises(
        CheckpointError,
        match=r"contains an instance of .*\.Key, which .* hasn't registered: call ckpt\.register\(Key\)",
    ):
        ckpt.load(tmp_path / "run")
    assert list(ckpt.load(tmp_path / "run", names=["w"])) == ["w"]
    for name in ("antigravity.fly", "os.system", "builtins.eval", ["x"], None):
        with pytest.raises(CheckpointError, match="hasn't registered"):
            nested.restore({"registered": [name, "1"]}, {})
    assert "antigravity" not in sys.modules


def test_classes_that_changed() -> None:
    """Fields that are others now, members that are gone, converters that fail: one message with the class's name."""
    for cls in (Config, Level, Old):
        ckpt.register(cls)
    name = converters.name_of(Config)
    with pytest.raises(CheckpointError, match=r"Config can't be rebuilt: .* its fields are .* and \['lr'\] in the"):
        nested.restore({"registered": [name, {"dict": [["lr", 1.0]]}]}, {})
    for cls, plain in [(Level, "HIGH"), (Old, {"dict": [["b", 1]]}), (Old, [1]), (Config, 3)]:
        with pytest.raises(CheckpointError, match=f"{cls.__qualname__} can't be rebuilt"):
            nested.restore({"registered": [converters.name_of(cls), plain]}, {})
    ckpt.register(Range, lambda value: value.missing, Range)
    with pytest.raises(CheckpointError, match=r"the state's 'a\.0': .*Range can't be saved: AttributeError"):
        nested.flatten({"a": [Range(1, 2)]})
    ckpt.register(Odd)
    for value in (Config(1.0), Odd(1)):
        value.more = 1  # type: ignore[attr-defined]  # what is tested
        with pytest.raises(CheckpointError, match=r"attributes that aren't fields \(more\)"):
            nested.flatten(value)
    ckpt.register(Range, lambda value: value, Range)
    with pytest.raises(CheckpointError, match="contains itself"):
        nested.flatten(Range(1, 2))


@pytest.mark.parametrize("cls", [dict, object, int])
def test_pythons_own_classes(cls: type) -> None:
    """They can't be registered: what they are is settled."""
    with pytest.raises(CheckpointError, match="can't be registered"):
        ckpt.register(cls)


def test_converters_that_are_missing() -> None:
    """A class that doesn't say what it consists of needs both converters."""

    @dataclass
    class Mapping(dict[str, int]):
        a: int = 1

    for cls, given in [(Range, ()), (Range, (list,)), (Mapping, ())]:
        with pytest.raises(CheckpointError, match="needs converters"):
            ckpt.register(cls, *given)  # type: ignore[type-var]  # any class
