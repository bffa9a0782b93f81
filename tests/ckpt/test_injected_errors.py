"""Any system call of a save or a load may fail: then there is one `CheckpointError`, and a whole checkpoint.

strace makes the n-th call of a kind fail, among those on a checkpoint's own files; as far as the process can see, the
errors are the kernel's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import ckpt
from ckpt.disk import leftovers, page_cache
from support.faults import LACKS, in_a_traced_child, require_strace

TOKEN = "0123456789abcdef"
FILES = {
    "torch_save": ["state.pth"],
    "safetensors_tuned": ["model.safetensors"],
    "hdf5": ["state.h5"],
}
SAVING = ["fsync", "syncfs", "renameat2", "rename", "mkdir", "close", "openat", "pwrite64,write,pwritev2", "unlinkat",
          "rmdir", "flock", "ftruncate", "newfstatat,fstat,stat,lstat,statx", "getdents64"]  # fmt: skip
LOADING = ["openat", "read,pread64,preadv,preadv2", "newfstatat,fstat,stat,lstat,statx", "close"]


def state_of(step: int) -> dict[str, object]:
    """A state that differs in every part from that of another step."""
    return {"w": torch.full((300,), float(step)), "step": step}


def step_of(directory: Path) -> int:
    """The step of the checkpoint that lies there, whole."""
    state = ckpt.load(directory)
    assert {float(state["step"])} == set(state["w"].tolist())
    return int(state["step"])


@pytest.fixture
def final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's name; the staging directories beside it have a name that is known before."""
    require_strace()
    monkeypatch.setattr(leftovers.secrets, "token_hex", lambda _: TOKEN)
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "latest"


def paths_of(final: Path, strategy: str) -> list[Path]:
    """What a save or a load touches."""
    staging = leftovers.new_path(final)
    files = [*FILES[strategy], "checkpoint.json", f".checkpoint.json.{TOKEN}.partial"]
    directories = [final, staging, staging / "first", staging / "second"]
    return [final.parent, *directories, *(directory / file for directory in directories[:2] for file in files)]


@pytest.mark.parametrize("strategy", FILES)
@pytest.mark.parametrize("calls", SAVING)
def test_a_save(calls: str, strategy: str, final: Path, tmp_path: Path) -> None:
    """After an error the old checkpoint lies there, or the message says that the new one does; else the new one lies
    there.
    """
    log = tmp_path / "strace"
    for number in range(1, 7):
        shutil.rmtree(final.parent)
        final.parent.mkdir()
        ckpt.save(state_of(1), final, strategy)
        outcome = in_a_traced_child(
            lambda: ckpt.save(state_of(2), final, strategy),
            {calls: f"error=EIO:when={number}"},
            paths_of(final, strategy),
            log,
        )
        step = step_of(final)
        if outcome == "done":
            assert step == 2
        else:
            assert outcome.startswith("CheckpointError: "), f"call {number}: {outcome}"
            assert step == (2 if f"{final} is the new checkpoint" in outcome else 1), outcome
        ckpt.save(state_of(3), final, strategy)
        assert step_of(final) == 3
        assert [final] == list(final.parent.iterdir())
        if "(INJECTED)" not in log.read_text():
            assert number > 1 or (calls, strategy) == ("ftruncate", "torch_save"), "no call was made to fail"
            break


@pytest.mark.parametrize("strategy", FILES)
@pytest.mark.parametrize("calls", LOADING)
def test_a_load(calls: str, strategy: str, final: Path, tmp_path: Path) -> None:
    """A load gives what was saved, or one `CheckpointError`."""
    log = tmp_path / "strace"
    ckpt.save(state_of(1), final, strategy)
    for number in range(1, 7):
        faults = {calls: f"error=EIO:when={number}"}
        outcome = in_a_traced_child(lambda: step_of(final), faults, paths_of(final, strategy), log)
        assert outcome == "done" or outcome.startswith("CheckpointError: "), f"call {number}: {outcome}"
        if "(INJECTED)" not in log.read_text():
            assert number > 1, "no call was made to fail"
            break


