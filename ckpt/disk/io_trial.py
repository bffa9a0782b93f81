"""Tries a filesystem of which nothing is known, within a bounded time: small files, written and read both ways.

A thread makes all the requests, and the program waits for it no longer than that, nor when it ends: a server that is
down may never answer. The thread removes its file as soon as the filesystem answers again.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ckpt.disk import direct_io, page_cache, sequential

PREFIX = ".io-trial-"

LIMIT_S = 10.0
"""How long a trial may take in all."""

_SIZES_BYTES = (2**20, 16 * 2**20, 16 * 2**20)
"""The sizes of the files, one after the other: a slow filesystem gets the first only."""

_LIKELY_S = LIMIT_S / 2
"""A larger file is tried only if it is likely to be done that long after the beginning."""

Operation = Literal["write", "read"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial showed.

    Attributes:
        says_direct: the filesystem says that it does direct I/O, and nothing was measured.
        size_bytes: the size of the largest file that was written and read both ways; 0 if there is none.
        rates: bytes per second with that size, by operation and whether the data went past the page cache; 0 where
            they should have gone past it and did not.
        problem: why nothing is known; empty if something is.
    """

    says_direct: bool = False
    size_bytes: int = 0
    rates: Mapping[tuple[Operation, bool], float] = field(default_factory=dict)
    problem: str = ""


def try_out(directory: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Write and read small files in a directory, and remove them; returns what is known after `limit_s` at the latest.

    No error is raised: whoever writes there next meets it again.
    """
    trial = _Trial(directory)
    try:
        trial.start()
    except RuntimeError:  # the interpreter is shutting down, or there are too many threads
        return Outcome(problem="no thread could be started")
    trial.join(limit_s)
    trial.abandoned.set()
    return trial.outcome or Outcome(problem=f"that was not done within {limit_s:g} s")


class _Trial(threading.Thread):
    """The trial, whose outcome so far can be taken at any time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(name="io-trial", daemon=True)
        self.outcome: Outcome | None = None
        self.abandoned = threading.Event()
        """Set when nobody waits any more."""
        self._path = directory / f"{PREFIX}{secrets.token_hex(8)}"

    def run(self) -> None:
        """Ask, else measure; and remove the file."""
        try:
            if self._says_direct():
                self.outcome = Outcome(says_direct=True)
            else:
                self._measure()
        except OSError as error:
            self.outcome = self.outcome or Outcome(problem=error.strerror or str(error))
        finally:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _says_direct(self) -> bool:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            return bool(direct_io.direct_alignment(descriptor))
        finally:
            os.close(descriptor)

    def _measure(self) -> None:
        """Measure larger files as long as that is quick; of equal sizes the best rates count."""
        start_s = time.perf_counter()
        for size_bytes in _SIZES_BYTES:
            round_start_s = time.perf_counter()
            rates: dict[tuple[Operation, bool], float] = {}
            for direct in (True, False):
                if self.abandoned.is_set():
                    return
                rates["write", direct], rates["read", direct] = self._rates(size_bytes, direct=direct)
            now_s = time.perf_counter()
            before = self.outcome
            if before and before.size_bytes == size_bytes:
                rates = {key: max(rate, before.rates[key]) for key, rate in rates.items()}
            self.outcome = Outcome(size_bytes=size_bytes, rates=rates)
            round_s = (now_s - round_start_s) * _SIZES_BYTES[-1] / size_bytes
            if now_s + round_s > start_s + _LIKELY_S:
                return

    def _rates(self, size_bytes: int, *, direct: bool) -> tuple[float, float]:
        """Write a new file and read it; returns both rates in bytes per second."""
        self._path.unlink(missing_ok=True)
        start_s = time.perf_counter()
        wrote_direct = sequential.write_sequentially(self._path, size_bytes, direct=direct, reserve=False)
        written_s = time.perf_counter()
        page_cache.evict_file(self._path)
        evicted_s = time.perf_counter()
        read_direct = sequential.read_sequentially(self._path, direct=direct)
        read_s = time.perf_counter()
        return (
            _rate(size_bytes, written_s - start_s, is_way=wrote_direct or not direct),
            _rate(size_bytes, read_s - evicted_s, is_way=read_direct or not direct),
        )


def _rate(size_bytes: int, duration_s: float, *, is_way: bool) -> float:
    """Return bytes per second; 0 for direct I/O that went through the page cache: that is the other way."""
    return size_bytes / max(duration_s, 1e-9) if is_way else 0.0
