"""A power cut at any moment of a save by several ranks leaves the old checkpoint or the new one.

From the first return of any rank on it is the new one. The ranks are recorded together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import ckpt
from ckpt.checkpointer import Checkpointer
from jobs.faults.power_cut import check_complete
from jobs.faults.processes import python
from jobs.faults.recording import Recording
from jobs.faults.tracing import record
from support import one_save
from support.power_cuts import Outcomes, wrong

SINGLE = 6
"""Of the operations that no sync covers at a moment, for how many there is a state without it, and one with it only."""


def recorded(what: str, root: Path, ranks: int, skip: str = "") -> Recording:
    """Save step 2 in processes that are traced."""
    words = [what, str(root), "2", str(ranks), *([skip] if skip else [])]
    recording = record(root, python("support.saves_of_ranks", *words), root.with_name("trace"))
    check_complete(recording, root)
    assert ranks == recording.steps.count("begin") == recording.steps.count("returned")
    return recording


@pytest.mark.parametrize(("before", "ranks"), [("nothing", 2), ("1", 4)])
def test_a_save(before: str, ranks: int, root: Path, tmp_path: Path) -> None:
    """A first one, below a directory that is new, and one that replaces a checkpoint."""
    if before == "1":
        ckpt.save(one_save.state_of(1), root / "run" / "latest")
    recording = recorded("save", root, ranks)
    outcomes = Outcomes(recording, tmp_path, "save", SINGLE)
    assert [] == wrong(outcomes, recording, before)
    assert outcomes.different > 20
    assert set(outcomes.count) == {"everything", "synced", "journalled", "unordered"}


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_series(root: Path, tmp_path: Path) -> None:
    """Saved behind the program on two levels, with the removal of the checkpoint before."""
    with Checkpointer(root / "shared", local=root / "local", background="none") as checkpoints:
        checkpoints.save(1, one_save.state_of(1))
    recording = recorded("checkpointer2", root, 2)
    outcomes = Outcomes(recording, tmp_path, "checkpointer2", SINGLE)
    assert [] == wrong(outcomes, recording, "1")
    assert outcomes.different > 20


@pytest.mark.parametrize("skip", ["rank 0", "both"])
def test_a_rank_that_leaves_out_a_sync(skip: str, root: Path, tmp_path: Path) -> None:
    """It is noticed if no rank syncs what rank 1 wrote; rank 1's sync is enough, where rank 0's doesn't reach it."""
    ckpt.save(one_save.state_of(1), root / "run" / "latest")
    recording = recorded("save", root, 2, skip)
    assert bool(wrong(Outcomes(recording, tmp_path, "save", SINGLE), recording, "1")) == (skip == "both")
