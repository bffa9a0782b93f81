"""The states of the frozen checkpoints in `tests/ckpt/data/frozen`, and the strategies that wrote them.

Imports nothing of the product: the code of an earlier commit writes the checkpoints, and today's reads them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

OPTION_SETS: dict[str, list[dict[str, Any]]] = {
    "fastsafetensors": [{}, {"shard_mib": 1}],
    "hdf5": [{}, {"layout": "chunked", "chunk_mib": 1}],
    "orbax": [{}, {"compression": False}, {"ocdbt": False}, {"ocdbt": False, "compression": False}],
    "safetensors_tuned": [{}, {"shard_mib": 1}, {"checksum": False}],  # called safetensors_direct when it wrote them
    "safetensors_file": [{}, {"shard_mib": 1}],
    "tensorstore_basic": [{}, {"compressor": "none"}],
    "tensorstore_ocdbt": [{}, {"target_file_mib": 1}],
    "tensorstore_t5x": [{}],
    "tensorstore_t5x_real": [{}, {"dtype": "native"}, {"gzip_level": 0}],
    "tensorstore_tuned": [
        {},
        {"chunk_mib": 1},
        {"compression": "zstd", "crc32c": True, "plain_types": True},
        {"crc32c": True, "shard_mib": 2, "chunk_mib": 1},
    ],
    "torch_checkpointing": [{}],
    "torch_dcp": [
        {},
        {"thread_count": 2},
        {"thread_count": 2, "single_file_per_rank": False},
        {"serialization": "safetensors"},
    ],
    "torch_dcp_direct": [{}, {"files": 2}, {"checksum": False}],
    "torch_save": [{}, {"crc": False}],
    "zarr_python": [{}, {"compression": "none"}, {"chunk_mib": 1}],
}
"""For each strategy, the sets of options whose files differ in layout."""

CASES = [(name, options) for name, sets in OPTION_SETS.items() for options in sets]
RANKS_CASES = [
    (name, options) for name, options in CASES if options not in ({"shard_mib": 1}, {"serialization": "safetensors"})
]
"""Those with options that several ranks can write with."""


def flat_state() -> dict[str, torch.Tensor]:
    """Tensors of many dtypes and shapes, two of them tied; the same values with any version of torch.

    `chunked` has 2.3 MiB, with values that repeat every 251 elements, a prime: no two chunks are alike.
    """
    nans = torch.tensor([0x7F81, 0x3F80, -0x8000, 0x0001, 0x7F80, -0x003F], dtype=torch.int16)
    embedding = (torch.arange(24.0) / 8 - 1).reshape(6, 4).to(torch.bfloat16)
    return {
        "embedding": embedding,
        "scalar": torch.tensor(0.1),
        "step": torch.tensor(2**40 + 1),
        "int64": torch.arange(-3, 4) * 2**33,
        "empty": torch.empty(0, 7),
        "no columns": torch.empty(3, 0, dtype=torch.float16),
        "mask": (torch.arange(14) % 3 == 0).reshape(7, 2),
        "spectrum": torch.complex(torch.arange(5.0), -torch.arange(5.0) / 3),
        "bits of bfloat16": nans.view(torch.bfloat16).reshape(3, 2),
        "float8": torch.arange(18, dtype=torch.uint8).reshape(9, 2).view(torch.float8_e4m3fn),
        "one row": torch.arange(3, dtype=torch.uint8).reshape(1, 3),
        "": torch.arange(4, dtype=torch.float64) / 7,
        'odd %2F/../näme\n"\U0001f600" ~': torch.arange(6, dtype=torch.int32),
        "chunked": (torch.arange(602_000) % 251).to(torch.float32).reshape(2408, 250),
        "head": embedding,
    }


def nested_state() -> dict[str, Any]:
    """A training job's state: the tensors among nested containers, plain values and an array."""
    return {
        "model": flat_state(),
        "optimizer": {"betas": (0.9, 0.95), "groups": [{"lr": 1e-3, "params": [0, 1]}], 7: None, "fused": True},
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "note": "naïve \n text",
        "bytes": b"\0\xff",
    }


def rows_of_rank(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """What a rank holds when the tensors are split along their first dimension; tied tensors stay tied.

    The first rank holds all of a tensor without rows.
    """
    state = flat_state()
    shards: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        rows = tensor.shape[0] if tensor.ndim else 0
        step = -(-rows // ranks)
        if rank * step < rows:
            shards[name] = tensor[rank * step : (rank + 1) * step].clone()
        elif rank == 0:
            shards[name] = tensor
    if "head" in shards:
        shards["head"] = shards["embedding"]
    return shards
