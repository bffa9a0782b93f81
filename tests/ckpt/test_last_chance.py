"""Saves and loads when a process is about to end, or began as a fork: they work, or one message says why not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.registry import create, names

CANNOT_AT_EXIT = {"orbax", "torch_checkpointing", "zarr_python"}
"""Strategies whose libraries start threads by `concurrent.futures`, which takes none when the interpreter ends."""


BEGINNING = """
import atexit, os, sys, threading, time, torch, ckpt
final, strategy = sys.argv[1:3]
state = {"w": torch.arange(5000.0), "b": torch.ones(3), "step": 7}

def save():
    try:
        ckpt.save(state, final, strategy)
        loaded = ckpt.load(final)
        assert torch.equal(loaded["w"], state["w"]) and loaded["step"] == 7
        print("saved", flush=True)
    except ckpt.CheckpointError as error:
        print("CheckpointError:", error, flush=True)
"""
AT_THE_END = """
def wait_and_save():
    threading.main_thread().join()
    time.sleep(0.1)
    save()

atexit.register(save)
if "at once" not in sys.argv:
    threading.Thread(target=wait_and_save).start()
"""


def last_words(strategy: str, final: Path, *arguments: str) -> list[str]:
    """What a program prints that saves as it ends, without a complaint of the interpreter's."""
    command = [sys.executable, "-c", BEGINNING + AT_THE_END, str(final), strategy, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_at_the_end(strategy: str, tmp_path: Path) -> None:
    """A last save works from a thread that outlives the main one, and then from `atexit`; or one message says that the
    library can't, and what can.
    """
    words = last_words(strategy, tmp_path / "final")
    assert len(words) == 2
    for word in words:
        assert word == "saved" or (strategy in CANNOT_AT_EXIT and "or use a strategy that can" in word)


@pytest.mark.parametrize("name", ["hdf5", "safetensors_tuned", "tensorstore_tuned", "torch_save"])
def test_at_the_very_end(name: str, tmp_path: Path) -> None:
    """So does one from `atexit` that is the program's first use of a library."""
    assert ["saved"] == last_words(name, tmp_path / "final", "at once")


FORK = """
if "own" in sys.argv[3:]:
    import tensorstore
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}}
    tensorstore.open(spec, create=True, dtype="uint8", shape=[1]).result()
else:
    save()
child = os.fork()
if not child:
    save()
    os._exit(0)
_, status = os.waitpid(child, 0)
print("the child ended with", os.waitstatus_to_exitcode(status))
"""


TENSORSTORE = [name for name in names() if {"tensorstore", "orbax.checkpoint"} & set(create(name).requires)]


@pytest.mark.parametrize("user", ["ours", "own"], ids=["by a save", "by the program itself"])
@pytest.mark.parametrize("name", TENSORSTORE)
def test_a_fork_after_tensorstore_was_used(name: str, user: str, tmp_path: Path) -> None:
    """TensorStore would end the process: one message instead."""
    if importlib.util.find_spec(create(name).requires[1].partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-W", "ignore", "-c", BEGINNING + FORK, str(tmp_path / "final"), name, user]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert "the child ended with 0" in done.stdout, done.stdout + done.stderr
    assert "CheckpointError: " in done.stdout
    assert "spawn" in done.stdout
    assert (tmp_path / "final").exists() == (user == "ours")
