"""What killed saves left is removed once it is certain that nobody writes there, and never before."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckpt
from ckpt.disk import commit, leftovers, mounts
from ckpt.disk.leftovers import Use
from ckpt.disk.mounts import Mount
from support.command_lines import run_module

pytestmark = pytest.mark.every_filesystem

STATE = {"w": torch.ones(10)}


def leave(final: Path, host: str = "node1", slurm: str = "", prefix: str = "@") -> Path:
    """What a save that was killed on that host left."""
    path = final.parent / f".partial-{final.name}{prefix}{host}{slurm}-0123456789abcdef"
    path.mkdir(parents=True)
    (path / "data").write_bytes(b"x" * 1000)
    return path


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A checkpoint's name."""
    return tmp_path / "latest"


@pytest.fixture
def without_common_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem whose locks hold on one host only, as the kernel would describe it."""
    monkeypatch.setattr(mounts, "mount_of", lambda _: Mount("lustre", "mgs:/scratch", "rw,localflock", "/scratch"))


@pytest.fixture
def locked() -> Iterator[list[int]]:
    """Descriptors that hold locks, as those of live saves do."""
    descriptors: list[int] = []
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.every_filesystem(only="locks_everywhere")
@pytest.mark.parametrize("prefix", ["@", "-"], ids=["now", "as the first releases named it"])
def test_another_hosts(final: Path, prefix: str) -> None:
    """A job that goes on elsewhere removes what it left, where locks are everybody's, as on any local filesystem."""
    left = [leave(final, host, prefix=prefix) for host in ("node1", "node2", "node-3")]
    assert [Use.LEFT] * 3 == [leftovers.use_of(leftover) for leftover in leftovers.of(final)]
    ckpt.save(STATE, final)
    assert not any(map(Path.exists, left))
    assert [final] == list(final.parent.iterdir())


def test_never_a_live_one(final: Path, locked: list[int]) -> None:
    """What a save is writing stays, whoever asks for its removal."""
    live = leave(final)
    locked.append(os.open(live, os.O_RDONLY))
    assert leftovers.lock(locked[0]) is leftovers.Lock.TAKEN
    ckpt.save(STATE, final)
    (leftover,) = leftovers.of(final)
    assert leftovers.use_of(leftover) is Use.WRITING
    assert not leftovers.remove(leftover, unknown=True)
    assert (live / "data").exists()


@pytest.mark.usefixtures("without_common_locks")
class TestWithoutCommonLocks:
    """Where another host's lock doesn't show."""

    def test_another_hosts_stays(self, final: Path) -> None:
        """It might be written: only a person can know."""
        left = leave(final)
        ckpt.save(STATE, final)
        assert left.exists()
        (leftover,) = leftovers.of(final)
        assert leftovers.use_of(leftover) is Use.UNKNOWN
        assert not leftovers.remove(leftover)
        assert leftovers.remove(leftover, unknown=True)
        assert not left.exists()

    def test_this_hosts_goes(self, final: Path) -> None:
        """On one host, a lock shows in any case."""
        left = leave(final, platform.node())
        ckpt.save(STATE, final)
        assert not left.exists()

    @pytest.mark.parametrize(
        ("job", "restarts", "stays"),
        [("77", "1", False), ("77", "2", False), ("77", "0", True), ("78", "1", True), ("", "1", True)],
    )
    def test_a_requeued_job(
        self, job: str, restarts: str, stays: bool, final: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Slurm ends a job before it starts it anew: what an earlier start of this very job left is nobody's."""
        left = leave(final, slurm="-job77.0")
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        ckpt.save(STATE, final)
        assert stays == left.exists()


def test_the_name(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A staging directory's name says who writes it: host, job, and which start of the job."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with commit.begin(final) as staging:
        (leftover,) = leftovers.of(final)
    assert leftovers.Leftover(staging.path, "latest", platform.node(), "4711", 3) == leftover


def test_other_names_are_left_alone(final: Path) -> None:
    """Other checkpoints' directories, files, links, and whatever else is called so stay."""
    others = [
        leave(final.with_name("latest-2")),
        leave(final.with_name("late")),
        final.with_name(".partial-latest@by-hand"),
        final.with_name(".partial-latest@node1-0123456789abcdef0"),
        final.with_name(".partial-latest@link-0123456789abcdef"),
    ]
    others[2].mkdir()
    others[3].touch()
    others[4].symlink_to(others[2])
    ckpt.save(STATE, final)
    assert {final, *others} == set(final.parent.iterdir())


class TestCommand:
    """`python -m ckpt leftovers`."""

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of the command."""
        done = run_module("ckpt", "leftovers", *arguments, columns=160)
        assert done.stderr == ""
        return done.returncode, done.stdout

    @pytest.mark.every_filesystem(only="locks_everywhere")
    def test_listing_and_removing(self, final: Path, locked: list[int]) -> None:
        """It lists what there is, with its size and whether it is in use; `--remove` removes what isn't."""
        assert (0, f"{final.parent}: no leftovers of saves\n") == self.run(str(final.parent))
        left, live = leave(final, slurm="-job5.0"), leave(final.with_name("other"), "node2")
        locked.append(os.open(live, os.O_RDONLY))
        leftovers.lock(locked[0])
        code, output = self.run(str(final.parent))
        assert code == 1
        assert [left.name, "node1", "5", "0.000", "left by a save that ended"] == output.splitlines()[1].split(
            maxsplit=4
        )
        assert "being written" in output
        assert f"python -m ckpt leftovers {final.parent} --remove" in output
        code, output = self.run(str(final.parent), "--remove")
        assert (0, False, True) == (code, left.exists(), live.exists())
        assert "removed" in output
