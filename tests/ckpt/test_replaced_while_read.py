"""A load, an inspection, a conversion is of one checkpoint, whole, whatever happens to its name meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt import manifest
from ckpt.errors import CheckpointError
from ckpt.manifest import Manifest
from ckpt.registry import create

RACE_S = float(os.environ.get("CKPT_RACE_S", "1"))
"""How long each strategy's race of two processes lasts."""

WITHOUT_EXCHANGE = """
import errno
from ckpt.disk import renames

def refuse(*_):
    raise OSError(errno.EINVAL, "Invalid argument")

renames.renameat2 = refuse
"""
"""For another process: a filesystem that can't exchange two directories, where the name becomes a link."""

SAVER = """
import sys, torch, ckpt
step = 0
while True:
    step += 1
    ckpt.save({"w": torch.full((300,), float(step)), "b": torch.full((7,), float(step)), "step": step}, *sys.argv[1:])
    print(step, flush=True)
"""


def state_of(step: int) -> dict[str, Any]:
    """A state that differs in every part from that of another step."""
    return {"w": torch.full((300,), float(step)), "b": torch.full((7,), float(step)), "step": step}


def steps_in(state: dict[str, Any]) -> set[float]:
    """The steps that the parts of a state are of: one, if it is whole."""
    return {float(state["step"]), *state["w"].tolist(), *state["b"].tolist()}


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A checkpoint's name."""
    return tmp_path / "latest"


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen, once, between the look at a checkpoint's manifest and the reading of its data."""
    problems = Manifest.problems

    def at_the_next_look(event: Callable[[], None]) -> None:
        def look(manifest: Manifest, directory: Path) -> list[str]:
            answer = problems(manifest, directory)
            monkeypatch.setattr(Manifest, "problems", problems)
            event()
            return answer

        monkeypatch.setattr(Manifest, "problems", look)

    return at_the_next_look


Meanwhile = Callable[[Callable[[], None]], None]


def test_a_load(strategy: str, final: Path, meanwhile: Meanwhile) -> None:
    """The next save happens in the middle of a load: what is loaded is the new checkpoint, all of it."""
    ckpt.save(state_of(1), final, strategy)
    meanwhile(lambda: ckpt.save(state_of(2), final, strategy))
    assert {2.0} == steps_in(ckpt.load(final))


def test_a_load_of_some_tensors(final: Path, meanwhile: Meanwhile) -> None:
    """So is a load by names."""
    ckpt.save(state_of(1), final)
    meanwhile(lambda: ckpt.save(state_of(2), final))
    assert {2.0} == set(ckpt.load(final, ["w"])["w"].tolist())


def test_another_strategy_and_another_state(final: Path, meanwhile: Meanwhile) -> None:
    """The new checkpoint may be of another kind."""
    ckpt.save(state_of(1), final, "torch_save")
    meanwhile(lambda: ckpt.save(state_of(2) | {"more": torch.ones(2)}, final, "hdf5"))
    state = ckpt.load(final)
    assert {2.0} == steps_in(state)
    assert "more" in state


def test_an_inspection(final: Path, meanwhile: Meanwhile) -> None:
    """An inspection is of the one or of the other, with its own files, and has nothing to complain of."""
    ckpt.save(state_of(1), final, "torch_save")
    meanwhile(lambda: ckpt.save(state_of(2), final, "hdf5"))
    inspection = ckpt.inspect(final)
    assert ("torch_save", ()) == (inspection.strategy, inspection.problems)


def test_a_conversion(final: Path, meanwhile: Meanwhile) -> None:
    """A conversion is of one."""
    ckpt.save(state_of(1), final)
    meanwhile(lambda: ckpt.save(state_of(2), final))
    ckpt.convert(final, final.with_name("converted"), "torch_save")
    assert {2.0} == steps_in(ckpt.load(final.with_name("converted")))


