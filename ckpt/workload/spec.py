"""Specifies the state that a study saves (a model, or some of its tensors, with or without Adam's) and its layout.

The layout of Llama-like models is computed here without torch, and a test compares it with what transformers builds.
transformers computes the layout of all other models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Strict

from ckpt.errors import CheckpointError
from ckpt.state.dtypes import BYTES_PER_ELEMENT, name_of
from ckpt.state.layout import Layout, TensorLayout, state_bytes
from ckpt.state.sharding import Sharding

PRESETS = {file.stem: file for file in sorted((Path(__file__).parent / "models").glob("*.json"))}

Count = Annotated[int, Strict()]
"""An integer; a study file with `true` or `"3"` is rejected."""

FractionOf = Annotated[float, Strict(), Field(gt=0, le=1)]
"""A fraction above 0 and up to 1; a study file with `true` or `"0.5"` is rejected."""

DType = Literal["float16", "bfloat16", "float32"]

MASTER, EXP_AVG, EXP_AVG_SQ = "optimizer.master.", "optimizer.exp_avg.", "optimizer.exp_avg_sq."
"""The prefixes of the three tensors that mixed-precision Adam keeps for each parameter."""


@dataclass(frozen=True)
class StateSpec:
    """Which state to build: a study's `[state]` table.

    Attributes:
        model: a preset, the path of a `config.json`, or of a Hugging Face directory (then with its weights).
        tensors: the number of the model's first tensors to keep, in `state_dict` order; None for all.
        dtype: of the floating-point tensors; None for the one in the model's configuration.
        values: `normal-bfloat16` is normal(0, 0.02) rounded to bfloat16, as trained weights are;
            `normal` is not rounded. Ignored for real weights.
        seed: of the generated values.
        sharding: how the state is divided, if there are several ranks.
        contents: `weights` is the model; `training` adds what mixed-precision Adam keeps for every parameter, in
            float32: master weights, `exp_avg` and `exp_avg_sq`. With 16-bit weights that makes 14 bytes per parameter,
            as MLPerf Storage counts. The added tensors are generated, even with real weights.
        fraction: keep as many of the model's first tensors as hold at most this fraction of its bytes, but at least
            one; None for all. `tensors` and `fraction` select from the model, before `contents` adds to it.
    """

    # pydantic reads it when it validates a study file.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    model: str
    tensors: Count | None = None
    dtype: DType | None = None
    values: Literal["normal-bfloat16", "normal"] = "normal-bfloat16"
    seed: Count = 0
    sharding: Sharding = "dim0"
    contents: Literal["weights", "training"] = "weights"
    fraction: FractionOf | None = None

    @property
    def directory(self) -> Path | None:
        """The Hugging Face directory with real weights; None if the model is given otherwise."""
        path = Path(self.model).expanduser()
        return path if self.model not in PRESETS and path.is_dir() else None


def read_config(spec: StateSpec) -> dict[str, Any]:
    """Read the model's transformers configuration.

    Raises:
        CheckpointError: if the model is neither a preset nor a readable configuration.
    """
    path = PRESETS.get(spec.model) or Path(spec.model).expanduser()
    if path.is_dir():
        path /= "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"model {spec.model!r} is neither a preset ({', '.join(PRESETS)}) nor the path of a config.json "
            f"or of a Hugging Face directory that holds one; looked for {path}"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read the model's configuration {path}: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(
            f"{path} is not a transformers configuration: it has no 'model_type'. Give the config.json in the "
            "directory of a model's weights."
        )
    return config


def config_dtype(spec: StateSpec, config: dict[str, Any]) -> str:
    """Return the dtype of floating-point tensors: from the spec, else from the configuration, else float32."""
    return str(spec.dtype or config.get("dtype") or config.get("torch_dtype") or "float32")


def layout_of(spec: StateSpec) -> Layout:
    """Return the layout of the specified state, in `state_dict` order.

    Raises:
        CheckpointError: if the model is unknown, or has fewer tensors than the spec asks for.
    """
    config = read_config(spec)
    dtype = config_dtype(spec, config)
    if dtype not in BYTES_PER_ELEMENT:
        raise CheckpointError(
            f"model {spec.model!r} has dtype {dtype!r}; expected one of {', '.join(BYTES_PER_ELEMENT)}"
        )
    if config["model_type"] == "llama":
        try:
            layout = tuple(_llama(config, dtype))
        except KeyError as error:
            raise CheckpointError(f"the configuration of {spec.model!r} lacks the key {error}") from None
    else:
        layout = _from_transformers(spec)
    return state_of(layout, spec)


def state_of(model: Layout, spec: StateSpec) -> Layout:
    """Return the layout of a state of a model with these tensors: those that the spec selects, and the optimizer's.

    Raises:
        CheckpointError: if the spec asks for more tensors than the model has, or for none.
    """
    kept = _first_tensors(model, spec)
    return kept if spec.contents == "weights" else (*kept, *_optimizer(kept))


def _first_tensors(model: Layout, spec: StateSpec) -> Layout:
    if spec.tensors is not None and spec.fraction is not None:
        raise CheckpointError(
            f"state.tensors = {spec.tensors} and state.fraction = {spec.fraction} contradict each other: give one"
        )
    if spec.tensors is not None and not 1 <= spec.tensors <= len(model):
        raise CheckpointError(
            f"state.tensors = {spec.tensors}, but {spec.model!r} has {len(model)} tensors: "
            f"give a number from 1 to {len(model)}, or leave the key out for all of them"
        )
    if spec.fraction is None:
        return model[: spec.tensors]
    if not 0 < spec.fraction <= 1:
        raise CheckpointError(
            f"state.fraction = {spec.fraction}: give a number above 0 and up to 1, or leave the key out for all tensors"
        )
    whole_bytes = max(1, state_bytes(model))
    ends = accumulate(tensor.size_bytes if tensor.same_as is None else 0 for tensor in model)
    return model[: max(1, sum(end / whole_bytes <= spec.fraction for end in ends))]


def _optimizer(model: Layout) -> Iterator[TensorLayout]:
    """Yield the three tensors that Adam keeps for each floating-point tensor; tied ones count once."""
    for tensor in model:
        if tensor.same_as is None and "float" in tensor.dtype:
            for kind in (MASTER, EXP_AVG, EXP_AVG_SQ):
                yield TensorLayout(kind + tensor.name, tensor.shape, "float32")


def meta_layout(spec: StateSpec) -> Layout:
    """Return the layout of the whole model as transformers builds it, without allocating memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_config(spec)
    dtype = config_dtype(spec, config)
    model_type = config.pop("model_type")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(model_type, **config), dtype=getattr(torch, dtype)
            )
    except Exception as error:  # transformers raises errors of many types
        raise CheckpointError(f"transformers can't build {spec.model!r}: {error}") from error
    first: dict[int, str] = {}
    layout = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        earlier = first.setdefault(id(tensor), name)
        layout.append(TensorLayout(name, tuple(tensor.shape), name_of(tensor), earlier if earlier != name else None))
    return tuple(layout)


