"""A training loop that saves behind itself and resumes: `python examples/train.py --steps 200 --directory run`.

Kill it at any time and start it again: it continues from the last checkpoint, and ends with the same weights as a run
that was never interrupted. After SIGUSR2 or SIGTERM, by which a batch system announces the end of a job, it saves once
more and ends with exit code 75: `train.sbatch` puts it back in Slurm's queue.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

import ckpt

GRACE_S = {signal.SIGUSR2: 120, signal.SIGTERM: 30}
"""Until the job is killed: as train.sbatch asks for; as Slurm waits (KillWait, GraceTime)."""


def main() -> None:
    """Train a small model to predict the next of a sequence of numbers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--directory", type=Path, default=Path("run"))
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with (
        ckpt.Preemption(GRACE_S) as preemption,
        ckpt.Checkpointer(arguments.directory, every=arguments.every, keep=3, preemption=preemption) as checkpoints,
    ):
        first = 0
        if restored := checkpoints.restore():  # complete and verified
            model.load_state_dict(restored.state["model"])
            optimizer.load_state_dict(restored.state["optimizer"])
            torch.set_rng_state(restored.state["random"])
            first = restored.step
            print(f"resumed at step {first}", flush=True)

        for step in range(first + 1, arguments.steps + 1):
            numbers = torch.randint(0, 64, (128,))
            loss = torch.nn.functional.cross_entropy(model(numbers), (numbers + 1) % 64)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if checkpoints.due(step) or step == arguments.steps:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": torch.get_rng_state(),
                }
                checkpoints.save(step, state, metrics={"loss": loss.item()})  # another process writes it
                print(f"step {step}: loss {loss.item():.4f}", flush=True)
            if preemption.should_stop:
                break
    if preemption.should_stop:
        sys.exit(os.EX_TEMPFAIL)  # 75: to be continued


if __name__ == "__main__":
    main()
