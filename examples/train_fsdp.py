"""An FSDP2 training that saves with DCP and resumes on another number of ranks, with the same losses.

    torchrun --standalone --nproc-per-node 2 examples/train_fsdp.py --steps 10 --checkpoint run/fsdp
    torchrun --standalone --nproc-per-node 4 examples/train_fsdp.py --steps 20 --checkpoint run/fsdp

The losses are those of 20 steps on any one number of ranks, bit for bit. Two things make them so: every rank computes
the whole batch, and there are 1, 2 or 4 ranks, so that the mean of their equal gradients is exact. A job that divides
the batch adds numbers in an order that depends on the ranks: its losses agree up to rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ckpt
from ckpt.dcp import DirectReader, DirectWriter


class Training:
    """A sharded model, its optimizer and the number of steps that it has done, as DCP saves and loads them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in self.model:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state; DCP calls this for a save, and for a load to learn which tensors to fill."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that DCP has loaded."""
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = state["step"]

    def advance(self) -> float:
        """Train one step; returns the loss."""
        random = torch.Generator().manual_seed(self.step)
        numbers = torch.randint(0, 64, (128,), generator=random)  # the same batch on every rank
        loss = torch.nn.functional.cross_entropy(self.model(numbers), (numbers + 1) % 64)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()


def main() -> None:
    """Train a small model to predict the next of a sequence of numbers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=Path("run/fsdp"))
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    training = Training()
    if ckpt.exists(arguments.checkpoint):
        dcp.load({"training": training}, storage_reader=DirectReader(arguments.checkpoint))
    while training.step < arguments.steps:
        loss = training.advance()
        if dist.get_rank() == 0:
            print(f"step {training.step}: loss {loss.hex()}", flush=True)
        if training.step % arguments.every == 0 or training.step == arguments.steps:
            dcp.save({"training": training}, storage_writer=DirectWriter(arguments.checkpoint))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
