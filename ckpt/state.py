"""The tensors that are checkpointed: built from a model's configuration, seeded, and compared bit for bit."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckpt.dtypes import name_of
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, StateSpec, TensorLayout, config_dtype, first_tensors, layout_of, read_config

State = dict[str, torch.Tensor]
"""Named tensors, in `state_dict` order."""

BLOCK_ELEMENTS = 1 << 20
"""Values are generated and hashed in blocks of so many elements, each on its own, so that all cores can take
part and a part of a tensor can be made without the rest. Changing it changes every value and digest."""

_STANDARD_DEVIATION = 0.02


def build(spec: StateSpec) -> State:
    """The state that a study asks for, in memory of its own.

    Raises:
        CheckpointError: if the model can't be built, or what transformers builds isn't what was planned.
    """
    weights = _real_weights(spec) if spec.directory else {}
    layout = first_tensors(meta_layout(spec), spec)
    if not weights and layout != layout_of(spec):
        raise CheckpointError(
            f"transformers builds other tensors for {spec.model!r} than were planned: report it, with the "
            "model's config.json"
        )
    state: State = {}
    for tensor in layout:
        if tensor.same_as is not None and tensor.same_as in state:
            state[tensor.name] = state[tensor.same_as]
        elif weights:
            state[tensor.name] = weights[tensor.name]
        else:
            state[tensor.name] = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
    if not weights:
        fill(state, spec)
    return state


def meta_layout(spec: StateSpec) -> Layout:
    """All tensors of the model, from transformers, without allocating any."""
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


def _real_weights(spec: StateSpec) -> State:
    from transformers import AutoModelForCausalLM

    dtype = config_dtype(spec, read_config(spec))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.directory, dtype=getattr(torch, dtype), local_files_only=True, weights_only=True
        )
    except Exception as error:  # as above
        raise CheckpointError(f"can't load the weights in {spec.directory}: {error}") from error
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def fill(state: State, spec: StateSpec) -> None:
    """Fill every tensor with values that depend on the seed, its name and the place: no two are alike."""
    buffers = threading.local()
    owners = {id(tensor): name for name, tensor in reversed(state.items())}  # tied: the first name's values

    def fill_block(name: str, flat: torch.Tensor, block: int) -> None:
        part = flat[block * BLOCK_ELEMENTS : (block + 1) * BLOCK_ELEMENTS]
        random = np.random.Generator(np.random.SFC64(_seed(spec.seed, name, block)))
        if not part.dtype.is_floating_point:
            high = 2 if part.dtype == torch.bool else 127
            part.copy_(torch.from_numpy(random.integers(0, high, size=part.numel())))
            return
        if not hasattr(buffers, "values"):
            buffers.values = np.empty(BLOCK_ELEMENTS, np.float32)
        random.standard_normal(out=buffers.values[: part.numel()], dtype=np.float32)
        values = torch.from_numpy(buffers.values[: part.numel()]).mul_(_STANDARD_DEVIATION)
        part.copy_(values.to(torch.bfloat16) if spec.values == "normal-bfloat16" else values)

    _for_each_block({name: state[name] for name in owners.values()}, fill_block)


def digest(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and every byte; the same whoever computes it, in however many parts."""
    hashes: dict[tuple[str, int], bytes] = {}

    def hash_block(name: str, flat: torch.Tensor, block: int) -> None:
        part = flat[block * BLOCK_ELEMENTS : (block + 1) * BLOCK_ELEMENTS]
        hashes[name, block] = hashlib.sha256(part.view(torch.uint8).numpy().data).digest()

    _for_each_block(state, hash_block)
    whole = hashlib.sha256()
    for name, tensor in state.items():
        whole.update(repr((name, name_of(tensor), tuple(tensor.shape))).encode("utf-8", "surrogatepass"))
        for block in range(_blocks(tensor)):
            whole.update(hashes[name, block])
    return whole.hexdigest()


def first_difference(expected: State, found: State) -> str | None:
    """Where two states differ in names, order aside, shapes, dtypes or any bit; None if they don't."""
    if expected.keys() != found.keys():
        missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        return f"names differ: missing {missing[:3]}, not expected {surplus[:3]}"
    for name, want in expected.items():
        have = found[name]
        if (want.dtype, want.shape) != (have.dtype, have.shape):
            return f"{name}: expected {want.dtype} {list(want.shape)}, found {have.dtype} {list(have.shape)}"
        if want.numel() and not torch.equal(_bytes(want), _bytes(have)):
            wrong = int((_bytes(want) != _bytes(have)).sum())
            return f"{name}: {wrong} of {want.numel() * want.element_size()} bytes differ"
    return None


def poison(state: State) -> None:
    """Overwrite a loaded state, so that a later load can't find the right answer in recycled memory."""
    for tensor in state.values():
        torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(0xA5)


def mapped_file(state: State) -> str:
    """A file that a tensor's memory is mapped from; empty if all memory is the process's own.

    Such a state has not been read: its pages come from the file when somebody looks.
    """
    mappings = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5].startswith("/") and not parts[5].startswith(("/dev/zero", "/memfd:")):
            start, _, end = parts[0].partition("-")
            mappings.append((int(start, 16), int(end, 16), parts[5]))
    for tensor in state.values():
        address = tensor.untyped_storage().data_ptr()
        for first, last, path in mappings:
            if tensor.numel() and first <= address < last:
                return path
    return ""


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values, 1-D with stride 1: a view where it is contiguous, else a copy."""
    values = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return values.as_strided((values.numel(),), (1,))  # a lone element is contiguous whatever its stride


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return _flat(tensor).view(torch.uint8)


def _seed(seed: int, name: str, block: int) -> np.random.SeedSequence:
    name_hash = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8])
    return np.random.SeedSequence([seed, name_hash, block])


def _blocks(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() // BLOCK_ELEMENTS)


def _for_each_block(state: State, work: Callable[[str, torch.Tensor, int], None]) -> None:
    """Call `work(name, 1-D tensor, block number)` for each block of each tensor, on all cores."""

    def blocks() -> Iterator[tuple[str, torch.Tensor, int]]:
        for name, tensor in state.items():
            flat = _flat(tensor)
            for block in range(_blocks(tensor)):
                yield name, flat, block

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(lambda arguments: work(*arguments), list(blocks())):
            pass


def describe(state: State, spec: StateSpec) -> dict[str, Any]:
    """The facts about a state that a timing log keeps."""
    unique = {tensor.data_ptr() or index: tensor for index, tensor in enumerate(state.values())}
    return {
        "model": spec.model,
        "tensors": len(state),
        "parameters": sum(tensor.numel() for tensor in unique.values()),
        "state_bytes": sum(tensor.numel() * tensor.element_size() for tensor in unique.values()),
        "dtypes": ", ".join(sorted({name_of(tensor) for tensor in state.values()})),
        "values": "weights" if spec.directory else spec.values,
        "seed": spec.seed,
        "digest": digest(state),
    }
