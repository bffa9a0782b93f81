"""Strategies by name, and their options: what is unknown is refused, and a label names what isn't at its default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ckpt.errors import ContradictionError, UnknownStrategyError
from ckpt.registry import create, names, strategy_class


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("torch_save", {}, "torch_save"),
        ("torch_save", {"mmap": False}, "torch_save"),
        ("torch_save", {"mmap": True, "crc": False}, "torch_save+crc=False+mmap=True"),
        ("tensorstore_basic", {"compressor": "none"}, "tensorstore_basic+compressor=none"),
        ("safetensors_tuned", {"checksum": False, "shard_mib": 1}, "safetensors_tuned+shard_mib=1+checksum=False"),
    ],
)
def test_label(name: str, options: dict[str, Any], label: str) -> None:
    """The label is the name and the options that differ from the default, in the order of the class."""
    assert label == create(name, options).label


def test_a_former_name() -> None:
    """Studies, plans and checkpoints that have a strategy's former name get the strategy, with its name of today."""
    former = create("safetensors_direct", {"shard_mib": 1})
    assert former == create("safetensors_tuned", {"shard_mib": 1})
    assert former.label == "safetensors_tuned+shard_mib=1"


@pytest.mark.parametrize("name", names())
def test_unknown_option(name: str) -> None:
    """A misspelt option is an error that names the option and lists those that exist."""
    with pytest.raises(UnknownStrategyError) as caught:
        create(name, {"no_such_option": 1})
    known = [field.name for field in fields(strategy_class(name))] or ["none"]
    assert "no_such_option" in str(caught.value)
    assert all(option in str(caught.value).partition("Its options: ")[2] for option in known)


@pytest.mark.parametrize("options", [["a list"], "text", {1: 2}, {"": None}, {"name": "x"}, {"syncs_files": True}])
@pytest.mark.parametrize("name", names())
def test_nonsense_options(name: str, options: Any) -> None:
    """Options of the wrong kind, and attributes that are no options, are refused."""
    with pytest.raises(UnknownStrategyError, match=f"strategy {name}: "):
        create(name, options)


@pytest.mark.parametrize("name", ["", "torch-save", "TorchSave", "_zarr_per_parameter", "../torch_save", None, 1])
def test_unknown_strategy(name: Any) -> None:
    """An unknown name, and a module that is no strategy, is an error that lists the strategies."""
    with pytest.raises(UnknownStrategyError, match=", ".join(names())):
        create(name)


@pytest.mark.parametrize(("name", "options"), [("hdf5", {"chunk_mib": 4})])
def test_contradictions(name: str, options: dict[str, Any]) -> None:
    """Options that make no sense together are refused, with what to do."""
    with pytest.raises(ContradictionError, match=r"leave .* out"):
        create(name, options)


@pytest.mark.parametrize("value", ["gzip", "", None, 0, True, ["none"]])
def test_unknown_value_of_an_option(value: Any) -> None:
    """A value that an option doesn't have is an error that lists the values."""
    with pytest.raises(UnknownStrategyError, match=r"compressor = .*'default' or 'none'"):
        create("tensorstore_basic", {"compressor": value})


def test_an_option_of_two_types() -> None:
    """A value of neither has one message, which names the option once and what both types take."""
    with pytest.raises(
        UnknownStrategyError, match=r"tuned: shard_mib = 'many': .* integer, or input should be 'auto'\."
    ):
        create("safetensors_tuned", {"shard_mib": "many"})
