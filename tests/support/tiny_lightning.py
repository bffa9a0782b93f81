"""A tiny model that Lightning trains, and that can be interrupted.

`torchrun … -m support.tiny_lightning DIRECTORY` trains it on several ranks: uninterrupted, interrupted, and resumed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import ckpt
from ckpt.callbacks.lightning import LightningCheckpoints
from ckpt.errors import CheckpointError
from support.drawn import Numbers, draw, same_weights, seed_all

BATCHES = 6
"""Of an epoch; a step takes two of them where gradients are accumulated."""

EPOCHS = 3


class InterruptedTrainingError(Exception):
    """Ends a training in the middle of it."""


class Model(LightningModule):  # type: ignore[misc]
    """A model with dropout, whose learning rate changes in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any, _: int) -> Any:
        """Return the loss."""
        (inputs,) = batch
        loss = (self.layers(inputs).squeeze(1) - inputs.sum(1)).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        """Log the loss, and draw, as a validation may."""
        self.log("val_loss", (self.layers(batch[0]).squeeze(1) - batch[0].sum(1)).square().mean() + 0 * torch.rand(()))

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Batches:
    """Batches in an order from torch's generator; they go on within an epoch, as a StatefulDataLoader does."""

    def __init__(self) -> None:
        self._left: list[int] = []

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        self._left = self._left or torch.randperm(BATCHES).tolist()
        while self._left:
            yield [numbers()[self._left.pop(0)]]

    def state_dict(self) -> dict[str, list[int]]:
        """Return what is left of the epoch."""
        return {"left": list(self._left)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Go on there."""
        self._left = state["left"]


class Watch(Callback):  # type: ignore[misc]
    """Draws random numbers for every batch, and ends the training after a step."""

    def __init__(self, interrupt_after: int) -> None:
        self._interrupt_after = interrupt_after
        self.drawn: Numbers = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Draw."""
        self.drawn[trainer.fit_loop.total_batch_idx + 1] = draw(trainer.global_rank)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """End the training."""
        if trainer.global_step == self._interrupt_after:
            raise InterruptedTrainingError


def numbers() -> torch.Tensor:
    """All batches of two rows."""
    return torch.rand(BATCHES, 2, 4, generator=torch.Generator().manual_seed(0))


def shuffled() -> Any:
    """A plain DataLoader, which draws its order from torch's generator."""
    return DataLoader(TensorDataset(numbers().flatten(0, 1)), batch_size=2, shuffle=True)


def make(callbacks: Iterable[Any], **options: Any) -> Any:
    """Make a trainer."""
    settings: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": list(callbacks),
    }
    return Trainer(**settings | options)


def train(
    directory: Path, every: int, data: Any, interrupt_after: int = -1, seed: int = 0, **options: Any
) -> tuple[Model, Numbers]:
    """Train, from the newest checkpoint in the directory; returns the model, and what was drawn, by batch."""
    seed_all(seed)
    model, watch = Model(), Watch(interrupt_after)
    validation = DataLoader(TensorDataset(numbers()[0]), batch_size=2)
    with ckpt.Checkpointer(directory, every=every, background="thread") as checkpoints:
        callback = LightningCheckpoints(checkpoints)
        trainer = make([callback, watch], **options)
        trainer.fit(model, data, validation, ckpt_path=callback.resume())
    return model, watch.drawn


def require_equal_steps(directory: Path, options: dict[str, Any]) -> None:
    """Where a rank sees no checkpoint, and the first one does, both raise an error."""
    seen = directory / ("interrupted" if dist.get_rank() == 0 else "elsewhere")
    with pytest.raises(CheckpointError, match=r"different steps .*rank 1: None"):
        train(seen, 3, shuffled(), **options)


def main(directory: Path) -> None:
    """Check on every rank that an interrupted training ends as an uninterrupted one."""
    options: dict[str, Any] = {"strategy": "ddp", "devices": int(os.environ["WORLD_SIZE"])}
    whole, drawn = train(directory / "uninterrupted", 3, shuffled(), **options)
    try:
        train(directory / "interrupted", 3, shuffled(), interrupt_after=5, **options)
    except InterruptedTrainingError:
        dist.barrier()  # rank 0 has committed
        resumed, drawn_later = train(directory / "interrupted", 3, shuffled(), seed=1, **options)
    assert drawn_later == {batch: drawn[batch] for batch in range(4, 10)}
    assert same_weights(whole, resumed)
    require_equal_steps(directory, options)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: the same")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
