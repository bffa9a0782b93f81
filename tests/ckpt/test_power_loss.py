"""A power cut at any moment of a save leaves the old checkpoint or the new one, and after the save the new one.

Saves are recorded, and every state that a filesystem may leave is made, and loaded: see `jobs.faults.crash_states`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import ckpt
from ckpt.checkpointer import Checkpointer
from jobs.faults.processes import python
from jobs.faults.recording import Recording
from jobs.faults.tracing import record
from support import one_save
from support.power_cuts import Outcomes, wrong

STRATEGIES = ["safetensors_tuned", "safetensors_file", "torch_save", "torch_dcp_direct", "tensorstore_tuned", "hdf5"]


def recorded(what: str, root: Path, step: int, strategy: str, skip: str = "") -> Recording:
    """Save, in a process of its own that is traced."""
    words = [what, str(root), str(step), strategy, *([skip] if skip else [])]
    return record(root, python("support.one_save", *words), root.with_name("trace"))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("before", ["nothing", "1"])
def test_a_save(strategy: str, before: str, root: Path, tmp_path: Path) -> None:
    """A first one, below a directory that is new, and one that replaces a checkpoint."""
    if before == "1":
        ckpt.save(one_save.state_of(1), root / "run" / "latest", strategy)
    recording = recorded("save", root, 2, strategy)
    outcomes = Outcomes(recording, tmp_path, "save")
    assert [] == wrong(outcomes, recording, before)
    assert outcomes.different > 10
    assert set(outcomes.count) == {"everything", "synced", "journalled", "unordered"}


@pytest.mark.parametrize("levels", ["checkpointer1", "checkpointer2"])
@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_series(levels: str, root: Path, tmp_path: Path) -> None:
    """Saved behind the program, on one level and on two, with the removal of the checkpoint before."""
    two = {"local": root / "local"} if levels == "checkpointer2" else {}
    with Checkpointer(root / "shared", background="none", **two) as checkpoints:
        checkpoints.save(1, one_save.state_of(1))
    recording = recorded(levels, root, 2, "safetensors_tuned")
    outcomes = Outcomes(recording, tmp_path, levels)
    assert [] == wrong(outcomes, recording, "1")
    assert outcomes.different > 20


@pytest.mark.parametrize("skip", ["all", "content", "name"])
def test_a_doctored_commit_is_noticed(skip: str, root: Path, tmp_path: Path) -> None:
    """Without its syncs a save leaves states in which neither checkpoint is whole, or the new one is lost."""
    ckpt.save(one_save.state_of(1), root / "run" / "latest")
    recording = recorded("save", root, 2, "safetensors_tuned", skip)
    assert wrong(Outcomes(recording, tmp_path, "save"), recording, "1")
