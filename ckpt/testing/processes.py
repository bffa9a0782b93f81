"""Work in new processes that are forked from one that has imported torch and done nothing else."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from ckpt.strategy import Strategy
from ckpt.workload import building

P = ParamSpec("P")
T = TypeVar("T")


def in_a_new_process(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function of an importable module in a process of its own; returns what it returns.

    Raises:
        Exception: what the function raises.
        BrokenProcessPool: if the process was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch.distributed.checkpoint"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments, **named).result()


def digest_of(strategy: Strategy, directory: Path) -> str:
    """Load a checkpoint; returns the digest of the state."""
    strategy.prepare()
    return building.digest(strategy.load(directory))


def error_of_a_full_disk(strategy: Strategy, directory: Path) -> str | None:
    """Save twice, the second time where no file can grow beyond 4 KiB.

    Returns:
        The full name of the class of the second save's error, as `builtins.OSError`; None if it raised none.
    """
    strategy.prepare()
    state = {str(number): torch.rand(512, 512) for number in range(4)}
    for name in ("whole", "failed"):
        (directory / name).mkdir()
    strategy.save(state, directory / "whole")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        strategy.save(state, directory / "failed")
    except Exception as error:  # noqa: BLE001  # the test judges it
        kind = OSError if isinstance(error, OSError) else type(error)
        return f"{kind.__module__}.{kind.__qualname__}"
    return None
