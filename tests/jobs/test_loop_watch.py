"""What a block of a loop takes of its node beside time, as a watch counts it: memory, threads, descriptors, CPU."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs.node.loop import watch


def test_a_watch_takes_less_than_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a look takes, and however short the steps are."""
    now_s = [0.0]
    looks = []

    def count(_: Any) -> None:
        looks.append(now_s[0])
        now_s[0] += 0.02

    watching = watch.Watch()
    monkeypatch.setattr(watch.Watch, "_count", count)
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(perf_counter=lambda: now_s[0]))
    for _ in range(1000):
        watching.look()
        now_s[0] += 0.05
    assert 10 <= len(looks) <= 0.01 * now_s[0] / 0.02 + 1


CHILD = """
import mmap, sys, threading
shared = mmap.mmap(int(sys.argv[1]), 0)
read = sum(shared[place] for place in range(0, len(shared), 4096))
shared.close()  # before anybody looks
own = b"1" * 2**25
print("ready", flush=True)
sys.stdin.read()
"""


def test_shared_memory_counts_once() -> None:
    """A process that this one started had the same memory mapped: what is counted of it is its own."""
    size_bytes = 2**27
    descriptor = os.memfd_create("shared")
    os.ftruncate(descriptor, size_bytes)
    command = [sys.executable, "-c", CHILD, str(descriptor)]
    with mmap.mmap(descriptor, size_bytes) as memory:
        memory.write(b"1" * size_bytes)
        memory[:] = bytes(size_bytes)
        alone_bytes = watch.Watch().taken().end_memory_bytes  # with what tests before this one have started
        with subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            watching = watch.Watch()
            assert child.stdout
            assert child.stdin
            child.stdout.readline()
            watching.look()
            taken = watching.taken()
            child.stdin.close()
    os.close(descriptor)
    for counted_bytes in (taken.peak_memory_bytes, taken.end_memory_bytes):
        assert alone_bytes + 2**25 <= counted_bytes < alone_bytes + size_bytes


def test_what_a_watch_counts(tmp_path: Path) -> None:
    """The most threads, descriptors and memory of the process, though they are gone at the end; and its CPU time."""
    before, ended = watch.Watch().taken(), threading.Event()
    start_s, watching = time.process_time(), watch.Watch()
    spun_s = time.process_time() + 0.05
    waiting = [threading.Thread(target=ended.wait) for _ in range(5)]
    with ExitStack() as stack:
        for number in range(10):
            stack.enter_context((tmp_path / str(number)).open("w"))
        for thread in waiting:
            thread.start()
        taken_bytes = b"x" * (64 * 2**20)  # written to, and not only promised
        watching.look()
        del taken_bytes
        ended.set()
    for thread in waiting:
        thread.join()
    while time.process_time() < spun_s:
        pass
    taken = watching.taken()
    assert taken.threads >= before.threads + 5
    assert taken.descriptors >= before.descriptors + 10
    assert taken.peak_memory_bytes >= taken.end_memory_bytes + 32 * 2**20 > 32 * 2**20
    assert 0.05 <= taken.cpu_s <= time.process_time() - start_s
