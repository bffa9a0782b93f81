"""Processes that are ranks of torch.distributed, as a training job's are: `python -m support.gloo_ranks` is one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import IO, Any, Self

import torch.distributed as dist

TIMEOUT_S = 300


class GlooRanks:
    """As many processes as there may be ranks; they are started when they are needed, and used again.

    A process always has the same rank: DTensor's caches don't know that it could change.
    """

    def __init__(self) -> None:
        self._server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]  # it is documented all the same
        self._turns = count()
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            _stdin(process).close()
        for process in self._started:
            process.wait(TIMEOUT_S)
            _stdout(process).close()

    def __call__(self, work: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
        """Call a function on every rank of a new default process group.

        Returns:
            What the ranks returned, in their order; the exception if it raised one, and None if the process died.
        """
        turn = next(self._turns)
        while len(self._started) < size:
            self._started.append(self._start())
        for rank in range(size):
            if self._started[rank].poll() is not None:
                self._started[rank] = self._start()
            pickle.dump((work, turn, rank, size, arguments), _stdin(self._started[rank]))
            _stdin(self._started[rank]).flush()
        return [_result(process) for process in self._started[:size]]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __name__, str(self._server.port)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _result(process: subprocess.Popen[bytes]) -> Any:
    try:
        return pickle.load(_stdout(process))
    except EOFError:  # it died
        process.wait(TIMEOUT_S)
        _stdin(process).close()
        _stdout(process).close()
        return None


def serve(port: int) -> None:
    """Be a rank of one group after the other, until there is no more to do."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    server = dist.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]  # as above
    while True:
        try:
            work, turn, rank, size, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        store = dist.PrefixStore(f"turn {turn}", server)  # type: ignore[attr-defined]  # as above
        limit = timedelta(seconds=TIMEOUT_S)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        try:
            result = work(*arguments)
        except Exception as error:  # noqa: BLE001  # every test checks which it expects
            result = error
        if dist.is_initialized():
            dist.destroy_process_group()
        pickle.dump(result, answers)
        answers.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