@pytest.mark.parametrize("read", [ckpt.load, ckpt.inspect], ids=["load", "inspect"])
def test_a_replaced_checkpoint_without_its_manifest(
    strategy: str, final: Path, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced checkpoint is removed file by file. What is left without its manifest is not taken for another
    program's checkpoint: it has the tensors and nothing else.
    """
    ckpt.save(state_of(1), final, strategy)
    genuine = manifest.read

    def replaced(directory: Path) -> Manifest | None:
        monkeypatch.setattr(manifest, "read", genuine)
        removed = final.rename(final.with_name("removed"))
        (removed / manifest.FILE).unlink()
        ckpt.save(state_of(2), final, strategy)
        return genuine(directory)

    monkeypatch.setattr(manifest, "read", replaced)
    content = read(final)
    if isinstance(content, dict):
        assert {2.0} == steps_in(content)
    else:
        assert (strategy, 1) == (content.strategy, content.plain_values)


def test_a_removal(final: Path, meanwhile: Meanwhile) -> None:
    """Of a checkpoint that is removed while it is read, the load says that it is gone."""
    ckpt.save(state_of(1), final)
    meanwhile(lambda: shutil.rmtree(final))
    with pytest.raises(CheckpointError, match=f"{final} is not a checkpoint: there is no such directory"):
        ckpt.load(final)


def test_messages_name_the_checkpoint(final: Path) -> None:
    """Whatever path a checkpoint is read by, messages have its name."""
    ckpt.save(state_of(1), final, "torch_save")
    (final / "state.pth").write_bytes(bytes((final / "state.pth").stat().st_size))
    with pytest.raises(CheckpointError, match=str(final)) as error:
        ckpt.load(final)
    assert "/proc/self" not in str(error.value)


def test_memory_outlives_the_checkpoint(strategy: str, final: Path) -> None:
    """What was loaded stays right when the checkpoint is replaced and its files are overwritten."""
    ckpt.save(state_of(1), final, strategy)
    state = ckpt.load(final)
    for path in [path for path in final.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xa5" * path.stat().st_size)
    shutil.rmtree(final)
    assert {1.0} == steps_in(state)


def race(code: str, strategy: str, final: Path) -> None:
    """Load beside another process that saves under the name as fast as it can."""
    command = [sys.executable, "-c", code, str(final), strategy]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
        try:
            assert saver.stdout is not None
            saver.stdout.readline()
            loads, seen = 0, set()
            end = time.monotonic() + RACE_S
            while time.monotonic() < end or loads < 3:
                whole = ckpt.load(final)
                some = ckpt.load(final, ["w", "b"]) if create(strategy).capabilities.partial_load else whole
                assert len(steps_in(whole)) == 1
                assert len({*some["w"].tolist(), *some["b"].tolist()}) == 1
                seen |= steps_in(whole)
                loads += 1
            assert saver.poll() is None
            print(f"{strategy}: {loads} loads of {len(seen)} checkpoints")
        finally:
            saver.kill()


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # orbax's event loop
def test_a_race(strategy: str, final: Path) -> None:
    """Of all loads beside a process that saves all the time, not one is wrong, or fails."""
    race(SAVER, strategy, final)


@pytest.mark.parametrize("strategy", ["safetensors_tuned", "tensorstore_t5x"], indirect=True)
def test_a_race_of_links(strategy: str, final: Path) -> None:
    """Nor where a link leads to the newest version."""
    race(WITHOUT_EXCHANGE + SAVER, strategy, final)
    assert final.is_symlink()


SAVER_OF_SOME = """
import sys, time, torch, ckpt
end, saved, lost = time.monotonic() + float(sys.argv[3]), 0, 0
while time.monotonic() < end or not saved:
    try:
        state = {"w": torch.full((300,), float(saved)), "b": torch.full((7,), float(saved)), "step": saved}
        ckpt.save(state, *sys.argv[1:3])
        saved += 1
    except ckpt.CheckpointError as error:
        assert "another save" in str(error), error
        lost += 1
print(saved, lost)
"""


@pytest.mark.parametrize(
    ("strategy", "before"),
    [
        ("safetensors_tuned", ""),
        ("safetensors_tuned", WITHOUT_EXCHANGE),
        ("tensorstore_t5x", ""),
        ("torch_dcp", ""),
    ],
    ids=["safetensors_tuned", "links", "tensorstore_t5x", "torch_dcp"],
    indirect=["strategy"],
)
def test_several_savers(before: str, strategy: str, final: Path) -> None:
    """Of processes that save under one name, each save wins, or ends with one error that says that another one did;
    what lies there in the end is whole, with nothing beside it.
    """
    command = [sys.executable, "-c", before + SAVER_OF_SOME, str(final), strategy, str(RACE_S)]
    savers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for saver in savers:
        output, errors = saver.communicate()
        assert saver.returncode == 0, errors
        print(f"{strategy}: saved, lost: {output.strip()}")
    assert len(steps_in(ckpt.load(final))) == 1
    version = [final.with_name(str(final.readlink()))] if final.is_symlink() else []
    assert sorted([final, *version]) == sorted(final.parent.iterdir())
