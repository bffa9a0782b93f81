"""The values of a state's elements, seeded or a model's real weights, in blocks.

Each block can be generated without the others, so that a rank builds and checks its share in little more memory than
the share takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ckpt.errors import CheckpointError
from ckpt.formats.safetensors_files import headers_of
from ckpt.state.dtypes import torch_dtype
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Shard
from ckpt.workload.spec import EXP_AVG, EXP_AVG_SQ, MASTER, StateSpec, config_dtype, read_config

BLOCK_ELEMENTS = 1 << 20
"""The number of elements in a block. Blocks are generated and hashed independently, so that all cores can work
and a part of a tensor can be made without the rest. Changing this number changes every value and digest."""

Block = Callable[[TensorLayout, int], torch.Tensor]
"""Returns the values of a tensor's block, by its number from 0: 1-D, in a dtype to convert to the tensor's."""

_STANDARD_DEVIATION = 0.02

_GRADIENT_STANDARD_DEVIATION = 1e-4
"""The gradients' standard deviation in a large model in training. Adam averages gradients over about ten steps, and
their squares, which are never negative."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The overlap of a rank's share with one block of a tensor."""

    tensor: TensorLayout
    number: int
    """The block's number, from 0."""
    held: slice
    """The piece's position in the share's elements of the tensor."""
    within: slice
    """The piece's position in the block."""
    is_whole: bool
    """Whether the piece is the whole block."""


def pieces(share: tuple[Shard, ...]) -> Iterator[Piece]:
    """Yield the pieces of a share in order, without tensors that are tied to earlier ones."""
    for rows in share:
        tensor = rows.whole
        if tensor.same_as is not None:
            continue
        start = rows.start * (tensor.elements // max(1, tensor.shape[0])) if tensor.shape else 0
        stop = start + rows.layout.elements
        for number in range(start // BLOCK_ELEMENTS, -(-stop // BLOCK_ELEMENTS)):
            origin = number * BLOCK_ELEMENTS
            end = min(origin + BLOCK_ELEMENTS, tensor.elements)
            first, last = max(start, origin), min(stop, end)
            yield Piece(
                tensor,
                number,
                held=slice(first - start, last - start),
                within=slice(first - origin, last - origin),
                is_whole=(first, last) == (origin, end),
            )


def of(spec: StateSpec, layout: Layout) -> Block:
    """Return the source of a state's values.

    Raises:
        CheckpointError: if the spec asks for real weights, and they can't be loaded.
    """
    return RealWeights(spec, layout).block if spec.directory else Seeded(spec).block


@dataclass(frozen=True, slots=True)
class Seeded:
    """Generates values from the seed, the tensor's name and the block's number: no two blocks are equal."""

    spec: StateSpec

    def block(self, tensor: TensorLayout, number: int) -> torch.Tensor:
        """Generate a block: normal weights, Adam's averages of normal gradients, or small integers, by the tensor."""
        count = min(BLOCK_ELEMENTS, tensor.elements - number * BLOCK_ELEMENTS)
        random = np.random.Generator(np.random.SFC64(_seed(self.spec.seed, tensor.name, number)))
        if "float" not in tensor.dtype:
            return torch.from_numpy(random.integers(0, 2 if tensor.dtype == "bool" else 127, size=count))
        values = torch.from_numpy(random.standard_normal(count, dtype=np.float32))
        if self.spec.contents == "training":
            if tensor.name.startswith(MASTER):
                return values.mul_(_STANDARD_DEVIATION)
            if tensor.name.startswith(EXP_AVG):
                return values.mul_(_GRADIENT_STANDARD_DEVIATION / 10**0.5)
            if tensor.name.startswith(EXP_AVG_SQ):
                return values.mul_(_GRADIENT_STANDARD_DEVIATION).square_()
        values.mul_(_STANDARD_DEVIATION)
        return values.to(torch.bfloat16) if self.spec.values == "normal-bfloat16" else values


@dataclass(frozen=True, slots=True)
class _Stored:
    """The location of a tensor in a safetensors file."""

    path: Path
    offset: int
    dtype: str


class RealWeights:
    """Reads the weights in a Hugging Face directory, and generates the tensors that `training` adds.

    If the directory's safetensors files hold every tensor of the model under its name, with its shape and in a plain
    floating-point dtype, only the requested blocks are read. Otherwise transformers loads the whole model.

    Raises:
        CheckpointError: if there are no weights, or transformers can't load them.
    """

    def __init__(self, spec: StateSpec, layout: Layout) -> None:
        assert spec.directory is not None
        self._seeded = Seeded(spec)
        model = [tensor for tensor in layout if not _is_optimizer(tensor, spec)]
        self._stored = _stored(spec.directory, model) if "quantization_config" not in read_config(spec) else {}
        self._loaded = {} if self._stored else _loaded(spec)

    def block(self, tensor: TensorLayout, number: int) -> torch.Tensor:
        """Return a block as it is stored in the file, or as transformers loaded it."""
        start = number * BLOCK_ELEMENTS
        count = min(BLOCK_ELEMENTS, tensor.elements - start)
        if tensor.name in self._stored:
            stored = self._stored[tensor.name]
            dtype = torch_dtype(stored.dtype)
            data = bytearray(count * dtype.itemsize)
            with stored.path.open("rb") as file:
                file.seek(stored.offset + start * dtype.itemsize)
                if file.readinto(data) != len(data):
                    raise CheckpointError(f"{stored.path} became shorter while it was being read")
            return torch.frombuffer(data, dtype=dtype)
        if tensor.name in self._loaded:
            return self._loaded[tensor.name].reshape(-1)[start : start + count]
        return self._seeded.block(tensor, number)


def _is_optimizer(tensor: TensorLayout, spec: StateSpec) -> bool:
    return spec.contents == "training" and tensor.name.startswith((MASTER, EXP_AVG, EXP_AVG_SQ))


def _stored(directory: Path, model: list[TensorLayout]) -> dict[str, _Stored]:
    """Locate the tensors, tied ones by their first name; empty if one is missing, or has another shape or dtype."""
    try:
        headers = headers_of(directory)
    except CheckpointError:  # the weights may have another format
        return {}
    wanted = {tensor.name: tensor for tensor in model}
    located = {}
    for path, header in headers.items():
        for info in header.tensors:
            tensor = wanted.get(info.layout.name)
            if tensor and info.layout.shape == tensor.shape and _converts(info.layout.dtype, tensor.dtype):
                stored = _Stored(path, header.data_start + info.start, info.layout.dtype)
                located[tensor.same_as or tensor.name] = stored
    return located if {tensor.same_as or tensor.name for tensor in model} <= located.keys() else {}


def _converts(stored: str, wanted: str) -> bool:
    """Return whether values convert between two dtypes without a scale, which eight-bit dtypes need."""
    return stored == wanted or {stored, wanted} <= {"float16", "bfloat16", "float32", "float64"}


def _loaded(spec: StateSpec) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    dtype = config_dtype(spec, read_config(spec))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.directory, dtype=getattr(torch, dtype), local_files_only=True, weights_only=True
        )
    except Exception as error:  # transformers raises errors of many types
        raise CheckpointError(f"can't load the weights in {spec.directory}: {error}") from error
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _seed(seed: int, name: str, block: int) -> np.random.SeedSequence:
    name_hash = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8])
    return np.random.SeedSequence([seed, name_hash, block])
