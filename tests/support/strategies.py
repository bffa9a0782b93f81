"""Strategies whose libraries are installed."""

from __future__ import annotations

from typing import Any

from ckpt.registry import create
from ckpt.strategy import Strategy
from ckpt.testing.contract import skip_unless_installed

CORE = (
    "hdf5", "safetensors_tuned", "safetensors_file", "tensorstore_basic", "tensorstore_ocdbt", "tensorstore_t5x",
    "tensorstore_t5x_real", "tensorstore_tuned", "torch_dcp", "torch_dcp_direct", "torch_save",
)  # fmt: skip
"""Strategies that need no library beyond those of the package."""


def usable(name: str, options: dict[str, Any] | None = None) -> Strategy:
    """Create a strategy, and import what it needs; a test of one whose optional library is missing is skipped."""
    strategy = create(name, options)
    skip_unless_installed(strategy)
    strategy.prepare()
    return strategy
