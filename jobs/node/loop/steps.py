"""What a step of the loop does to its node: the same amount of work every time, so that whatever slows it down shows.

How much that is, is measured before the first block, so that a step takes the stated time without checkpoints.
"""

from __future__ import annotations

import importlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.errors import StudyError

Work = Callable[[], None]

_MATRIX = 512
"""Rows and columns: three products of such matrices take some milliseconds on one core."""
_COPIED_BYTES = 32 * 2**20
"""More than a core's share of any cache."""
_SMALL_CALLS = 1000
_CALIBRATION_S = 0.5
_UPDATES = 10


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work that a step repeats."""

    run: Work
    is_sleep: bool = False


def cores_of(asked: int | None, tasks_per_node: int) -> int:
    """How many cores a rank's steps use: as asked, else all that it may use, or its share of the node's."""
    allowed = len(os.sched_getaffinity(0))
    if asked is not None:
        if asked > allowed:
            raise StudyError(
                f"loop.cores = {asked}, and this rank may use {allowed}: ask Slurm for more (`cpus_per_task`), or "
                "lower loop.cores"
            )
        return asked
    shared = allowed == os.cpu_count()
    return max(1, allowed // tasks_per_node) if shared else allowed


def piece_of(kind: str, cores: int, step_s: float) -> Piece:
    """The work of a kind of step; your own does all of a step at once.

    Raises:
        StudyError: if your own can't be imported, or doesn't return something to call.
    """
    import torch

    torch.set_num_threads(cores)
    if kind == "compute":
        return Piece(_matrix_products())
    if kind == "memory":
        return Piece(_copies())
    if kind == "launch":
        return Piece(_small_calls())
    if kind == "idle":
        return Piece(lambda: None, is_sleep=True)
    return Piece(_own(kind, cores, step_s))


def _matrix_products() -> Work:
    """A layer's forward and backward pass."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs, weights, gradient = (torch.randn(_MATRIX, _MATRIX, generator=generator) for _ in range(3))
    outputs, of_inputs, of_weights = (torch.empty(_MATRIX, _MATRIX) for _ in range(3))

    def work() -> None:
        torch.mm(inputs, weights, out=outputs)
        torch.mm(gradient, weights.T, out=of_inputs)
        torch.mm(inputs.T, gradient, out=of_weights)

    return work


def _copies() -> Work:
    import torch

    source, target = torch.zeros(_COPIED_BYTES, dtype=torch.uint8), torch.empty(_COPIED_BYTES, dtype=torch.uint8)

    def work() -> None:
        target.copy_(source)

    return work


def _small_calls() -> Work:
    """What the host's thread of a GPU does: call after call, taking the interpreter's lock for each."""
    import torch

    tensor = torch.zeros(16)

    def work() -> None:
        for _ in range(_SMALL_CALLS):
            tensor.add_(1)

    return work


def _own(kind: str, cores: int, step_s: float) -> Work:
    module, _, name = kind.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)(step_s=step_s, cores=cores)
    except Exception as error:
        raise StudyError(
            f"loop.step = {kind!r} can't be made ({type(error).__name__}: {error}): expected a function of an "
            "importable module that takes step_s and cores, and returns what a step calls"
        ) from error
    if not callable(made):
        raise StudyError(
            f"loop.step = {kind!r} returned {type(made).__name__}, expected something to call in each step"
        )

    def work() -> None:
        try:
            made()
        except Exception as error:
            raise StudyError(f"loop.step = {kind!r} failed in a step ({type(error).__name__}: {error})") from error

    return work


def step_work(
    kind: str, piece: Piece, step_s: float, update_s: float, everyone: Callable[[float], Sequence[float]]
) -> Work:
    """A step without its update: so much of a piece of work that both together take the stated time.

    Args:
        kind: of the step, for the message; your own is called once a step, whatever it takes.
        piece: what is repeated.
        step_s: how long a step is to take.
        update_s: how long the update of the state takes.
        everyone: the numbers of all ranks, given this one's.

    Raises:
        StudyError: if the update alone takes longer.
    """
    rest_s = step_s - max(everyone(update_s))
    if rest_s <= 0:
        raise StudyError(
            f"a step of {step_s} s is too short for the update of the state, which takes {step_s - rest_s:.2f} s here: "
            "raise loop.step_s, or take a smaller state"
        )
    if piece.is_sleep:
        return lambda: time.sleep(rest_s)
    if ":" in kind:
        return piece.run
    piece.run()
    once_s = _time_of(piece.run, _CALIBRATION_S)
    if once_s > rest_s:
        raise StudyError(
            f"a step of {step_s} s is too short for the kind {kind!r}, which takes {once_s + step_s - rest_s:.3f} s at "
            "least here: raise loop.step_s"
        )
    times = round(rest_s / once_s)
    for _ in range(2):  # a long run is slower than a short one: caches, clocks, other ranks
        once_s = _time_of(partial(_repeat, piece.run, times), 2 * rest_s) / times
        times = max(1, round(rest_s / once_s))
    times = max(1, int(min(everyone(times))))
    return lambda: _repeat(piece.run, times)


def _repeat(work: Work, times: int) -> None:
    for _ in itertools.repeat(None, times):
        work()


def _time_of(work: Work, at_least_s: float) -> float:
    """The median time of a call, over so many seconds, in s."""
    times: list[float] = []
    end = time.perf_counter() + at_least_s
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_of_update(change: Callable[[int], Any]) -> float:
    """How long an update takes that nothing holds up, in s; as many are taken back as are made."""
    times = []
    for number in itertools.islice(itertools.cycle((1, -1)), _UPDATES):
        start = time.perf_counter()
        change(number)
        times.append(time.perf_counter() - start)
    return min(times)