def _from_transformers(spec: StateSpec) -> Layout:
    try:
        return meta_layout(spec)
    except ImportError as error:
        raise CheckpointError(
            f"only transformers knows the tensors of {spec.model!r}, and {error.name} isn't installed here: install "
            "it, run this where it is installed, or use a Llama-like model"
        ) from None


def _llama(config: dict[str, Any], dtype: str) -> Iterator[TensorLayout]:
    """Yield the tensors of `LlamaForCausalLM` in the order of its `state_dict`."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    intermediate, heads = config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    key_value = (config.get("num_key_value_heads") or heads) * head
    query = heads * head
    attention_bias, mlp_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))

    def linear(name: str, out: int, into: int, *, bias: bool) -> Iterator[TensorLayout]:
        yield TensorLayout(f"{name}.weight", (out, into), dtype)
        if bias:
            yield TensorLayout(f"{name}.bias", (out,), dtype)

    yield TensorLayout("model.embed_tokens.weight", (vocabulary, hidden), dtype)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield from linear(f"{layer}.self_attn.q_proj", query, hidden, bias=attention_bias)
        yield from linear(f"{layer}.self_attn.k_proj", key_value, hidden, bias=attention_bias)
        yield from linear(f"{layer}.self_attn.v_proj", key_value, hidden, bias=attention_bias)
        yield from linear(f"{layer}.self_attn.o_proj", hidden, query, bias=attention_bias)
        yield from linear(f"{layer}.mlp.gate_proj", intermediate, hidden, bias=mlp_bias)
        yield from linear(f"{layer}.mlp.up_proj", intermediate, hidden, bias=mlp_bias)
        yield from linear(f"{layer}.mlp.down_proj", hidden, intermediate, bias=mlp_bias)
        yield TensorLayout(f"{layer}.input_layernorm.weight", (hidden,), dtype)
        yield TensorLayout(f"{layer}.post_attention_layernorm.weight", (hidden,), dtype)
    yield TensorLayout("model.norm.weight", (hidden,), dtype)
    tied = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else None
    yield TensorLayout("lm_head.weight", (vocabulary, hidden), dtype, tied)
