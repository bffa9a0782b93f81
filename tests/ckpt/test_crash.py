"""Killed at any instant, a save leaves the earlier checkpoint, or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import ckpt
from support.training_states import some_state, step_of

ROOM = str(Path(ckpt.__file__).parent)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX, where another test imported it; it isn't used here
@pytest.mark.parametrize("before", ["nothing", "a checkpoint", "what a killed save left"])
def test_at_every_change(before: str, final: Path, tmp_path: Path) -> None:
    """The process ends, without a chance to clean up, at each line of this package that finds something on disk changed
    since the line before: whatever a save that was killed can leave.
    """
    _die_at_every_change(before, final, tmp_path)
    assert [final] == list(final.parent.iterdir())  # the save that lived removed what another had left


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # as above
@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("before", ["nothing", "a checkpoint", "a link", "what a killed save left"])
def test_at_every_change_of_links(before: str, final: Path, tmp_path: Path) -> None:
    """So it is where the name becomes a link, in the first replacement and in later ones."""
    _die_at_every_change(before, final, tmp_path)
    version = [final.readlink().name] if final.is_symlink() else []
    assert sorted([final.name, *version]) == sorted(path.name for path in final.parent.iterdir())


def _die_at_every_change(before: str, final: Path, tmp_path: Path) -> None:
    def save(step: int) -> None:
        ckpt.save(some_state(step), final, "torch_save")

    for _ in range({"nothing": 0, "a link": 2}.get(before, 1)):
        save(1)
    if before == "what a killed save left":
        assert _die_at(5, lambda: save(2), final.parent)
        assert len(list(final.parent.iterdir())) == 2
    shutil.copytree(final.parent, tmp_path / "before", symlinks=True)
    change, seen, alive = 0, set(), False
    while not alive:
        change += 1
        shutil.rmtree(final.parent)
        shutil.copytree(tmp_path / "before", final.parent, symlinks=True)
        alive = not _die_at(change, lambda: save(2), final.parent)
        is_there = before != "nothing" or final.exists()
        seen.add((alive, step_of(ckpt.load(final)) if is_there else 0))
        if not alive:
            save(3)
            assert step_of(ckpt.load(final)) == 3
            assert len(list(final.parent.iterdir())) == 1 + final.is_symlink()
    assert change > 5
    assert seen == {(False, 0 if before == "nothing" else 1), (False, 2), (True, 2)}


def test_at_random_times(final: Path) -> None:
    """A process that saves all the time is killed: what lies there loads, and is whole."""
    code = (
        "import sys, torch, ckpt\n"
        "for step in range(10**6):\n"
        "    ckpt.save({'w': torch.full((3000, 300), float(step)), 'step': step}, sys.argv[1])\n"
        "    print(step, flush=True)\n"
    )
    for delay_s in (0.0, 0.01, 0.03):
        process = subprocess.Popen([sys.executable, "-c", code, str(final)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        state = ckpt.load(final, verify=True)
        assert torch.equal(state["w"], torch.full((3000, 300), float(state["step"])))


def _die_at(change: int, work: Callable[[], None], directory: Path) -> bool:
    """Do the work in a child process that ends at the line of this package that finds the n-th change below the
    directory; whether it got so far.
    """
    child = os.fork()
    if not child:
        last, count = _content(directory), 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last, count
            if not frame.f_code.co_filename.startswith(ROOM):
                return None
            if event == "line" and (now := _content(directory)) != last:
                last, count = now, count + 1
                if count == change:
                    os._exit(1)
            return trace

        sys.settrace(trace)
        try:
            work()
        except BaseException:  # noqa: BLE001  # the parent sees the code
            os._exit(2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 1}
    return code == 1


def _content(directory: Path) -> bytes:
    """Every name below a directory, with every byte of the files, and where links lead."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        with suppress(FileNotFoundError):  # whatever threads do meanwhile
            content = path.read_bytes() if path.is_file() else b""
            content += os.fsencode(path.readlink()) if path.is_symlink() else b""
            digest.update(f"{path} {len(content)} ".encode() + content)
    return digest.digest()
