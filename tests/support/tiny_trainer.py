"""A tiny language model that transformers' Trainer trains, and that can be interrupted.

`torchrun … -m support.tiny_trainer DIRECTORY` trains it on several ranks: uninterrupted, interrupted, and resumed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import ckpt
from ckpt.callbacks.trainer import TrainerCheckpoints
from support.drawn import Numbers, draw, same_weights

LAST = 13
"""The steps of a training; an epoch has 5."""


class InterruptedTrainingError(Exception):
    """Ends a training in the middle of it."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Draws random numbers in every step, and ends the training after a step."""

    def __init__(self, interrupt_after: int) -> None:
        self._interrupt_after = interrupt_after
        self.drawn: Numbers = {}

    def on_step_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Draw."""
        self.drawn[state.global_step + 1] = draw(args.process_index)

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """End the training."""
        if state.global_step == self._interrupt_after:
            raise InterruptedTrainingError


def make(directory: Path, callbacks: Iterable[Any], seed: int = 0, **options: Any) -> Any:
    """Make a Trainer of a new model; it has 13 steps of 4 sequences, and evaluates after every third."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    numbers = torch.randint(32, (20, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in numbers]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    settings: dict[str, Any] = {
        "max_steps": LAST,
        "per_device_train_batch_size": 2 // ranks,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(str(directory / "trainer"), **settings | options),
        train_dataset=data,
        eval_dataset=data[:4],
        callbacks=list(callbacks),
    )


def train(directory: Path, every: int, interrupt_after: int = 0, seed: int = 0, **options: Any) -> tuple[Any, Numbers]:
    """Train, from the newest checkpoint in the directory; returns the Trainer, and what its steps drew."""
    watch = Watch(interrupt_after)
    with ckpt.Checkpointer(directory / "run", every=every, background="thread") as checkpoints:
        callback = TrainerCheckpoints(checkpoints)
        trainer = make(directory, [callback, watch], seed, **options)
        trainer.train(resume_from_checkpoint=callback.resume())
    return trainer, watch.drawn


def losses(trainer: Any) -> dict[int, float]:
    """The losses that were logged, by step."""
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def main(directory: Path) -> None:
    """Check on every rank that an interrupted training ends as an uninterrupted one."""
    whole, drawn = train(directory / "uninterrupted", 4)
    try:
        train(directory / "interrupted", 4, interrupt_after=10)
    except InterruptedTrainingError:
        resumed, drawn_later = train(directory / "interrupted", 4, seed=1)
    assert list(drawn_later) == [9, 10, 11, 12, 13]
    assert drawn_later == {step: numbers for step, numbers in drawn.items() if step > 8}
    assert same_weights(whole.model, resumed.model)
    assert losses(whole) == losses(resumed)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: the same")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
