"""A training by the Trainer that resumes: `python examples/train_transformers.py --steps 200 --directory run`.

Kill it at any time and start it again: it continues from the last checkpoint, and ends with the same weights as a run
that was never interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import ckpt
from ckpt.callbacks.trainer import TrainerCheckpoints


def main() -> None:
    """Train a small Llama to count."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--directory", type=Path, default=Path("run"))
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.1, **sizes))
    sequences = [(torch.arange(16) + first) % 64 for first in range(64)]
    data = [{"input_ids": sequence, "labels": sequence} for sequence in sequences]
    settings = TrainingArguments(
        str(arguments.directory / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        logging_steps=arguments.every,
        save_strategy="no",  # the callback saves
        report_to="none",
    )
    with ckpt.Checkpointer(arguments.directory, every=arguments.every, keep=3) as checkpoints:
        callback = TrainerCheckpoints(checkpoints)
        trainer = Trainer(model, settings, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=callback.resume())
        print(f"step {trainer.state.global_step}: loss {trainer.evaluate(data)['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
