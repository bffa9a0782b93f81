"""Saves under limits on what a process may have: `python -m support.limited_saves STRATEGY DIRECTORY`.

It imports the library in forked processes only, since TensorStore doesn't live through a fork.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import ckpt
from ckpt import registry
from jobs.faults.children import Child, Ending

LIMITS = {"addresses": (4, 64), "descriptors": (0, 1, 2, 1000)}
"""More than the process has already: MiB, and descriptors."""

_PAGE_BYTES = resource.getpagesize()


def state_of(step: int) -> dict[str, object]:
    """A state of 4 MiB that differs in every part from that of another step."""
    return {"w": torch.full((1 << 20,), float(step)), "step": step}


def _limit(kind: str, more: int) -> None:
    if kind == "addresses":
        have_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
        limit, value = resource.RLIMIT_AS, have_bytes + more * 2**20
    else:
        limit, value = resource.RLIMIT_NOFILE, len(list(Path("/proc/self/fd").iterdir())) - 1 + more  # without its own
    resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


def _save(strategy: str, kind: str, more: int, final: Path) -> Ending:
    """Replace step 1 by step 2 in a process that has saved before."""

    def prepare() -> Callable[[], object]:
        torch.set_num_threads(1)
        registry.create(strategy).prepare()
        for step in (1, 1):
            ckpt.save(state_of(step), final, strategy)
        state = state_of(2)

        def work() -> None:
            _limit(kind, more)
            ckpt.save(state, final, strategy)

        return work

    child = Child(prepare)
    child.go_on()
    return child.ending()


def main(strategy: str, directory: str) -> None:
    """Save under every limit, in a directory of its own; print how that ends."""
    for kind, values in LIMITS.items():
        for more in values:
            final = Path(directory, f"{kind}-{more}", "latest")
            final.parent.mkdir()
            ending = _save(strategy, kind, more, final)
            print(json.dumps([kind, more, ending.returned, ending.error or ending.what]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
