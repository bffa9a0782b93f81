"""`TrainerCheckpoints`: a Trainer that is interrupted and resumed ends as one that was never interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ckpt
from ckpt.errors import CheckpointError
from support import installed
from support.drawn import Numbers, assert_same_on_two_ranks, same_weights

installed.require("accelerate")

from ckpt.callbacks.trainer import TrainerCheckpoints  # noqa: E402  # it needs the library
from support.tiny_trainer import LAST, InterruptedTrainingError, losses, make, train  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Torch's threads wait for one another in steps as small as these: with other tests beside them, for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Numbers]:
    """A training that was never interrupted: the Trainer, and what its steps drew."""
    return train(tmp_path_factory.mktemp("uninterrupted"), every=1000)


@pytest.mark.parametrize(
    ("every", "interrupt_after", "first"),
    [
        pytest.param(3, 8, 7, id="within an epoch, after an evaluation"),
        pytest.param(4, 11, 9, id="within an epoch"),
        pytest.param(5, 7, 6, id="between epochs"),
        pytest.param(1, 7, 7, id="from the step before the last one"),
    ],
)
def test_resumed(
    uninterrupted: tuple[Any, Numbers], every: int, interrupt_after: int, first: int, tmp_path: Path
) -> None:
    """The weights, the losses of all steps and every generator are those of a training that wasn't interrupted."""
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path, every, interrupt_after)

    resumed, drawn = train(tmp_path, every, seed=1)

    whole, drawn_by_whole = uninterrupted
    assert drawn == {step: numbers for step, numbers in drawn_by_whole.items() if step >= first}
    assert same_weights(whole.model, resumed.model)
    assert losses(whole) == losses(resumed)
    assert not (tmp_path / "run" / "resume").exists()


def test_on_several_ranks(tmp_path: Path) -> None:
    """Rank 0 saves the model, and the generators of all ranks, which differ."""
    assert_same_on_two_ranks("support.tiny_trainer", tmp_path)


def test_what_is_saved(tmp_path: Path) -> None:
    """The steps that are due, and the last one; what was logged at a step decides whether it stays."""
    keep = ckpt.Keep(last=1, lowest="eval_loss", highest="eval_loss")
    with ckpt.Checkpointer(tmp_path / "run", every=3, keep=keep, background="thread") as checkpoints:
        trainer = make(tmp_path, [TrainerCheckpoints(checkpoints)])
        trainer.train()
        evaluated = {entry["eval_loss"]: entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry}
        assert [3, 6, 9, 12, LAST] == list(evaluated.values())
        assert sorted({evaluated[min(evaluated)], evaluated[max(evaluated)], LAST}) == checkpoints.steps()
        restored = checkpoints.restore()
    assert restored is not None
    assert {"loss", "eval_loss", "learning_rate"} <= restored.metrics.keys()


def test_nothing_saved_yet(tmp_path: Path) -> None:
    """There is nothing to resume from."""
    with ckpt.Checkpointer(tmp_path / "run") as checkpoints:
        assert TrainerCheckpoints(checkpoints).resume() is None


def test_a_training_that_ended_within_an_epoch(tmp_path: Path) -> None:
    """It isn't trained further: the Trainer would do one step more."""
    train(tmp_path, 100, max_steps=8)
    with pytest.raises(CheckpointError, match="has a checkpoint of step 8, and this training ends at step 8"):
        train(tmp_path, 100, max_steps=8)


def test_a_training_that_ended_with_an_epoch(tmp_path: Path) -> None:
    """The Trainer has nothing to do."""
    whole, _ = train(tmp_path, 100, max_steps=10)
    again, drawn = train(tmp_path, 100, seed=1, max_steps=10)
    assert drawn == {}
    assert same_weights(whole.model, again.model)


def test_sharded_models(tmp_path: Path) -> None:
    """They are refused before the first step, with what to do instead."""

    def begin(model: Any, plugin: Any = None) -> None:
        arguments, state = SimpleNamespace(deepspeed_plugin=plugin), SimpleNamespace(global_step=0)
        with ckpt.Checkpointer(tmp_path) as checkpoints:
            TrainerCheckpoints(checkpoints).on_train_begin(arguments, state, None, model=model)

    message = r"can't save a model or an optimizer that is sharded .*use the Trainer's own checkpoints"
    begin(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=message):
        begin(torch.nn.Linear(2, 2), plugin=object())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = fully_shard(torch.nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(CheckpointError, match=message):
            begin(sharded)
    finally:
        dist.destroy_process_group()


def test_a_directory_of_somebody_elses(tmp_path: Path) -> None:
    """What lies under the name from which the Trainer would resume is kept, and the message names it."""
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path, every=3, interrupt_after=4)
    (tmp_path / "run" / "resume").mkdir()
    (tmp_path / "run" / "resume" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, which no restart left there"):
        train(tmp_path, every=3)
    assert (tmp_path / "run" / "resume" / "notes.txt").read_text() == "mine"
