"""`LightningCheckpoints`: a training that is interrupted and resumed ends as one that was never interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ckpt
from ckpt.errors import CheckpointError
from support import installed
from support.drawn import assert_same_on_two_ranks, same_weights

installed.require("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402  # it may be missing
from lightning.pytorch.strategies import FSDPStrategy  # noqa: E402

from ckpt.callbacks.lightning import LightningCheckpoints  # noqa: E402
from support.tiny_lightning import (  # noqa: E402
    BATCHES,
    EPOCHS,
    Batches,
    InterruptedTrainingError,
    Model,
    make,
    shuffled,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")  # hints, and what its own dependencies deprecate

STEPS = BATCHES * EPOCHS


@pytest.mark.parametrize(
    ("every", "interrupt_after", "first", "options"),
    [
        pytest.param(4, 11, 9, {}, id="within an epoch"),
        pytest.param(4, 11, 9, {"val_check_interval": 2}, id="within an epoch, after a validation"),
        pytest.param(2, 5, 9, {"accumulate_grad_batches": 2}, id="with accumulated gradients"),
        pytest.param(BATCHES, 8, 7, {}, id="between epochs"),
        pytest.param(4, 11, 9, {"max_epochs": -1, "max_steps": STEPS}, id="as many steps, within an epoch"),
        pytest.param(BATCHES, 8, 7, {"max_epochs": -1, "max_steps": STEPS}, id="as many steps, between epochs"),
        pytest.param(4, 11, 9, {"limit_val_batches": 0}, id="without validation"),
    ],
)
def test_resumed(every: int, interrupt_after: int, first: int, options: dict[str, Any], tmp_path: Path) -> None:
    """The weights and every generator are those of a training that wasn't interrupted."""
    whole, drawn_by_whole = train(tmp_path / "whole", every, Batches(), **options)
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path / "run", every, Batches(), interrupt_after, **options)

    resumed, drawn = train(tmp_path / "run", every, Batches(), seed=1, **options)

    assert {batch: drawn_by_whole[batch] for batch in range(first, STEPS + 1)} == drawn
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("validates", [{}, {"limit_val_batches": 0}])
@pytest.mark.parametrize("ends", [{}, {"max_epochs": -1, "max_steps": STEPS}])
def test_resumed_between_epochs_with_a_plain_loader(
    validates: dict[str, Any], ends: dict[str, Any], tmp_path: Path
) -> None:
    """A DataLoader's order is drawn from torch's generator: the later epochs have the order that they would have."""
    options = validates | ends
    whole, drawn_by_whole = train(tmp_path / "whole", BATCHES, shuffled(), **options)
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path / "run", BATCHES, shuffled(), BATCHES + 2, **options)

    resumed, drawn = train(tmp_path / "run", BATCHES, shuffled(), seed=1, **options)

    assert {batch: drawn_by_whole[batch] for batch in range(BATCHES + 1, STEPS + 1)} == drawn
    assert same_weights(whole, resumed)


def test_on_several_ranks(tmp_path: Path) -> None:
    """Rank 0 saves the model, and the generators of all ranks, which differ."""
    assert_same_on_two_ranks("support.tiny_lightning", tmp_path)


def test_what_is_saved(tmp_path: Path) -> None:
    """The steps that are due, and the last one, with what the model has logged."""
    with ckpt.Checkpointer(tmp_path, every=4, background="thread") as checkpoints:
        make([LightningCheckpoints(checkpoints)]).fit(Model(), Batches())
        assert checkpoints.steps() == [4, 8, 12, 16, STEPS]
        restored = checkpoints.restore()
    assert restored is not None
    assert restored.metrics.keys() == {"loss"}
    assert ckpt.load(tmp_path / "latest")["global_step"] == STEPS


def test_beside_lightning_s_own_checkpoints(tmp_path: Path) -> None:
    """Files that Lightning saves go where they went, and it can resume from them."""
    own = ModelCheckpoint(tmp_path / "own", every_n_epochs=1, save_top_k=-1)
    with ckpt.Checkpointer(tmp_path / "run", every=100, background="thread") as checkpoints:
        callbacks = [LightningCheckpoints(checkpoints), own]
        make(callbacks, enable_checkpointing=True).fit(Model(), Batches())
    assert len(list((tmp_path / "own").glob("*.ckpt"))) == EPOCHS
    with ckpt.Checkpointer(tmp_path / "run", every=100, background="thread") as checkpoints:
        trainer = make([LightningCheckpoints(checkpoints)], max_epochs=EPOCHS + 1)
        trainer.fit(Model(), Batches(), ckpt_path=own.best_model_path)
    assert trainer.global_step == STEPS + BATCHES


def test_a_finished_training(tmp_path: Path) -> None:
    """Lightning has nothing to do, and the model has the last weights."""
    whole, _ = train(tmp_path, STEPS, Batches())
    again, drawn = train(tmp_path, STEPS, Batches(), seed=1)
    assert drawn == {}
    assert same_weights(whole, again)


def test_a_path_that_resume_did_not_return(tmp_path: Path) -> None:
    """The message says what to pass."""
    train(tmp_path, STEPS, Batches())
    with ckpt.Checkpointer(tmp_path) as checkpoints:
        trainer = make([LightningCheckpoints(checkpoints)])
        with pytest.raises(CheckpointError, match=r"resume\(\) returns as ckpt_path"):
            trainer.fit(Model(), Batches(), ckpt_path=tmp_path / f"step-{STEPS:09d}")


def test_sharded_models(tmp_path: Path) -> None:
    """They are refused before the first step, with what to do instead."""
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with (
        ckpt.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match="can't save what FSDPStrategy shards over the ranks: use Lightning's"),
    ):
        LightningCheckpoints(checkpoints).setup(trainer, None, "fit")
