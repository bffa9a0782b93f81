"""A training loop that saves its state and resumes: `python examples/train.py --steps 200 --checkpoint run/latest`.

Kill it at any time and start it again: it continues from the last checkpoint, and ends with the same weights as a run
that was never interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import ckpt


def main() -> None:
    """Train a small model to predict the next of a sequence of numbers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint", type=Path, default=Path("run/latest"))
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = 0
    if ckpt.exists(arguments.checkpoint):
        state = ckpt.load(arguments.checkpoint)  # complete and verified, or CheckpointError
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        first = state["step"]
        print(f"resumed at step {first}", flush=True)

    for step in range(first, arguments.steps):
        numbers = torch.randint(0, 64, (128,))
        loss = torch.nn.functional.cross_entropy(model(numbers), (numbers + 1) % 64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "step": step + 1,
            }
            ckpt.save(state, arguments.checkpoint)  # returns when it is on stable storage; replaces the last one
            print(f"step {step + 1}: loss {loss.item():.4f}, saved", flush=True)


if __name__ == "__main__":
    main()
