"""The process that saves behind a program: `python -m ckpt.background.worker DESCRIPTOR`, started by `ProcessSaver`."""

from __future__ import annotations

import array
import mmap
import os
import pickle
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("!Q")


def send(channel: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message, with open files that the other process gets.

    Raises:
        OSError: if the other process is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([_LENGTH.pack(len(message))], ancillary)
    channel.sendall(message)


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for one message; returns it, and the open files that came with it.

    Raises:
        EOFError: if the other process is gone.
        OSError: likewise.
    """
    header, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    header += _exactly(channel, _LENGTH.size - len(header)) if header else b""
    if not header:
        raise EOFError("the other process is gone")
    return _exactly(channel, _LENGTH.unpack(header)[0]), descriptors


def _exactly(channel: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = channel.recv(min(length, 1 << 20))
        if not part:
            raise EOFError("the other process is gone")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def main(descriptor: int) -> None:
    """Do what is sent, one task after the other, until the program closes the connection."""
    with socket.socket(fileno=descriptor) as channel:
        prepare = pickle.loads(receive(channel)[0])  # noqa: S301  # from the program that started this process
        _answer(channel, prepare or (lambda: None))
        while True:
            try:
                message, descriptors = receive(channel)
            except (EOFError, OSError):
                return
            _answer(channel, lambda message=message, descriptors=descriptors: _run(message, descriptors))


def _run(message: bytes, descriptors: list[int]) -> Any:
    from ckpt.background.saver import Done
    from ckpt.background.snapshot import tensors_in

    task, snapshot, size_bytes = pickle.loads(message)  # noqa: S301  # from the program that started this process
    memory = mmap.mmap(descriptors[0], size_bytes)
    os.close(descriptors[0])
    started_s = time.process_time()
    value = task(tensors_in(memory, snapshot))
    return Done(value, time.process_time() - started_s)


def _answer(channel: socket.socket, work: Any) -> None:
    """Do something, and send what it returned or raised."""
    from ckpt.errors import CheckpointError

    try:
        answer = ("done", work())
    except Exception as error:  # noqa: BLE001  # raised in the program
        answer = ("failed", error)
    try:
        message = pickle.dumps(answer)
        pickle.loads(message)  # noqa: S301  # an exception may refuse to be made again
    except Exception:  # noqa: BLE001
        value = answer[1]
        message = pickle.dumps(("failed", CheckpointError(f"{type(value).__name__}: {value}")))
    send(channel, message)


if __name__ == "__main__":
    main(int(sys.argv[1]))
