"""Saves and loads when a process is about to end, or began as a fork: they work, or one message says why not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.strategy import create, names

CANNOT_AT_EXIT = {"orbax", "torch_checkpointing", "zarr_python"}
"""Strategies whose libraries start threads by `concurrent.futures`, which takes none when the interpreter ends."""


@pytest.fixture(params=names())
def strategy(request: pytest.FixtureRequest) -> str:
    """Every strategy whose library is installed."""
    name = str(request.param)
    missing = [m for m in create(name).requires if importlib.util.find_spec(m.partition(".")[0]) is None]
    if missing:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(f"{missing} can't be imported")
        pytest.skip(f"{missing} can't be imported")
    return name


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
WAYS = {
    "atexit": "atexit.register(save)",
    "atexit, after an earlier save": "save()\natexit.register(save)",
    "a thread that outlives the main one": """
def wait_and_save():
    threading.main_thread().join()
    time.sleep(0.2)
    save()
threading.Thread(target=wait_and_save).start()
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_at_the_end(way: str, strategy: str, tmp_path: Path) -> None:
    """A last save works, whenever it comes, or one message says that the library can't, and what can."""
    command = [sys.executable, "-c", BEGINNING + WAYS[way], str(tmp_path / "final"), strategy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *_, last = done.stdout.splitlines()
    if strategy in CANNOT_AT_EXIT:
        assert last == "saved" or "or take a strategy that can" in last
    else:
        assert last == "saved"


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
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "the child ended with 0" in done.stdout, done.stdout + done.stderr
    assert "CheckpointError: " in done.stdout
    assert "spawn" in done.stdout
    assert (tmp_path / "final").exists() == (user == "ours")
