"""A callback for Lightning: it saves behind the training, and a restart goes on where it was interrupted.

    with ckpt.Checkpointer("run", every=500, keep=3) as checkpoints:
        callback = LightningCheckpoints(checkpoints)
        trainer = Trainer(callbacks=[callback], enable_checkpointing=False)
        trainer.fit(model, data, ckpt_path=callback.resume())

Lightning collects what it saves, and restores itself. The callback says when, and adds the random number generators,
which Lightning leaves out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from ckpt.callbacks import generators
from ckpt.callbacks.ranks import Ranks
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from ckpt.series import steps
from ckpt.series.resuming import Restored


class LightningCheckpoints(Callback):  # type: ignore[misc]  # its types aren't read
    """Saves what Lightning's own checkpoints have, and the random number generators of all ranks.

    A step that is due is saved at its end, or at the end of the epoch if it is an epoch's last step; the last step is
    always saved. `Keep` may ask for whatever the model has logged (`trainer.callback_metrics`). Where several ranks
    hold the same state (DistributedDataParallel), rank 0 saves.

    Training resumes within an epoch only as exactly as the data loader does: one with `state_dict` and
    `load_state_dict`, such as torchdata's StatefulDataLoader, goes on with its next batch, and a plain DataLoader
    begins again. At the end of an epoch, any loader goes on as it would have.

    Args:
        checkpoints: decides which steps are saved, where and how. Close it after the training.
    """

    def __init__(self, checkpoints: Checkpointer) -> None:
        self._checkpoints = checkpoints
        self._restored: Restored | None = None  # until Lightning has taken it
        self._generators: generators.States | None = None  # until they are restored
        self._is_due = self._is_within_epoch = False
        self._step = self._saved_step = 0

    def resume(self) -> str | None:
        """Return what `Trainer.fit` takes as `ckpt_path`; None if nothing was saved yet.

        Every rank calls this, and loads the newest checkpoint.

        Raises:
            CheckpointError: as `Checkpointer.restore` does.
        """
        self._restored = self._checkpoints.restore()
        return str(steps.path_of(self._checkpoints.directory, self._restored.step)) if self._restored else None

    def setup(self, trainer: Any, _module: Any, stage: str) -> None:
        """Let Lightning save and load by this callback, beside what else it saves and loads.

        Raises:
            CheckpointError: if the strategy shards over the ranks, or the ranks have loaded different steps: some of
                them would wait for the others for ever.
        """
        if stage != "fit":
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise CheckpointError(
                f"LightningCheckpoints can't save what {type(trainer.strategy).__name__} shards over the ranks: use "
                "Lightning's ModelCheckpoint, or a training loop in which all ranks call ckpt.save"
            )
        self._trainer, self._ranks = trainer, Ranks()
        of_ranks = self._ranks.all(self._restored.step if self._restored else None)
        if len(set(of_ranks)) > 1:
            known = ", ".join(f"rank {rank}: {step}" for rank, step in enumerate(of_ranks))
            raise CheckpointError(
                f"the ranks have loaded different steps ({known}): the checkpoints must be on a filesystem that all "
                "ranks share, and be committed before any rank resumes"
            )
        if not isinstance(trainer.strategy.checkpoint_io, _SeriesIO):
            trainer.strategy.checkpoint_io = _SeriesIO(self, trainer.strategy.checkpoint_io)

    def state_dict(self) -> dict[str, Any]:
        """Return what belongs to every checkpoint of Lightning, whoever saves it; every rank calls this."""
        return {"generators": self._ranks.all(generators.states()), "is_within_epoch": self._is_within_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the generators until the training begins."""
        self._generators = dict(enumerate(state_dict["generators"])).get(self._ranks.number)
        self._is_within_epoch = state_dict["is_within_epoch"]

    def on_fit_start(self, _trainer: Any, _module: Any) -> None:
        """Restore the generators, from which the order of the next epoch's data is drawn."""
        if self._generators:
            generators.restore(self._generators)

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Begin with no step to save."""
        self._is_due, self._step, self._saved_step = False, trainer.global_step, trainer.global_step

    def on_train_batch_start(self, *_: Any) -> None:
        """Restore the generators within an epoch, after the loader may have drawn from them."""
        if self._generators and self._is_within_epoch:
            generators.restore(self._generators)
        self._generators = None

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Save the step if it is due, unless the epoch ends with it."""
        self._is_within_epoch = not trainer.is_last_batch
        if trainer.global_step == self._step:  # gradients are accumulated
            return
        self._step = trainer.global_step
        self._is_due = self._ranks.first(self._checkpoints.due(self._step))
        # With max_steps, Lightning resumes at the end of an epoch without validation by a step too many.
        if self._is_due and (self._is_within_epoch or trainer.max_steps >= 0):
            self._save()

    def on_validation_end(self, trainer: Any, _module: Any) -> None:
        """Save again a step that was saved and then validated: what validation changed belongs to it."""
        if trainer.sanity_checking or self._saved_step != self._step or self._step == 0:
            return
        if self._is_within_epoch:
            self._save()
        else:
            self._is_due = True  # at the end of the epoch

    def on_train_epoch_end(self, _trainer: Any, _module: Any) -> None:
        """Save the epoch's last step if it is due."""
        self._is_within_epoch = False
        if self._generators:  # before a step: Lightning ends the epoch again, and makes a second iterator
            generators.restore(self._generators)
            self._generators = None
        if self._is_due:
            self._save()

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Save the last step, and wait until it is committed."""
        if self._step > self._saved_step:
            self._save()
        self._checkpoints.wait()

    def owns(self, path: Any) -> bool:
        """Whether a path is that of a checkpoint in the series."""
        return Path(path).parent == self._checkpoints.directory and steps.step_of(Path(path).name) is not None

    def take_restored(self, path: Any) -> dict[str, Any]:
        """Return the state that `resume` has loaded, and forget it.

        Raises:
            CheckpointError: if it has loaded none.
        """
        restored, self._restored = self._restored, None
        if restored is None:
            raise CheckpointError(f"{path} isn't loaded: pass what LightningCheckpoints.resume() returns as ckpt_path")
        state: dict[str, Any] = restored.state
        return state

    def write(self, content: dict[str, Any]) -> None:
        """Save what Lightning has collected; rank 0 calls this."""
        metrics = {name: float(value) for name, value in self._trainer.callback_metrics.items()}
        self._checkpoints.save(self._step, content, metrics)

    def _save(self) -> None:
        self._is_due, self._saved_step = False, self._step
        self._trainer.save_checkpoint(steps.path_of(self._checkpoints.directory, self._step), weights_only=False)


class _SeriesIO(CheckpointIO):  # type: ignore[misc]
    """Saves and loads the checkpoints of a callback's series, and leaves other paths to the plugin that was there."""

    def __init__(self, owner: LightningCheckpoints, other: Any) -> None:
        self._owner, self._other = owner, other

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if self._owner.owns(path):
            self._owner.write(checkpoint)
        else:
            self._other.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        if self._owner.owns(path):
            return self._owner.take_restored(path)
        loaded: dict[str, Any] = self._other.load_checkpoint(path, *arguments, **options)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        self._other.remove_checkpoint(path)

    def teardown(self) -> None:
        self._other.teardown()
