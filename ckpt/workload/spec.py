"""Which state a study saves: a model, cut and completed as the study asks, and the tensors that it consists of.

The layout of Llama-like models is computed here, without torch; any other model's is asked of transformers. A test
holds the computation to what transformers builds.
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

PRESETS = {file.stem: file for file in sorted((Path(__file__).parent / "models").glob("*.json"))}

Count = Annotated[int, Strict()]
"""A whole number, and neither `true` nor `"3"`, where a study is validated."""

FractionOf = Annotated[float, Strict(), Field(gt=0, le=1)]
"""More than nothing and at most all, and neither `true` nor `"0.5"`, where a study is validated."""

DType = Literal["float16", "bfloat16", "float32"]

Sharding = Literal["dim0", "tensors", "replicated"]
"""How ranks share a state; `ckpt.state.sharding` says what each means."""

MASTER, EXP_AVG, EXP_AVG_SQ = "optimizer.master.", "optimizer.exp_avg.", "optimizer.exp_avg_sq."
"""What stands before a parameter's name in the names of what mixed-precision Adam keeps of it."""


@dataclass(frozen=True)
class StateSpec:
    """Which state to build: a study's `[state]` table.

    Attributes:
        model: a preset, the path of a `config.json`, or of a Hugging Face directory (then with its weights).
        tensors: only the model's first so many, in `state_dict` order; None for all.
        dtype: of the floating-point tensors; None for the one that the model's configuration names.
        values: `normal-bfloat16` is normal(0, 0.02) rounded to bfloat16, as trained weights are;
            `normal` is not rounded. Real weights ignore it.
        seed: of the generated values.
        sharding: how the ranks share the state, if there are several.
        contents: `weights` is the model; `training` adds what mixed-precision Adam keeps of every parameter, in
            float32: master weights, `exp_avg` and `exp_avg_sq`. With 16-bit weights those are 14 bytes a parameter, as
            MLPerf Storage counts. These are always generated, beside real weights too.
        fraction: only the model's first tensors, as many as have together at most this share of its bytes, but at
            least one; None for all. Both are cut from the model, before `contents` adds to it.
    """

    # Read by pydantic, where a study file is validated.
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
        """The Hugging Face directory with real weights, if the model is one."""
        path = Path(self.model).expanduser()
        return path if self.model not in PRESETS and path.is_dir() else None


def read_config(spec: StateSpec) -> dict[str, Any]:
    """The model's transformers configuration.

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
            f"{path} is no transformers configuration: it has no 'model_type'. Expected the config.json that "
            "lies beside a model's weights."
        )
    return config


def config_dtype(spec: StateSpec, config: dict[str, Any]) -> str:
    """The dtype of the floating-point tensors: the spec's, else the configuration's, else float32."""
    return str(spec.dtype or config.get("dtype") or config.get("torch_dtype") or "float32")


def layout_of(spec: StateSpec) -> Layout:
    """The tensors that the state will hold, in `state_dict` order.

    Raises:
        CheckpointError: if the model is unknown, or has fewer tensors than asked for.
    """
    config = read_config(spec)
    dtype = config_dtype(spec, config)
    if dtype not in BYTES_PER_ELEMENT:
        raise CheckpointError(f"dtype {dtype!r} of model {spec.model!r} is none of {', '.join(BYTES_PER_ELEMENT)}")
    if config["model_type"] == "llama":
        try:
            layout = tuple(_llama(config, dtype))
        except KeyError as error:
            raise CheckpointError(f"the configuration of {spec.model!r} lacks the key {error}") from None
    else:
        layout = _from_transformers(spec)
    return state_of(layout, spec)


def state_of(model: Layout, spec: StateSpec) -> Layout:
    """What a state consists of whose model has these tensors: those that are asked for, and the optimizer's.

    Raises:
        CheckpointError: if more or less of the model is asked for than there is.
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
    """Three copies of every parameter, tied ones once: of each tensor that isn't made of integers."""
    for tensor in model:
        if tensor.same_as is None and "float" in tensor.dtype:
            for kind in (MASTER, EXP_AVG, EXP_AVG_SQ):
                yield TensorLayout(kind + tensor.name, tensor.shape, "float32")


def meta_layout(spec: StateSpec) -> Layout:
    """All tensors of the model, from transformers, without allocating any."""
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
    except Exception as error:  # transformers raises what it likes at a configuration that it can't build
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
            f"the tensors of {spec.model!r} are known to transformers only, and {error.name} isn't installed "
            "here: run this where it is, or use a Llama-like model"
        ) from None


def _llama(config: dict[str, Any], dtype: str) -> Iterator[TensorLayout]:
    """The tensors of `LlamaForCausalLM`, in the order of its `state_dict`."""
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
