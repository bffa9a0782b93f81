"""A callback for transformers' Trainer: it saves behind the training, and a restart goes on where it was interrupted.

    with ckpt.Checkpointer("run", every=500, keep=3) as checkpoints:
        callback = TrainerCheckpoints(checkpoints)
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=callback.resume())

A callback can't tell the Trainer where in the data to go on: the Trainer skips what it has trained only if it resumes
from a directory in its own format. So a restart writes the newest checkpoint in that format, and the Trainer restores
itself from it, in the order that it needs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from ckpt.callbacks import generators
from ckpt.callbacks.ranks import Ranks
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError, wrapped
from ckpt.tree import dtensors

RESUME = "resume"
"""The directory, beside the checkpoints, from which the Trainer resumes."""

_FILES = {"model": "pytorch_model.bin", "optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "scaler": "scaler.pt"}
_STATE = "trainer_state.json"


class TrainerCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Saves what a Trainer needs to go on: model, optimizer, schedule, scaler, its own state, generators of all ranks.

    A step that is due is saved when the next one begins, so that it is logged and evaluated; the last step is always
    saved. What was logged at the step, such as `loss` and `eval_loss`, are its metrics, for `Keep`. Where several ranks
    hold the same state (DistributedDataParallel), rank 0 saves. Set `save_strategy="no"` in the TrainingArguments, or
    the Trainer saves its own checkpoints too.

    Args:
        checkpoints: decides which steps are saved, where and how. Close it after the training.
    """

    def __init__(self, checkpoints: Checkpointer) -> None:
        self._checkpoints = checkpoints
        self._is_due = False
        self._saved_step = 0
        self._resumed: Path | None = None  # until the Trainer has read it
        self._generators: generators.States | None = None  # until they are restored

    @cached_property
    def _ranks(self) -> Ranks:
        return Ranks()

    def resume(self) -> str | None:
        """Return what `Trainer.train` takes as `resume_from_checkpoint`; None if nothing was saved yet.

        The newest checkpoint that loads is written to the directory `resume`, beside the checkpoints, in the Trainer's
        format; it is removed as soon as all ranks have read it. Every rank calls this, after the Trainer was made.

        Raises:
            CheckpointError: as `Checkpointer.restore` does; or if there is no room for the directory.
        """
        answer: tuple[Path, list[generators.States]] | None = None
        if self._ranks.number == 0 and (restored := self._checkpoints.restore()):
            path = self._checkpoints.directory / RESUME
            with wrapped(f"can't write {path}, from which the Trainer resumes"):
                _write(restored.state, path)
            answer = path, restored.state["generators"]
        answer = self._ranks.first(answer)
        if answer is None:
            return None
        self._resumed, of_ranks = answer
        self._generators = dict(enumerate(of_ranks)).get(self._ranks.number)
        return str(self._resumed)

    def on_train_begin(self, args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        """Refuse what can't be saved, and remove what the Trainer has read."""
        _refuse_shards(args, model)
        self._is_due, self._saved_step = False, state.global_step
        if self._resumed is None:
            return
        self._ranks.all(None)  # they have read it
        if self._ranks.number == 0:
            shutil.rmtree(self._resumed, ignore_errors=True)
        self._resumed = None
        if state.global_step >= state.max_steps and not _is_between_epochs(state):
            raise CheckpointError(
                f"{self._checkpoints.directory} has a checkpoint of step {state.global_step}, and this training ends "
                f"at step {state.max_steps}: the Trainer would train one step more. Raise max_steps, or load the "
                "checkpoint with ckpt.load"
            )

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **parts: Any) -> None:
        """Save the last step of the epoch before; after a restart, restore the generators that order the data."""
        if self._generators and _is_between_epochs(state):
            self._restore_generators()
        if self._is_due:
            self._save(state, **parts)

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **parts: Any) -> None:
        """Save the step before; after a restart, restore the generators, from which skipped data may have drawn."""
        if self._generators:
            self._restore_generators()
        if self._is_due:
            self._save(state, **parts)

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Ask whether to save."""
        self._is_due = self._ranks.first(self._checkpoints.due(state.global_step))

    def on_train_end(self, args: Any, state: Any, _control: Any, **parts: Any) -> None:
        """Save the last step, and wait until it is committed."""
        # The Trainer may have loaded the best model's weights, which are another step's.
        if state.global_step > self._saved_step and not args.load_best_model_at_end:
            self._save(state, **parts)
        self._checkpoints.wait()

    def _restore_generators(self) -> None:
        assert self._generators is not None
        generators.restore(self._generators)
        self._generators = None

    def _save(self, state: Any, *, model: Any, optimizer: Any, lr_scheduler: Any, **_: Any) -> None:
        self._is_due, self._saved_step = False, state.global_step
        of_ranks = self._ranks.all(generators.states())
        if self._ranks.number:
            return
        scaler = getattr(optimizer, "scaler", None)
        content = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "trainer": asdict(state),
            "generators": of_ranks,
        }
        self._checkpoints.save(state.global_step, content, _metrics(state))


def _is_between_epochs(state: Any) -> bool:
    return float(state.epoch).is_integer()


def _metrics(state: Any) -> dict[str, float]:
    """Return the numbers that were logged at the last step."""
    entries = takewhile(lambda entry: entry.get("step") == state.global_step, reversed(state.log_history))
    return {
        name: float(value)
        for entry in entries
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in {"epoch", "step"}
    }


def _write(state: Mapping[str, Any], directory: Path) -> None:
    """Write a state as the Trainer writes its checkpoints; what an earlier restart left there is replaced.

    Raises:
        CheckpointError: if the directory holds anything else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if foreign := sorted({path.name for path in directory.iterdir()} - {*_FILES.values(), _STATE}):
        raise CheckpointError(f"{directory} holds {foreign[0]}, which no restart left there: move the directory away")
    for name, file in _FILES.items():
        (directory / file).unlink(missing_ok=True)
        if state[name]:
            torch.save(state[name], directory / file)
    TrainerState(**state["trainer"]).save_to_json(str(directory / _STATE))


def _refuse_shards(args: Any, model: Any) -> None:
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", ())
    is_fsdp = isinstance(model, fsdp) or dtensors.are_in(dict(model.named_parameters()))
    if is_fsdp or args.deepspeed_plugin is not None:
        raise CheckpointError(
            "TrainerCheckpoints can't save a model or an optimizer that is sharded over the ranks (FSDP, DeepSpeed, "
            "tensor parallelism): use the Trainer's own checkpoints (save_strategy), or a training loop in which all "
            "ranks call ckpt.save"
        )
