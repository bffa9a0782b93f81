"""States for tests: any that hypothesis draws, and a small one of every dtype."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from hypothesis import strategies as st

from ckpt.state.dtypes import BYTES_PER_ELEMENT, torch_dtype
from ckpt.state.layout import State

HOSTILE_NAMES = [
    "", ".", "..", "/", "../../up", "/absolute", ".hidden", "a.b", "a_b", "a/b", "a%2Fb", "%", "%~", "~", "nul\0",
    "metadata.json", ".zarray", "a.b.zarr", "A.B", "x" * 300, "x" * 301, "ü" * 200, "😀" * 90, "\ud800", "line\nbreak",
    "__metadata__", "%ED%A0%80", "zarr.json", "names.json", "names", "_METADATA", "commit_success.txt", "c", "d",
    "manifest.ocdbt", "0", "array_metadatas", "_sharding",
]  # fmt: skip

BIT_PATTERNS = [
    b"\0",  # zeros
    b"\0\x80", b"\0\0\0\x80", b"\0\0\0\0\0\0\0\x80",  # -0.0 in 16, 32 and 64 bits
    b"\0\x7c", b"\x80\x7f", b"\0\0\x80\xff", b"\0\0\0\0\0\0\xf0\x7f",  # infinities
    b"\x01\x7c", b"\x81\x7f", b"\x01\0\x80\x7f", b"\x42\0\0\0\0\0\xf0\xff",  # signalling NaNs with a payload
    b"\x01\0", b"\x01\0\0\0", b"\x01\0\0\0\0\0\0\0",  # denormals
    b"\xff",
]  # fmt: skip

Exact = list[tuple[str, str, tuple[int, ...], bytes]]


def exact(state: State) -> Exact:
    """List all that a load must restore, in order, computed without the code under test: name, dtype, shape, bytes."""
    return [
        (name, str(tensor.dtype), tuple(tensor.shape), bits_of(tensor).numpy().tobytes())
        for name, tensor in state.items()
    ]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, in a copy."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def every_dtype() -> State:
    """A small state with every dtype, several chunks, tied and odd tensors; no two tensors have the same values."""
    random = torch.Generator().manual_seed(1)
    state: State = {
        f"layer.{dtype}.weight": torch.randint(0, 2, (70, 3), generator=random).to(torch_dtype(dtype))
        for dtype in BYTES_PER_ELEMENT
    }
    state["embed"] = torch.randn((130, 66), generator=random).half()
    state["head"] = state["embed"]
    state["scalar"] = torch.randn((), generator=random).bfloat16()
    state["empty"] = torch.empty((0, 7))
    state["transposed"] = torch.randn((3, 65), generator=random).T
    state["zeros"] = torch.zeros(200)
    state["../a b"] = torch.randn(5, generator=random)
    return state


def contiguous_by_name_only() -> State:
    """Tensors that torch calls contiguous whatever their stride: of one element, and of none."""
    return {
        "one": torch.arange(2).bfloat16()[::2],
        "none": torch.empty(0, dtype=torch.bfloat16)[::2],
    }


def _fits_json(name: str) -> bool:
    """JSON makes one character of a high and a low surrogate in sequence; it keeps everything else."""
    return not re.search("[\ud800-\udbff][\udc00-\udfff]", name)


def parameter_names() -> st.SearchStrategy[str]:
    """Any text, lone surrogates included, and names that have broken other libraries."""
    return st.one_of(st.sampled_from(HOSTILE_NAMES), st.text(st.characters(exclude_categories=())).filter(_fits_json))


@st.composite
def tensors(draw: st.DrawFn, *, views: bool) -> torch.Tensor:
    """A tensor of any dtype, 0-d to 3-d, with any bits; with `views`, also a view into a larger one."""
    dtype = draw(st.sampled_from(sorted(BYTES_PER_ELEMENT)))
    size = st.one_of(st.integers(0, 4), st.sampled_from([63, 64, 65, 130]))
    shape = draw(st.lists(size, max_size=3).filter(lambda sizes: math.prod(sizes) <= 9000))
    kind = draw(st.sampled_from(["contiguous", "transposed", "strided"] if views else ["contiguous"]))
    whole = {"contiguous": shape, "transposed": shape[::-1], "strided": [2 * side for side in shape]}[kind]

    flat = torch.empty(math.prod(whole), dtype=torch_dtype(dtype))
    patterns = st.one_of(st.sampled_from(BIT_PATTERNS), st.binary(min_size=1, max_size=24))
    bits = draw(
        st.one_of(
            patterns.map(lambda pattern: np.resize(np.frombuffer(pattern, np.uint8), flat.nbytes).copy()),
            st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(0, 256, flat.nbytes, np.uint8)),
        )
    )
    if dtype == "bool":
        bits &= 1  # torch has no other booleans
    flat.view(torch.uint8).copy_(torch.from_numpy(bits))
    tensor = flat.reshape(whole)
    if kind == "transposed":
        return tensor.permute(tuple(reversed(range(len(shape)))))
    return tensor[tuple(slice(None, None, 2) for _ in shape)] if kind == "strided" else tensor


@st.composite
def state_dicts(draw: st.DrawFn, *, views: bool = True) -> State:
    """A state of up to five tensors, some of them tied."""
    state: State = {}
    for name in draw(st.lists(parameter_names(), unique=True, max_size=5)):
        tied_to = draw(st.integers(0, 9))
        state[name] = list(state.values())[tied_to] if tied_to < len(state) else draw(tensors(views=views))
    return state
