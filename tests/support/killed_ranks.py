"""A training loop of several ranks that are killed at random instants.

    python -m support.killed_ranks DIRECTORY BACKGROUND LEVELS RANKS KILLS SEED [NODES]

It forks the ranks, and so must have no other threads: a process of its own. The ranks check every restart. On several
nodes, ranks have different local directories.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ckpt.checkpointer import Checkpointer
from support.kills import LONGEST_S, levels_of, require_nothing_else
from support.series_ranks import ON_NODE
from support.shared_states import same, state_of


def train(run: Path, saving: dict[str, Any], rank: int, ranks: int, meeting: Path, reports: int) -> None:
    """Restore, check it, and save after every step; report the step that was restored, and those that are committed.

    `saving` are arguments of the `Checkpointer`.
    """
    store = dist.FileStore(str(meeting), ranks)  # type: ignore[attr-defined]  # it is documented all the same
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    with Checkpointer(**saving, keep=2, timeout_s=60) as checkpoints:
        state = state_of(0)
        restored = checkpoints.restore(state)
        step = restored.step if restored else 0
        if restored:
            expected = state_of(step)["model"]
            assert all(same(state["model"][name], tensor) for name, tensor in expected.items())
            assert restored.state["step"] == step
            assert restored.skipped.keys() <= ({step + 1} if saving.get("local") == ON_NODE else set())
        if rank == 0:
            checkpoints.wait()  # until what was restored is on both levels
            require_nothing_else(run)
        dist.barrier()
        os.write(reports, step.to_bytes(8))
        while True:
            checkpoints.save(step + 1, state_of(step + 1))  # the save before is committed
            os.write(reports, step.to_bytes(8))
            step += 1


def start(run: Path, background: str, levels: int, ranks: int, nodes: int, meeting: Path) -> list[tuple[int, int]]:
    """Fork the ranks; returns their numbers, and the pipes of their reports."""
    started = []
    for rank in range(ranks):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                saving = levels_of(run, levels) | {"background": background}
                if nodes > 1:
                    os.chdir(run.with_name(f"node-{rank * nodes // ranks}"))
                    saving["local"] = ON_NODE
                train(run, saving, rank, ranks, meeting, writing)
            except BaseException:  # noqa: BLE001  # shown; the program fails for want of a report
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writing)
        started.append((child, reading))
    return started


def kill(started: list[tuple[int, int]], reports: int, after_s: float, apart_s: float) -> tuple[int, int]:
    """Kill the ranks after so many reports, one after the other; returns the steps that they restored and committed."""
    pipes = [open(reading, "rb") for _, reading in started]  # noqa: SIM115, PTH123  # descriptors
    seen = [pipe.read(8 * (1 + reports)) for pipe in pipes]
    time.sleep(after_s)
    for child, _ in started:
        os.kill(child, signal.SIGKILL)
        time.sleep(apart_s)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in started]
    restored = {first[:8] for first in seen}
    assert len(restored) == 1, f"ranks restored different steps, or failed: {statuses}"
    last = [(before + pipe.read())[-8:] for before, pipe in zip(seen, pipes, strict=True)]
    for pipe in pipes:
        pipe.close()
    return int.from_bytes(restored.pop()), max(map(int.from_bytes, last))


def main(directory: Path, background: str, levels: int, ranks: int, kills: int, seed: int, nodes: int = 1) -> None:
    """Kill the ranks so many times; every restart checks what the one before left. Print the last step."""
    torch.set_num_threads(1)  # torch's threads don't survive a fork
    chance = random.Random(seed)
    (directory / "run").mkdir(parents=True)
    for number in range(nodes):
        (directory / f"node-{number}").mkdir()
    newest = 0
    for number in range(kills + 1):
        children = start(directory / "run", background, levels, ranks, nodes, directory / f"meeting-{number}")
        # A rank that outlives another one waits for it, and may report that.
        apart_s = chance.choice((0, 0, 0.02))
        restored, committed = kill(children, number % 3, chance.uniform(0, LONGEST_S), apart_s)
        assert restored >= newest, (restored, newest)
        newest = committed
    print(newest)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
