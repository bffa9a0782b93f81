"""A full filesystem is named as such, whatever a library makes of it, and nothing of the save is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.cli import unwritten
from ckpt.disk import durable, full
from support.strategies import CORE

FILLING = """
import os, sys, time, torch, ckpt
for strategy in sys.argv[2:]:
    disk = f"{sys.argv[1]}/{strategy}"
    os.mkdir(disk)
    assert os.system(f"mount -t tmpfs -o size=12m none {disk}") == 0
    ckpt.save({"w": torch.zeros(10), "step": 1}, f"{disk}/latest", strategy)
    try:
        ckpt.save({f"w{i}": torch.randn(2 << 20) for i in range(2)}, f"{disk}/latest", strategy)
        print(strategy, "saved")
    except ckpt.CheckpointError as error:
        step, end = ckpt.load(f"{disk}/latest")["step"], time.monotonic() + 30
        while os.listdir(disk) != ["latest"] and time.monotonic() < end:  # a library's threads are still writing
            ckpt.save({"w": torch.zeros(10), "step": 1}, f"{disk}/latest", strategy)
        print(strategy, step, os.listdir(disk) == ["latest"], str(error).replace("\\n", " "))
"""


def test_every_core_strategy(tmp_path: Path) -> None:
    """Two tensors of 8 MB on a filesystem of 12: the old checkpoint stays, the message names the reason, and the next
    save removes what the library's threads went on to write.
    """
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    command = ["unshare", "--mount", sys.executable, "-c", FILLING, str(tmp_path), *CORE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [[strategy, "1", "True"] for strategy in CORE], done.stdout
    assert not [line for line in lines if "No space left on device" not in line]


def test_the_chain_of_errors(tmp_path: Path) -> None:
    """The reason may be the number of an error that led to another, or a part of a text."""
    library = RuntimeError("unexpected pos 286721600 vs 286721552")
    library.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    text = full.named("can't save latest", library, tmp_path)
    assert text.startswith("Disk quota exceeded, ")
    assert text.endswith(" free: can't save latest")
    assert "No space left" in full.named("x", RuntimeError("pwrite: No space left on device (28)"), tmp_path)


def test_another_reason(tmp_path: Path) -> None:
    """Where there is room, the error stays as it is, and nothing is left of the attempt to write."""
    assert full.named("x", RuntimeError("unexpected pos 1 vs 0"), tmp_path) == "x"
    assert list(tmp_path.iterdir()) == []


def test_a_full_brick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where new files find room elsewhere, the largest file of the failed save shows that its server has none."""
    largest = tmp_path / "model" / "state.pth"
    largest.parent.mkdir()
    largest.write_bytes(bytes(100))
    (tmp_path / "small").touch()
    sync, synced = os.fsync, []

    def of_a_brick(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(path)
        if path == largest:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_a_brick)
    assert full.named("x", RuntimeError("unexpected pos 1 vs 0"), tmp_path).startswith("No space left on device")
    assert len(synced) == 2


@pytest.mark.parametrize(
    ("number", "part"), [(errno.ENOSPC, "is full"), (errno.EDQUOT, "a quota is used up"), (errno.EACCES, "Permission")]
)
def test_small_files(number: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that could not be written is named, and if there is no room, what to do."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "plan.json"
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        durable.write_atomically(path, "{}", sync=True)
    assert error.value.filename == str(path)
    text = unwritten(error.value, path)
    assert text.startswith(f"can't write {path}: ")
    assert part in text
