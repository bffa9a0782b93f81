"""Work in too small a memory cgroup: `python -m support.starved WHAT STRATEGY DIRECTORY GROUP` runs out of it.

WHAT is `save`, `load` or `series`; GROUP is the file to which a process writes its number to join. What it needs is in
memory before, so that the group is charged for the work alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import ckpt

ELEMENTS = 1 << 24
"""Of the state: 64 MiB."""


def state_of(step: int) -> dict[str, object]:
    """A state that differs in every part from that of another step."""
    return {"w": torch.full((ELEMENTS,), float(step)), "step": step}


def main(what: str, strategy: str, directory: Path, group: Path) -> None:
    """Do it, and print what returned."""
    torch.set_num_threads(1)
    state, final = state_of(2), directory / "latest"
    for name in (1, 2):
        ckpt.save({"w": torch.zeros(10)}, directory.with_name("small") / str(name), strategy)
    ckpt.load(directory.with_name("small") / "1")
    group.write_text(str(os.getpid()))
    print("begun", flush=True)
    if what == "save":
        ckpt.save(state, final, strategy)
    elif what == "load":
        ckpt.load(final)
    else:
        with ckpt.Checkpointer(directory, background="thread", strategy=strategy) as checkpoints:
            checkpoints.save(2, state)
    print("returned", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
