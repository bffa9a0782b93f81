"""Strategies whose libraries are installed."""

from __future__ import annotations

from typing import Any

from ckpt.registry import create
from ckpt.strategy import Strategy
from ckpt.testing.contract import skip_unless_installed


def usable(name: str, options: dict[str, Any] | None = None) -> Strategy:
    """Create a strategy, and import what it needs; a test of one whose optional library is missing is skipped."""
    strategy = create(name, options)
    skip_unless_installed(strategy)
    strategy.prepare()
    return strategy
