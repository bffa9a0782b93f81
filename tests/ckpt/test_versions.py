"""Where two directories can't be exchanged, a link leads to the newest version of a checkpoint."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt
from ckpt.disk import commit, renames
from ckpt.disk.pinned import identity
from ckpt.errors import CheckpointError
from support.command_lines import run_module
from support.versions import names, save, step_of

pytestmark = pytest.mark.usefixtures("without_exchange")


def test_a_loop(final: Path) -> None:
    """A first save makes a directory; a name that is saved again becomes a link, beside which one version lies."""
    save(1, final)
    assert not final.is_symlink()
    for step in range(2, 5):
        save(step, final)
        assert step_of(final) == step
        assert names(final.parent) == {"latest", str(final.readlink())}
        assert final.readlink().name.startswith(".latest@")
    assert ckpt.inspect(final).problems == ()
    assert list(ckpt.load(final, names=["w"])) == ["w"]
    ckpt.convert(final, final.with_name("other"), "torch_save")
    assert step_of(final.with_name("other")) == 4


def test_the_directory_may_be_moved(final: Path, tmp_path: Path) -> None:
    """The link is relative: moved or copied with its directory, a checkpoint loads, and can be replaced."""
    save(1, final)
    save(2, final)
    shutil.copytree(final.parent, tmp_path / "copy", symlinks=True)
    final.parent.rename(tmp_path / "moved")
    for place in ("copy", "moved"):
        assert step_of(tmp_path / place / "latest") == 2
        save(3, tmp_path / place / "latest")
        assert step_of(tmp_path / place / "latest") == 3
        assert len(names(tmp_path / place)) == 2


@pytest.mark.parametrize(
    "command", ["cp -rL run/latest copy/", "tar -ch run/latest | tar -x -C copy --strip-components=1"]
)
def test_a_copy(command: str, final: Path, tmp_path: Path) -> None:
    """Programs that follow the link copy a checkpoint, as the guide has it."""
    save(1, final)
    save(2, final)
    (tmp_path / "copy").mkdir()
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    shutil.rmtree(final.parent)
    assert step_of(tmp_path / "copy" / "latest") == 2


def test_where_exchange_works_again(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that was copied to a filesystem that can exchange directories stays one."""
    save(1, final)
    save(2, final)
    monkeypatch.undo()
    save(3, final)
    assert step_of(final) == 3
    assert names(final.parent) == {"latest", str(final.readlink())}


def test_a_users_link(final: Path) -> None:
    """A user's own link leads to a name, which is replaced as if it had been given."""
    best = final.with_name("best")
    best.symlink_to("latest")
    for step in (1, 2, 3):
        save(step, best)
    assert (step_of(best), step_of(final)) == (3, 3)
    assert str(best.readlink()) == "latest"


def test_a_version_that_another_link_leads_to(final: Path) -> None:
    """Somebody kept a checkpoint by a link to its version: it stays when the checkpoint is replaced."""
    save(1, final)
    save(2, final)
    kept = final.with_name("best")
    kept.symlink_to(final.readlink())
    save(3, final)
    save(4, final)
    assert (step_of(kept), step_of(final)) == (2, 4)
    assert len(names(final.parent)) == 4


def test_a_link_that_was_moved_away(final: Path, tmp_path: Path) -> None:
    """A version whose link is elsewhere now is nobody's leftover: the next save leaves it alone."""
    save(1, final)
    save(2, final)
    version = final.with_name(str(final.readlink()))
    final.rename(tmp_path / "elsewhere")
    save(3, final)
    save(4, final)
    assert (step_of(version), step_of(final)) == (2, 4)
    listed = run_module("ckpt", "leftovers", str(final.parent), columns=200)
    assert version.name in listed.stdout
    assert "no link here leads to" in listed.stdout
    run_module("ckpt", "leftovers", str(final.parent), "--remove", columns=200)
    assert version.exists()
    assert "removed" in run_module("ckpt", "leftovers", str(final.parent), "--remove", "--unknown", columns=200).stdout
    assert not version.exists()
    assert step_of(final) == 4


@pytest.mark.every_filesystem
def test_two_savers(final: Path) -> None:
    """Of two that replace a checkpoint, the first to publish has the name, and the other one an error."""
    for step in (1, 2):
        save(step, final)
        first, second = (commit.begin(final, replaces=identity(final)) for _ in range(2))
        with first, second:
            (first.path / "from").write_text("first")
            (second.path / "from").write_text("second")
            second.publish()
            with pytest.raises(CheckpointError, match="another save"):
                first.publish()
        assert (final / "from").read_text() == "second"
        assert names(final.parent) == {"latest", str(final.readlink())}
        final.unlink()
        shutil.rmtree(next(final.parent.iterdir()))
        save(1, final)


@pytest.mark.parametrize("links", [1, 2], ids=["a directory", "a link"])
@pytest.mark.parametrize(("call", "number"), [("symlink_to", 1), ("rename", 1), ("rename", 2), ("rename", 3)])
def test_a_step_that_fails(call: str, number: int, links: int, final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step of a replacement fails, the name has the old checkpoint, and nothing is left beside it."""
    for _ in range(links):
        save(1, final)
    original: Callable[..., Path] = getattr(Path, call)
    calls: list[Path] = []

    def failing(path: Path, *arguments: Path) -> Path:
        calls.append(path)
        if len(calls) == number:
            raise OSError(5, "Input/output error")
        return original(path, *arguments)

    staging = commit.begin(final, replaces=identity(final))
    monkeypatch.setattr(Path, call, failing)
    with staging:
        if number <= {"symlink_to": 1, "rename": 4 - links}[call]:
            with pytest.raises(CheckpointError, match="is as it was"):
                staging.publish()
            monkeypatch.setattr(Path, call, original)
            staging.discard()
            assert step_of(final) == 1
        else:
            staging.publish()
            assert identity(final) == staging.identity
    commit.begin(final, replaces=identity(final)).discard()  # the old one, if it could not be put aside
    assert len(names(final.parent)) == 1 + final.is_symlink()


def test_a_filesystem_that_ignores_the_flag(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an exchange is a plain rename that reports success, it isn't used."""

    def plain(source: Path, target: Path, _: int) -> None:
        if target.is_dir():
            shutil.rmtree(target)
        source.rename(target)

    monkeypatch.setattr(renames, "renameat2", plain)
    for step in (1, 2, 3):
        save(step, final)
        assert step_of(final) == step
    assert names(final.parent) == {"latest", str(final.readlink())}


def test_a_name_that_was_taken_on_a_filesystem_that_ignores_flags(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a rename would replace an empty directory: what has the name stays."""
    monkeypatch.setattr(renames, "renameat2", lambda source, target, _: source.rename(target))
    with commit.begin(final) as staging:
        final.mkdir()
        taken = identity(final)
        with pytest.raises(CheckpointError, match="what lies there stays"):
            staging.publish()
    assert identity(final) == taken
