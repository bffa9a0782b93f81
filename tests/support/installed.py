"""Optional libraries that a module of tests needs."""

from __future__ import annotations

import importlib.util
import os

import pytest


def require(library: str) -> None:
    """Skip a module of tests where a library isn't installed; fail it where everything is required."""
    if importlib.util.find_spec(library) is None:
        reason = f"{library} isn't installed: pip install '.[peers]'"
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason, allow_module_level=True)
