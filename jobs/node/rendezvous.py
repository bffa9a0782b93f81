"""How the processes of a job meet: by the first one's address and a secret, in a file of the study.

Only the user can read it, and a process that hasn't read it can't take part.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ckpt.disk.durable import write_atomically
from ckpt.errors import LostRankError
from ckpt.process_group.exchange import SECRET_BYTES, Exchange
from ckpt.process_group.exchange_server import Server
from jobs.errors import StudyError

_POLL_S = 0.1

_GRACE_S = 10
"""How much longer than the rank timeout an answer may take, so that the first rank names whom all wait for."""

_REPLACED_WITHIN_S = 5
"""How long an address may refuse: one that a killed start left is replaced as soon as rank 0 starts."""

_LONGEST_BYTES = 1000


@contextlib.contextmanager
def meet(path: Path, number: int, count: int, *, one_host: bool, timeout_s: float) -> Iterator[Exchange]:
    """Join the other processes; the file exists while the body runs, in which all must arrive.

    Args:
        path: of the file, the same for all.
        number: this process's, from 0; the first one serves.
        count: of processes.
        one_host: whether all run on one machine: then nobody else can connect.
        timeout_s: how long to look for the first, and for any answer of it.

    Raises:
        LostRankError: if the first one can't be reached.
        StudyError: if others than this user can read or write the file, or made it.
    """
    if number:
        yield _join(path, number, timeout_s)
        return
    host = "127.0.0.1" if one_host else _own_address()
    secret = secrets.token_bytes(SECRET_BYTES)
    server = Server(host, secret, count)
    address = f"{host or socket.gethostname()} {server.port} {secret.hex()}\n"
    write_atomically(path, address, sync=False, mode=0o600)
    try:
        yield _join(path, number, timeout_s)
    finally:
        path.unlink(missing_ok=True)


def _own_address() -> str:
    """Where other machines reach this one; empty if its name doesn't resolve to that: then it listens everywhere."""
    try:
        address = str(socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""
    return "" if address.startswith("127.") or address == "::1" or "%" in address else address


def _read(path: Path) -> tuple[str, int, bytes]:
    """Host, port and secret."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StudyError(f"{path} is no file of ours, and the ranks were to meet there: {error}; remove it") from error
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        private = stat.S_ISREG(facts.st_mode) and not facts.st_mode & 0o077
        if not private or facts.st_uid != os.geteuid():
            raise StudyError(
                f"{path} has mode {stat.S_IMODE(facts.st_mode):04o} and belongs to user {facts.st_uid}; the ranks meet "
                f"only where mode 0600 and user {os.geteuid()} keep others out: remove it, and put the results on a "
                "filesystem with owners and modes"
            )
        content = file.read(_LONGEST_BYTES)
    try:
        host, digits, hexadecimal = content.decode("ascii").split()
        port, secret = int(digits), bytes.fromhex(hexadecimal)
    except ValueError:
        port, secret = 0, b""
    if not 0 < port < 2**16 or len(secret) != SECRET_BYTES:
        raise StudyError(f"{path} does not say where the ranks meet: remove it, and start the job again")
    return host, port, secret


def _join(path: Path, number: int, timeout_s: float) -> Exchange:
    """Connect; again, if strangers are in the way."""
    end = time.monotonic() + timeout_s
    refused: dict[str, float] = {}
    while True:
        where = "the address"
        try:
            host, port, secret = _read(path)
            where = f"{host}:{port}"
            return Exchange((host, port), secret, number, socket.gethostname(), timeout_s + _GRACE_S)
        except FileNotFoundError:
            if time.monotonic() > end:
                raise LostRankError(
                    f"rank 0 left no address in {path} within {timeout_s:.0f} s: did it start, and do all nodes see "
                    "that directory?"
                ) from None
        except OSError as error:
            first_s = refused.setdefault(where, time.monotonic())
            gone = isinstance(error, ConnectionRefusedError) and time.monotonic() - first_s > _REPLACED_WITHIN_S
            if gone or time.monotonic() > end:
                raise LostRankError(f"rank 0 can't be reached at {where}: {error}") from error
        time.sleep(_POLL_S * (1 + random.random()))  # noqa: S311  # so that they don't try all at once
