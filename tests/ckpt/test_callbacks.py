"""The callbacks for other libraries: the package needs none of these, and a callback needs its own only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt import callbacks

WITHOUT = """
import sys
absent, callback = sys.argv[1:]
sys.modules[absent] = None
import ckpt, ckpt.callbacks.generators, ckpt.callbacks.ranks
assert not {"transformers", "lightning"} & {name for name, module in sys.modules.items() if module}
try:
    __import__(f"ckpt.callbacks.{callback}")
except ImportError as error:
    print(error.name)
"""

LIBRARIES = {"trainer": "transformers", "lightning": "lightning"}


@pytest.mark.parametrize("callback", LIBRARIES)
def test_without_its_library(fresh_python: Callable[..., str], callback: str) -> None:
    """The package can be imported, and the callback's import names what is missing."""
    assert fresh_python(WITHOUT, LIBRARIES[callback], callback).startswith(LIBRARIES[callback])


@pytest.mark.parametrize("callback", LIBRARIES)
def test_it_imports_its_library_only(callback: str) -> None:
    """Somebody who trains with one library needn't install the other."""
    text = (Path(callbacks.__path__[0]) / f"{callback}.py").read_text()
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
    assert {LIBRARIES[callback]} == imported & set(LIBRARIES.values())
