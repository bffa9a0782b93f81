"""A study of faults, and cells that stand in for those of the package and need no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ckpt.workload.spec import StateSpec
from jobs.faults.subject import Subject

SPEC = StateSpec(model="llama-50k", tensors=4)


def subject(strategy: str, use: str) -> Subject:
    """A strategy that saves a few tensors."""
    return Subject(strategy, {}, use, SPEC)


def write_study(directory: Path, *strategies: str, model: str = "llama-50k", more: str = "") -> Path:
    """A study of these strategies, whose target is a new directory `target` beside it."""
    target = directory / "target"
    target.mkdir(exist_ok=True)
    path = directory / "study.toml"
    path.write_text(
        f'name = "small"\nstrategies = {json.dumps(strategies)}\n[state]\nmodel = "{model}"\ntensors = 4\n'
        f'[targets.here]\npath = "{target}"\n{more}',
        encoding="utf-8",
    )
    return path


def program(*lines: str) -> list[str]:
    """A program of these lines of Python."""
    return [sys.executable, "-c", "\n".join(lines)]


def prints(*values: Any) -> str:
    """A line of Python that prints a line of JSON for every value."""
    return f"print({chr(10).join(map(json.dumps, values))!r}, flush=True)"


def case(verdict: str, size: int = 1, what: str = "a fault: a restart") -> dict[str, Any]:
    """An outcome, as a cell prints it."""
    return {"verdict": verdict, "what": what, "size": size}
