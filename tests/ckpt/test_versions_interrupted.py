"""Where a link leads to the newest version, what a replacement that was cut off or failed leaves is found again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import ckpt
from ckpt.disk import commit, durable, leftovers, versions
from ckpt.disk.leftovers import Use
from ckpt.disk.pinned import identity
from ckpt.errors import CheckpointError
from support.command_lines import run_module
from support.versions import names, save, step_of

pytestmark = pytest.mark.usefixtures("without_exchange")


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX, where another test imported it; it isn't used here
class TestBetweenTheRenames:
    """A first replacement ended after the old checkpoint lost its name, and before the new one had it."""

    @pytest.fixture(autouse=True)
    def _ended(self, without_exchange: None, final: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG002
        save(1, final)
        child = os.fork()
        if not child:
            rename = Path.rename

            def last(path: Path, target: Path) -> Path:
                if target == final:
                    os._exit(0)
                return rename(path, target)

            monkeypatch.setattr(Path, "rename", last)
            save(2, final)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert not os.path.lexists(final)

    def test_a_load(self, final: Path) -> None:
        """The new checkpoint is loaded; nothing is changed."""
        before = names(final.parent)
        assert step_of(final) == 2
        assert ckpt.inspect(final).problems == ()
        assert names(final.parent) == before

    def test_existence(self, final: Path) -> None:
        """A training loop that asks before it loads is told that there is a checkpoint."""
        assert ckpt.exists(final)
        assert not ckpt.exists(final.with_name("lates"))
        assert not ckpt.exists(final.with_name("nothing") / "latest")

    def test_a_save(self, final: Path) -> None:
        """The next save replaces it."""
        save(3, final)
        assert step_of(final) == 3
        assert names(final.parent) == {"latest", str(final.readlink())}

    def test_leftovers(self, final: Path) -> None:
        """Neither checkpoint is a leftover."""
        listed = run_module("ckpt", "leftovers", str(final.parent), "--remove", "--unknown", columns=200)
        assert listed.stdout == f"{final.parent}: no leftovers of saves\n"
        assert step_of(final) == 2

    def test_another_checkpoint_of_that_name(self, final: Path) -> None:
        """What has the name counts."""
        shutil.copytree(versions.interrupted(final) or final, final)
        save(3, final)
        assert step_of(final) == 3


def test_an_unpublished_version(final: Path) -> None:
    """A version that was never published is removed once its save has ended, and not before."""
    save(1, final)
    save(2, final)
    with commit.begin(final, replaces=identity(final)) as staging:
        replacement = staging._replacement
        assert replacement
        replacement._link.symlink_to(replacement.new.name)
        versions.sweep(final)
        assert replacement._link.is_symlink()
        staging.path.rename(replacement.new)
        (leftover,) = versions.in_directory(final.parent)
        assert leftovers.use_of(leftover) is Use.WRITING
        staging.release()
        assert leftovers.use_of(leftover) is Use.LEFT
        versions.sweep(final)
        assert names(final.parent) == {"latest", str(final.readlink())}


def test_a_replaced_version_that_was_not_removed(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old version stays until the new link is durable, and is removed by the next save."""
    save(1, final)
    save(2, final)
    old = final.with_name(str(final.readlink()))
    sync = durable.fsync_path

    def failing(path: Path | str) -> None:
        if Path(path) == final.parent and str(final.readlink()) != old.name:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(durable, "fsync_path", failing)
    with pytest.raises(CheckpointError, match=f"latest is the new checkpoint.*is kept in {old}"):
        save(3, final)
    assert (step_of(old), step_of(final)) == (2, 3)
    monkeypatch.setattr(durable, "fsync_path", sync)
    save(4, final)
    assert step_of(final) == 4
    assert names(final.parent) == {"latest", str(final.readlink())}