@pytest.mark.parametrize(
    ("calls", "fault", "named"),
    [
        ("pwrite64,write,pwritev2", "error=EDQUOT", "Disk quota exceeded"),
        ("openat", "error=ESTALE", "Stale file handle"),
        ("fsync", "delay_enter=2000000", ""),
    ],
    ids=["quota", "stale handle", "slow sync"],
)
def test_an_error_is_named(calls: str, fault: str, named: str, final: Path, tmp_path: Path) -> None:
    """What the filesystem answered stands in the error of a save, and of a load; one that is slow ends neither."""
    ckpt.save(state_of(1), final)
    paths, log = paths_of(final, "safetensors_tuned"), tmp_path / "strace"
    outcome = in_a_traced_child(lambda: ckpt.save(state_of(2), final), {calls: f"{fault}:when=1"}, paths, log)
    assert any(word in log.read_text() for word in ("(INJECTED)", "(DELAYED)")), "no call was made to fail"
    assert (outcome.startswith("CheckpointError: ") and named in outcome) if named else outcome == "done"
    assert step_of(final) == (1 if named else 2)
    if calls == "openat":
        outcome = in_a_traced_child(lambda: step_of(final), {calls: f"{fault}:when=1"}, paths, log)
        assert outcome.startswith("CheckpointError: ")
        assert named in outcome
    ckpt.save(state_of(3), final)
    assert step_of(final) == 3
    assert [final] == list(final.parent.iterdir())


@pytest.mark.parametrize("lack", LACKS)
def test_what_a_kernel_lacks_ends_neither_save_nor_load(lack: str, final: Path, tmp_path: Path) -> None:
    """What only makes things faster is done without; every call of its kind fails."""
    state = {"w": torch.randn(3 << 20), "step": 7}

    def work() -> None:
        for direct in (True, False):
            ckpt.save(state, final, "safetensors_tuned", direct=direct)
            page_cache.evict(final)
            loaded = ckpt.load(final)
            # Not torch.equal: its threads don't survive a fork, and it would wait for them.
            assert np.array_equal(loaded["w"].numpy(), state["w"].numpy())

    log = tmp_path / "strace"
    assert in_a_traced_child(work, LACKS[lack], [], log) == "done"
    if lack != "statistics of the page cache":  # strace may not know the calls' names
        assert "(INJECTED)" in log.read_text(), "no call was made to fail"


@pytest.mark.parametrize("exists", [False, True], ids=["first", "replacing"])
def test_a_rename_that_is_reported_as_failed(
    exists: bool,
    final: Path,
    monkeypatch: pytest.MonkeyPatch,  # pytest's parameter
) -> None:
    """Network filesystems may do a rename and report that they failed: what counts is what lies there."""
    from ckpt.disk import renames

    if exists:
        ckpt.save(state_of(1), final)
    rename = renames.renameat2

    def failing(source: Path, target: Path, flags: int) -> None:
        rename(source, target, flags)
        if target == final:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(renames, "renameat2", failing)
    ckpt.save(state_of(2), final)
    assert step_of(final) == 2
    assert [final] == list(final.parent.iterdir())


def test_a_file_that_is_lost_when_it_is_closed(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may keep to itself that a file could not be closed; its data may be gone. (The loss is played here.)"""
    import safetensors.torch

    save_file = safetensors.torch.save_file

    def lossy(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        size_bytes = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size_bytes - 100)
            file.write(bytes(100))

    ckpt.save(state_of(1), final, "safetensors_file")
    monkeypatch.setattr(safetensors.torch, "save_file", lossy)
    with pytest.raises(ckpt.CheckpointError, match=r"do not hold what was written.*tensor 'w'"):
        ckpt.save(state_of(2), final, "safetensors_file")
    assert step_of(final) == 1
    assert [final] == list(final.parent.iterdir())


WRITEBACK = """
set -e
cd "$1"
mkdir small fs
mount -t tmpfs -o size=8m none small
truncate -s 128M small/image
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,nodiscard small/image
mount -o loop small/image fs
"$2" - "$3" <<'PY'
import os, sys, torch, ckpt
from ckpt.disk import durable
ckpt.save({"w": torch.zeros(10), "step": 1}, "fs/latest", sys.argv[1])
flush = durable.flush

def forget(*arguments, **options):
    os.sync()  # the kernel writes the files back, which fails, ...
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")  # ... and forgets that it had them
    flush(*arguments, **options)

durable.flush = forget
try:
    ckpt.save({"w": torch.randn(6 << 20), "step": 2}, "fs/latest", sys.argv[1])
    print("saved")
except ckpt.CheckpointError as error:
    print(error)
durable.flush = flush
print("step", ckpt.load("fs/latest")["step"])
PY
umount fs small
"""


@pytest.mark.parametrize("strategy", ["torch_save", "hdf5", "safetensors_file", "tensorstore_tuned"])
def test_an_error_of_writing_back_that_no_file_remembers(strategy: str, tmp_path: Path) -> None:
    """The kernel fails to write a file back after it was closed, and forgets the file: the save fails all the same.

    A real ext4 on a disk that is full: a loop device whose image lies on a tmpfs that is smaller.
    """
    import sys

    command = ["unshare", "--mount", "bash", "-c", WRITEBACK, "bash", str(tmp_path), sys.executable, strategy]
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    error, step = done.stdout.splitlines()
    assert "Input/output error, while the kernel wrote this filesystem's files back" in error
    assert step == "step 1"
