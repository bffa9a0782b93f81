"""What a state consists of is known without torch, and is what transformers builds."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from ckpt.errors import CheckpointError
from ckpt.state.layout import Layout, TensorLayout, parameters, state_bytes
from ckpt.workload import building, spec
from ckpt.workload.spec import PRESETS, StateSpec, layout_of, state_of

WriteConfig = Callable[..., str]


def built_by_transformers(path: str) -> list[TensorLayout]:
    """The tensors of the model that transformers allocates for a configuration."""
    config = json.loads(Path(path).read_text())
    dtype = getattr(torch, config["dtype"])
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    first: dict[int, str] = {}
    found = []
    for name, tensor in model.state_dict().items():
        owner = first.setdefault(tensor.data_ptr(), name)
        dtype_name = str(tensor.dtype).removeprefix("torch.")
        found.append(TensorLayout(name, tuple(tensor.shape), dtype_name, owner if owner != name else None))
    return found


@st.composite
def llama_changes(draw: st.DrawFn) -> dict[str, Any]:
    """What may differ between Llama-like models."""
    heads, head = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 4))
    groups = [each for each in range(1, heads + 1) if heads % each == 0]
    changes = {
        "vocab_size": draw(st.integers(2, 40)),
        "hidden_size": heads * head,
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(0, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([*groups, None])),
        "head_dim": draw(st.sampled_from([2, 6, None])),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float16", "bfloat16", "float32"])),
    }
    optional = ["num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"]
    left_out = draw(st.sets(st.sampled_from(optional)))
    return {key: value for key, value in changes.items() if key not in left_out}


@settings(max_examples=40)
@given(changes=llama_changes())
def test_llama_is_what_transformers_builds(write_config: WriteConfig, changes: dict[str, Any]) -> None:
    """Names in `state_dict` order, shapes, dtypes and ties, with grouped queries, biases and odd heads."""
    path = write_config(**changes)
    assert built_by_transformers(path) == list(layout_of(StateSpec(path)))


def test_another_model_is_asked_of_transformers(write_config: WriteConfig) -> None:
    """A GPT-2, whose output layer is tied, has the layout of the model that transformers builds."""
    path = write_config(model_type="gpt2", n_layer=2, n_head=2, n_positions=16)
    layout = layout_of(StateSpec(path))
    assert built_by_transformers(path) == list(layout)
    assert layout[-1] == TensorLayout("lm_head.weight", (50, 16), "float16", "transformer.wte.weight")


def sizes(layout: Layout) -> dict[str, int]:
    """What a plan counts."""
    return {"tensors": len(layout), "parameters": parameters(layout), "bytes": state_bytes(layout)}


PARAMETERS = {
    "llama-50k": (12, 51_392),
    "llama-15m": (57, 13_693_824),
    "openllama-3b": (237, 3_426_473_600),
    "llama-3-8b": (291, 8_030_261_248),
    "llama-3-70b": (723, 70_553_706_496),
    "llama-3-405b": (1137, 405_853_388_800),
}
"""Tensors and parameters of each preset: our own small ones, and the rest as those who published them count."""


@pytest.mark.parametrize("model", PRESETS)
def test_preset(model: str) -> None:
    """Every preset has its number of tensors and parameters, in 16 bits, and is as transformers builds it."""
    layout = layout_of(StateSpec(model))
    tensors, count = PARAMETERS[model]
    assert {"tensors": tensors, "parameters": count, "bytes": 2 * count} == sizes(layout)
    assert spec.meta_layout(StateSpec(model)) == layout


def test_a_preset_is_built_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_preset` compares each preset's layout with what transformers builds, so that no job has to."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = StateSpec("llama-50k", tensors=2)
    assert {tensor.name for tensor in layout_of(spec)} == building.build(spec).keys()


@pytest.mark.parametrize(("model", "gib"), [("llama-3-8b", 104.7), ("llama-3-70b", 919.9), ("llama-3-405b", 5291.7)])
def test_training_state_of_a_preset(model: str, gib: float) -> None:
    """What training keeps of a 16-bit model is 14 bytes a parameter: 104.7 GiB of Llama 3 8B."""
    weights, training = layout_of(StateSpec(model)), layout_of(StateSpec(model, contents="training"))
    assert 14 * parameters(weights) == state_bytes(training)
    assert gib == round(state_bytes(training) / 2**30, 1)
    assert len(weights) * 4 == len(training)


def test_training_state(write_config: WriteConfig) -> None:
    """The model under its own names, then three float32 copies of every tensor, tied ones once; a cut model's too."""
    spec = StateSpec(write_config(tie_word_embeddings=True))
    weights = layout_of(spec)
    owned = [tensor for tensor in weights if tensor.same_as is None]
    assert len(weights) - 1 == len(owned)
    kinds = ("master", "exp_avg", "exp_avg_sq")
    copies = [TensorLayout(f"optimizer.{kind}.{each.name}", each.shape, "float32") for each in owned for kind in kinds]
    assert (*weights, *copies) == layout_of(replace(spec, contents="training"))
    assert (*weights[:2], *copies[:6]) == layout_of(replace(spec, contents="training", tensors=2))


