"""A training by Lightning that resumes: `python examples/train_lightning.py --epochs 20 --directory run`.

Kill it at any time and start it again: it continues from the last checkpoint, and ends with the same weights as a run
that was never interrupted. It saves at the ends of epochs, since a plain DataLoader can't go on within one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import ckpt
from ckpt.callbacks.lightning import LightningCheckpoints


class Counting(LightningModule):  # type: ignore[misc]  # its types aren't read
    """Predicts the next of a sequence of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, 64))

    def training_step(self, batch: Any, _: int) -> Any:
        """Return the loss."""
        (numbers,) = batch
        loss = torch.nn.functional.cross_entropy(self.layers(numbers), (numbers + 1) % 64)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    """Train a small model to predict the next of a sequence of numbers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--directory", type=Path, default=Path("run"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.arange(64).repeat(10)), batch_size=64, shuffle=True)
    with ckpt.Checkpointer(arguments.directory, every=len(loader), keep=3) as checkpoints:
        callback = LightningCheckpoints(checkpoints)
        trainer = Trainer(
            max_epochs=arguments.epochs,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(Counting(), loader, ckpt_path=callback.resume())
        print(f"step {trainer.global_step}: loss {trainer.callback_metrics['loss']:.4f}")


if __name__ == "__main__":
    main()
