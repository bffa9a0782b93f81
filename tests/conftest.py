"""What tests of every room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines are noisy and disks slow: how long an example takes says nothing about its behaviour.
settings.register_profile(
    "disk", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("disk")

WEIRD_NAMES = ["plain", "a space", "a 'quote' and \"two\"", "a\nnewline", "semi;colon & $HOME", "Ünïcode ✓"]


@pytest.fixture(params=WEIRD_NAMES)
def weird_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory whose name shells, TOML and HDF5 might trip over."""
    path = tmp_path / request.param
    path.mkdir()
    return path
