"""A clock that is set back by a day, again and again, changes nothing: which checkpoint is the newest doesn't depend on
times, nor does what is removed. The calendar is a mock; files get its times.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import ckpt
from ckpt import writing
from ckpt.checkpointer import Checkpointer
from ckpt.disk import renames
from ckpt.series import steps
from support.series import state_of, step_in
from support.set_back import Datetime, SetBack


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> SetBack:
    """What every module of ckpt reads."""
    monkeypatch.setattr(writing, "datetime", Datetime)
    return SetBack(monkeypatch)


def leave(final: Path) -> Path:
    """What a save that was killed left."""
    left = final.with_name(f".partial-{final.name}@node1-0123456789abcdef")
    left.mkdir()
    (left / "data").write_bytes(b"x")
    return left


@pytest.mark.parametrize("levels", [1, 2])
def test_a_series(levels: int, calendar: SetBack, tmp_path: Path) -> None:
    """The newest steps stay, the newest is restored, and what a killed save left is removed."""
    places = {"directory": tmp_path / "shared"} | ({"local": tmp_path / "local"} if levels > 1 else {})

    def series() -> Checkpointer:
        return Checkpointer(**places, background="thread", keep=2)

    with series() as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state_of(step))
            checkpoints.wait()
            calendar.stamp(tmp_path)
    assert checkpoints.steps() == [4, 5]
    written = [ckpt.inspect(steps.path_of(tmp_path / "shared", step)).created_utc for step in (4, 5)]
    assert written[1] < written[0], "the calendar goes back"

    left = [leave(steps.path_of(directory, 6)) for directory in places.values()]
    calendar.stamp(tmp_path)
    with series() as again:
        restored = again.restore()
        assert restored is not None
        assert (restored.step, step_in(restored.state), list(restored.skipped)) == (5, 5, [])
        again.save(6, state_of(6))
        again.wait()
    assert again.steps() == [5, 6]
    assert step_in(ckpt.load(tmp_path / "shared" / "latest")) == 6
    assert not any(map(Path.exists, left))


@pytest.mark.parametrize("exchanges", [True, False])
def test_replacing(exchanges: bool, calendar: SetBack, final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last save has the name, whether directories are exchanged or a link leads to a version, and nothing stays."""
    if not exchanges:
        monkeypatch.setattr(renames, "can_exchange", lambda _: False)
    for step in range(1, 4):
        left = leave(final)
        ckpt.save(state_of(step), final)
        calendar.stamp(final.parent)
        assert step_in(ckpt.load(final)) == step
        assert not left.exists()
    assert len(list(final.parent.iterdir())) == (1 if exchanges else 2)
    assert calendar.readings > 3
