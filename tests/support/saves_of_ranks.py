"""One save by several ranks, to be recorded: `python -m support.saves_of_ranks WHAT DIRECTORY STEP RANKS [SKIP]`.

WHAT is as in `support.one_save`. SKIP names who doesn't sync the files of rank 1: see `doctor`. The program forks the
ranks, and so must have no other Python threads.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import ckpt
from ckpt.disk import durable, writeback
from jobs.faults.recording import mark
from support import one_save


def state_of(step: int) -> dict[str, Any]:
    """This rank's part of a state: a shard of the weight, which is tied, and what every rank has."""
    state = one_save.state_of(step)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight = distribute_tensor(state["model"]["weight"], mesh, [Shard(0)])
    return state | {"model": state["model"] | {"weight": weight, "tied": weight}}


def doctor(skip: str) -> None:
    """Leave out the syncs of rank 1's files: `rank 0`'s, which may not reach another node's cache; or `both` ranks'."""
    if skip and dist.get_rank() == 0:
        flush = durable.flush

        def flush_others(path: Path, **_: Any) -> None:
            durable.sync_files([file for file in path.iterdir() if not file.name.startswith("__1_")])
            flush(path, files=False)

        durable.flush, writeback.raise_errors = flush_others, lambda *_: None  # type: ignore[assignment]
    elif skip == "both":
        durable.sync_files = lambda *_, **__: None


def save(what: str, directory: Path, step: int) -> None:
    """Save on this rank; the first mark of a kind is that of the first rank."""
    state = state_of(step)
    if what == "save":
        dist.barrier()
        mark("begin")
        ckpt.save(state, directory / "run" / "latest")
        mark("returned")
        return
    local: dict[str, Any] = {"local": directory / "local"} if what.endswith("2") else {}
    with ckpt.Checkpointer(directory / "shared", background="thread", keep=1, **local) as checkpoints:
        checkpoints.restore(state_of(0))
        dist.barrier()
        mark("begin")
        checkpoints.save(step, state)
        checkpoints._wait_for_save()
        mark("returned")
        checkpoints.wait()
        mark("drained")


def be_rank(rank: int, ranks: int, port: int, words: list[str]) -> None:
    """Save on a rank of a process group; ends the process."""
    what, directory, step, *skip = words
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]  # as below
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        doctor("".join(skip))
        save(what, Path(directory), int(step))
        dist.barrier()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # shown; the program fails
        traceback.print_exc()
        os._exit(1)


def main(what: str, directory: str, step: str, ranks: str, *skip: str) -> None:
    """Fork the ranks, and wait for them."""
    torch.set_num_threads(1)  # torch's threads don't survive a fork
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]  # it is documented all the same
    children = []
    for rank in range(int(ranks)):
        children.append(os.fork())
        if not children[-1]:
            be_rank(rank, int(ranks), server.port, [what, directory, step, *skip])
    endings = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(endings))


if __name__ == "__main__":
    main(*sys.argv[1:])
