"""Writes a training job's state as a checkpoint and reads it back.

    import ckpt

    ckpt.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "run/latest")
    state = ckpt.load("run/latest")

Useful without the rest of this package. Importing it imports neither torch nor tensorstore: plans need neither.
"""

from ckpt.checkpoint import convert, exists, inspect, load, save
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.series.keep import Keep
from ckpt.series.local import Local
from ckpt.series.preemption import Preemption
from ckpt.series.saving import Outcome
from ckpt.tree.converters import register

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Checkpointer",
    "Keep",
    "Local",
    "Outcome",
    "Preemption",
    "convert",
    "exists",
    "inspect",
    "load",
    "register",
    "save",
]