def test_whole_numbers_are_not_trained(write_config: WriteConfig) -> None:
    """A tensor of integers, such as a table of positions, is no parameter."""
    model = (TensorLayout("positions", (4,), "int64"), TensorLayout("weight", (4,), "bfloat16"))
    spec = StateSpec(write_config(), contents="training")
    added = [tensor.name for tensor in state_of(model, spec)[2:]]
    assert ["optimizer.master.weight", "optimizer.exp_avg.weight", "optimizer.exp_avg_sq.weight"] == added


def test_training_state_is_planned_without_memory() -> None:
    """The 5.7 TB of the 405B's training state are 4548 small objects to a plan."""
    tracemalloc.start()
    layout = layout_of(StateSpec("llama-3-405b", contents="training"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4548 == len(layout)
    assert peak_bytes < 10e6


@given(
    sizes=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8),
    fraction=st.floats(0, 1, exclude_min=True),
    ending=st.integers(0, 7),
)
def test_fraction(sizes: list[tuple[int, bool]], fraction: float, ending: int) -> None:
    """As many of the first tensors as make up at most that share of the bytes, at least one; tied ones weigh nothing.
    The share of just so many tensors gives those, and 1 gives all.
    """
    model = tuple(
        TensorLayout(str(number), (size,), "int8", "0" if tied and number else None)
        for number, (size, tied) in enumerate(sizes)
    )
    whole_bytes = max(1, state_bytes(model))
    kept = state_of(model, StateSpec("any", fraction=fraction))
    assert model[: len(kept)] == kept != ()
    assert len(kept) == 1 or state_bytes(kept) / whole_bytes <= fraction
    if len(kept) < len(model):
        assert state_bytes(model[: len(kept) + 1]) / whole_bytes > fraction
    assert model == state_of(model, StateSpec("any", fraction=1))
    first = model[: ending + 1]
    if state_bytes(first):
        again = state_of(model, StateSpec("any", fraction=state_bytes(first) / whole_bytes))
        assert (first, state_bytes(first)) == (again[: len(first)], state_bytes(again))


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_fraction_out_of_range(fraction: float, write_config: WriteConfig) -> None:
    """Asking for nothing, for more than all, or for no number, is an error that says what is valid."""
    with pytest.raises(CheckpointError, match=rf"state.fraction = {fraction}: give a number above 0 and up to 1"):
        layout_of(StateSpec(write_config(), fraction=fraction))


def test_tensors_and_fraction(write_config: WriteConfig) -> None:
    """A number of tensors and a share of the bytes contradict each other."""
    with pytest.raises(CheckpointError, match=r"state.tensors = 3 and state.fraction = 0.5 contradict each other"):
        layout_of(StateSpec(write_config(), tensors=3, fraction=0.5))


@pytest.mark.parametrize("fraction", [True, "0.5", float("nan"), float("inf"), 0, 1.5])
def test_fraction_in_a_study(fraction: Any) -> None:
    """A study's fraction is a number above 0 and up to 1, not something that looks like one."""
    with pytest.raises(ValidationError, match="fraction"):
        TypeAdapter(StateSpec).validate_python({"model": "llama-15m", "fraction": fraction})
    assert 1 == TypeAdapter(StateSpec).validate_python({"model": "llama-15m", "fraction": 1}).fraction


def test_the_state_of_the_original_comparison() -> None:
    """The first 100 tensors have 2.73 GiB, as in the original OpenLLaMA-3B comparison: the embedding and 11 layers."""
    layout = layout_of(StateSpec("openllama-3b", tensors=100))
    expected = {"tensors": 100, "parameters": 1_465_414_400, "bytes": 2_930_828_800}
    assert expected == sizes(layout)
    assert layout[0].name == "model.embed_tokens.weight"
    assert layout[-1].name == "model.layers.10.post_attention_layernorm.weight"


@pytest.mark.parametrize(
    ("asked", "keys", "expected"),
    [
        (None, {"dtype": "bfloat16"}, "bfloat16"),
        (None, {"dtype": None, "torch_dtype": "bfloat16"}, "bfloat16"),
        (None, {"dtype": None}, "float32"),
        ("float32", {"dtype": "bfloat16"}, "float32"),
    ],
    ids=["configured", "configured by the older key", "neither", "asked for"],
)
def test_dtype(asked: Any, keys: dict[str, Any], expected: str, write_config: WriteConfig) -> None:
    """The study's dtype counts, else the configuration's, else float32; the built state agrees."""
    spec = StateSpec(write_config(**keys), dtype=asked)
    assert {expected} == {tensor.dtype for tensor in layout_of(spec)}
    assert {f"torch.{expected}"} == {str(tensor.dtype) for tensor in building.build(spec).values()}


def test_tied_weights_count_once(write_config: WriteConfig) -> None:
    """Tied weights are one set of bytes, however many names they have."""
    tied = layout_of(StateSpec(write_config(tie_word_embeddings=True)))
    untied = layout_of(StateSpec(write_config(tie_word_embeddings=False)))
    assert len(untied) == len(tied)
    assert parameters(untied) - 50 * 16 == parameters(tied)
    assert state_bytes(untied) - 50 * 16 * 2 == state_bytes(tied)


@pytest.mark.parametrize("tensors", [0, -1, 22])
def test_tensors_out_of_range(tensors: int, write_config: WriteConfig) -> None:
    """Asking for no tensor, or for more than there are, is an error that says how many there are."""
    spec = StateSpec(write_config(), tensors=tensors)
    with pytest.raises(CheckpointError, match=f"state.tensors = {tensors}, .* has 21 tensors"):
        layout_of(spec)


def test_unknown_model(tmp_path: Path) -> None:
    """A model that is nowhere is an error that lists the presets and says where it was looked for."""
    for model, looked_for in [("openllama-4b", "openllama-4b"), (str(tmp_path), str(tmp_path / "config.json"))]:
        with pytest.raises(CheckpointError, match=rf"openllama-3b.*looked for {re.escape(looked_for)}"):
            layout_of(StateSpec(model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "no 'model_type'"),
        (b"[]", "no 'model_type'"),
        (b"{", "can't read the model's configuration"),
        (b"\xff", "can't read the model's configuration"),
        (b'{"model_type": "llama"}', "lacks the key 'hidden_size'"),
        (b'{"model_type": "gpt2", "dtype": "float17"}', "dtype 'float17'"),
        (b'{"model_type": "no_such_model"}', "transformers can't build"),
    ],
)
def test_bad_configuration(content: bytes, message: str, tmp_path: Path) -> None:
    """A file that describes no model is an error that names the file and what is wrong with it."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s)(?=.*{re.escape(str(path))}).*{message}"):
        layout_of(StateSpec(str(path)))


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_where_a_library_is_missing(missing: str, write_config: WriteConfig, fresh_python: Callable[..., str]) -> None:
    """Without torch or transformers a Llama is planned all the same; for another model the message says what is
    missing.
    """
    code = (
        "import sys; from ckpt.workload import spec\n"
        "missing, llama, other = sys.argv[1:]\n"
        "sys.modules[missing] = None\n"
        "print(len(spec.layout_of(spec.StateSpec(llama))))\n"
        "try: spec.layout_of(spec.StateSpec(other))\n"
        "except spec.CheckpointError as error: print(error)\n"
    )
    printed = fresh_python(code, missing, write_config(), write_config(model_type="gpt2"))
    assert printed.startswith("21\n")
    assert "only transformers knows the tensors of" in printed
    assert f"and {missing} isn't installed here" in printed
