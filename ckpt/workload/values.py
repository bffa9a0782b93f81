"""What the elements of a state are — seeded, or a model's real weights — a block of a tensor at a time.

Any block can be had without the rest, so that a rank builds and checks its share in little more memory than that.
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
"""Values are generated and hashed in blocks of so many elements, each on its own, so that all cores can take
part and a part of a tensor can be made without the rest. Changing it changes every value and digest."""

Block = Callable[[TensorLayout, int], torch.Tensor]
"""The values of a tensor's block of that number, from 0: 1-D, in a dtype from which to convert to the tensor's."""

_STANDARD_DEVIATION = 0.02

_GRADIENT_STANDARD_DEVIATION = 1e-4
"""Of a large model that is being trained. Adam averages gradients over about ten steps, and their squares, which
are never negative."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a share has of one block of a tensor."""

    tensor: TensorLayout
    number: int
    """The block's, from 0."""
    held: slice
    """Where the piece lies among the share's elements of the tensor."""
    within: slice
    """Where it lies in the block."""
    is_whole: bool
    """Whether it is the whole block."""


def pieces(share: tuple[Shard, ...]) -> Iterator[Piece]:
    """All pieces of a share, in order; of tied tensors, those of the first only."""
    for each in share:
        tensor = each.whole
        if tensor.same_as is not None:
            continue
        start = each.start * (tensor.elements // max(1, tensor.shape[0])) if tensor.shape else 0
        stop = start + each.layout.elements
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
    """Where the values of that state come from.

    Raises:
        CheckpointError: if real weights are asked for that can't be loaded.
    """
    return RealWeights(spec, layout).block if spec.directory else Seeded(spec).block


@dataclass(frozen=True, slots=True)
class Seeded:
    """Values that depend on the seed, the tensor's name and the place: no two tensors or blocks are alike."""

    spec: StateSpec

    def block(self, tensor: TensorLayout, number: int) -> torch.Tensor:
        """Normal weights, as `spec.values` says, and what Adam makes of normal gradients; small whole numbers."""
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
    """A tensor in a safetensors file."""

    path: Path
    offset: int
    dtype: str


class RealWeights:
    """The weights in a Hugging Face directory, and seeded values for what `training` adds to them.

    Where its safetensors files have every tensor under the model's own name, with its shape and in a plain
    floating-point dtype, no more than the blocks that are asked for is read. Anything else only transformers
    understands: it loads the whole model.

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
        """As they lie in the file, or as transformers loads them."""
        start = number * BLOCK_ELEMENTS
        count = min(BLOCK_ELEMENTS, tensor.elements - start)
        if tensor.name in self._stored:
            stored = self._stored[tensor.name]
            dtype = torch_dtype(stored.dtype)
            data = bytearray(count * dtype.itemsize)
            with stored.path.open("rb") as file:
                file.seek(stored.offset + start * dtype.itemsize)
                if file.readinto(data) != len(data):
                    raise CheckpointError(f"{stored.path} became shorter while it was read")
            return torch.frombuffer(data, dtype=dtype)
        if tensor.name in self._loaded:
            return self._loaded[tensor.name].reshape(-1)[start : start + count]
        return self._seeded.block(tensor, number)


def _is_optimizer(tensor: TensorLayout, spec: StateSpec) -> bool:
    return spec.contents == "training" and tensor.name.startswith((MASTER, EXP_AVG, EXP_AVG_SQ))


def _stored(directory: Path, model: list[TensorLayout]) -> dict[str, _Stored]:
    """Where the tensors lie, tied ones by their first name; nothing if some aren't there as they are wanted."""
    try:
        headers = headers_of(directory)
    except CheckpointError:  # files of another kind, perhaps
        return {}
    wanted = {tensor.name: tensor for tensor in model}
    found = {}
    for path, header in headers.items():
        for entry in header.entries:
            tensor = wanted.get(entry.layout.name)
            if tensor and entry.layout.shape == tensor.shape and _converts(entry.layout.dtype, tensor.dtype):
                stored = _Stored(path, header.data_start + entry.start, entry.layout.dtype)
                found[tensor.same_as or tensor.name] = stored
    return found if {tensor.same_as or tensor.name for tensor in model} <= found.keys() else {}


def _converts(stored: str, wanted: str) -> bool:
    """Whether the one dtype's values are simply the other's; eight-bit ones have a scale somewhere."""
    return stored == wanted or {stored, wanted} <= {"float16", "bfloat16", "float32", "float64"}


def _loaded(spec: StateSpec) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    dtype = config_dtype(spec, read_config(spec))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.directory, dtype=getattr(torch, dtype), local_files_only=True, weights_only=True
        )
    except Exception as error:  # transformers raises what it likes at weights that it can't load
        raise CheckpointError(f"can't load the weights in {spec.directory}: {error}") from error
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _seed(seed: int, name: str, block: int) -> np.random.SeedSequence:
    name_hash = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8])
    return np.random.SeedSequence([seed, name_hash, block])
