"""What the tests of ckpt/ share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FreshPython = Callable[..., str]
WriteConfig = Callable[..., str]


@pytest.fixture
def fresh_python() -> FreshPython:
    """Run code in a new interpreter, with these arguments and environment variables; returns what it prints."""

    def run(code: str, *arguments: str, **environment: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Write the config.json of a tiny Llama, with other values for some keys; returns its path."""

    def write(**changes: Any) -> str:
        config = {
            "model_type": "llama",
            "vocab_size": 50,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "dtype": "float16",
        }
        path = tmp_path / f"config-{len(list(tmp_path.glob('config-*')))}.json"
        path.write_text(json.dumps(config | changes))
        return str(path)

    return write
