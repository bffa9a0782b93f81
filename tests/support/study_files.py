"""Small studies: the text of a file that is right, and the content that is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.plan import study_file
from jobs.plan.study import Study

GOOD = {
    "top": 'name = "tiny"\nstrategies = ["torch_save"]',
    "state": '[state]\nmodel = "openllama-3b"',
    "targets": '[targets.here]\npath = "."',
    "rest": "",
}


def write(tmp_path: Path, **changed: str) -> Path:
    """A study file that is right but for these parts."""
    path = tmp_path / "study.toml"
    path.write_text("\n".join((GOOD | changed).values()))
    return path


def small_study(**changed: Any) -> Study:
    """A study that is cheap to plan: the first two tensors of a preset."""
    content = {
        "name": "small",
        "state": {"model": "openllama-3b", "tensors": 2},
        "strategies": ["torch_save", "tensorstore_basic", "tensorstore_t5x"],
        "targets": {"nvme": {"path": "/nvme"}, "lustre": {"path": "$SCRATCH"}, "nfs": {}},
    }
    return study_file.parse(content | changed, "study.toml")
