"""The states of a process's random number generators, as plain values and tensors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

States = dict[str, Any]


def states() -> States:
    """Return the states of the generators of Python, numpy, torch, and every GPU that this process sees."""
    legacy: Any = np.random.get_state()  # noqa: NPY002  # what data sets draw from
    kind, keys, *position = legacy
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *position),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: States) -> None:
    """Give the generators the states that they had; a GPU that wasn't there keeps its own."""
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])  # noqa: NPY002
    torch.set_rng_state(saved["cpu"])
    for device, state in zip(range(torch.cuda.device_count()), saved["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
