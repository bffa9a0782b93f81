"""How a model's state is written and read back: states, strategies, storage, commits.

    import ckpt

    ckpt.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "run/latest")
    state = ckpt.load("run/latest")

Useful on its own. Importing it loads neither torch nor tensorstore: a login node can plan without them.
"""

from ckpt.checkpoint import convert, inspect, load, save
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.tree.converters import register

__all__ = ["CheckpointError", "CheckpointWarning", "convert", "inspect", "load", "register", "save"]
