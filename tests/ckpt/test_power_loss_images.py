"""What a filesystem's device holds at a random instant of a save has the checkpoint that was committed last.

The device is a file on XFS, which copies files in one step, as shared extents. A copy is what the device would hold if
the machine lost its power then, and had written all that the kernel had given it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ckpt
from ckpt.errors import CheckpointError
from support.filesystems import Mounts
from support.one_save import step_in

IMAGES = int(os.environ.get("CKPT_IMAGES", "6"))
"""Copies of each device; 100 in a long run."""

OPTIONS = {"ext4": "noatime", "xfs": "nouuid", "btrfs": "noatime"}
"""Copies of XFS have the same identity, and are not mounted at the same time."""

SAVES = """
import itertools, sys
from pathlib import Path
import torch
import ckpt
from support.one_save import doctor, state_of
torch.set_num_threads(1)
doctor(sys.argv[3], Path(sys.argv[1]) / "run")
for step in itertools.count(1):
    ckpt.save(state_of(step), Path(sys.argv[1]) / "run" / "latest", sys.argv[2])
    print(step, flush=True)
"""


def run(*command: object) -> None:
    """Run a command, which must succeed."""
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=600)


@contextmanager
def mounted(kind: str, image: Path) -> Iterator[Path]:
    """Mount a filesystem that is a file."""
    directory = image.with_suffix(".mount")
    directory.mkdir(exist_ok=True)
    run("mount", "-o", f"loop,{OPTIONS[kind]}", image, directory)
    try:
        yield directory
    finally:
        run("umount", directory)
        if kind == "btrfs":
            run("btrfs", "device", "scan", "--forget")


@contextmanager
def saving(directory: Path, strategy: str, skip: str) -> Iterator[Committed]:
    """A program that saves one checkpoint after the other; yields what counts them."""
    command = [sys.executable, "-c", SAVES, str(directory), strategy, skip]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as program:
        assert program.stdout is not None
        os.set_blocking(program.stdout.fileno(), False)
        try:
            yield Committed(program)
        finally:
            program.kill()


class Committed:
    """The last step that a program has committed."""

    def __init__(self, program: subprocess.Popen[bytes]) -> None:
        self._program, self._text = program, b""

    def __call__(self) -> int:
        """Ask for it now."""
        assert self._program.stdout is not None
        assert self._program.poll() is None, "the program that saves has ended"
        self._text += self._program.stdout.read() or b""
        lines = self._text.split(b"\n")[:-1]
        return int(lines[-1]) if lines else 0


@pytest.mark.filesystems
@pytest.mark.parametrize("strategy", ["safetensors_tuned", "tensorstore_tuned"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_what_a_device_holds(kind: str, strategy: str, mounts: Mounts) -> None:
    """The last committed checkpoint, or a newer one, whole."""
    place = mounts.start("xfs") / f"images-{kind}-{strategy}"
    steps = [
        step for copy, before, last in copied(kind, strategy, place) if before <= (step := loaded(kind, copy)) <= last
    ]
    assert len(steps) == IMAGES
    assert len(set(steps)) > 1  # the copies are of different instants


@pytest.mark.filesystems
def test_saves_that_sync_nothing_are_noticed(mounts: Mounts) -> None:
    """What was committed last is missing on some of the devices: the kernel hadn't written it yet."""
    place = mounts.start("xfs") / "images-unsynced"
    lost = [copy for copy, before, _ in copied("ext4", "safetensors_tuned", place, skip="all") if older(copy, before)]
    assert lost


def older(copy: Path, than: int) -> bool:
    """Whether a restart has an older step, or none."""
    try:
        return loaded("ext4", copy) < than
    except CheckpointError:
        return True


def copied(kind: str, strategy: str, place: Path, skip: str = "") -> list[tuple[Path, int, int]]:
    """Save on a filesystem, and copy its device; with each copy, the steps that were committed then, and could be."""
    place.mkdir()
    image, chance, copies = place / "image", random.Random(5), list[tuple[Path, int, int]]()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    run(f"mkfs.{kind}", "-q", image)
    with mounted(kind, image) as directory, saving(directory, strategy, skip) as committed:
        while not committed():
            time.sleep(0.01)
        for number in range(IMAGES):
            time.sleep(chance.uniform(0, 0.2))
            before, copy = committed(), place / f"copy-{number}"
            run("cp", "--reflink=always", image, copy)
            copies.append((copy, before, committed() + 1))
    return copies


def loaded(kind: str, copy: Path) -> int:
    """The step that a restart has, after which it saves again, and leaves nothing else there."""
    with mounted(kind, copy) as directory:
        latest = directory / "run" / "latest"
        state = ckpt.load(latest)
        ckpt.save(state, latest)
        assert [latest] == list(latest.parent.iterdir())
    copy.unlink()
    return step_in(state)
