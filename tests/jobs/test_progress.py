"""What is read of a log to show how far its job is: a note at its front, or all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.timing_log import reading
from jobs.timing_log.seal import sealed
from support.watched import log_of


def test_the_note_in_a_log_is_what_the_whole_log_adds_up_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With trials or without: the same status, trials and bandwidth; and HDF5 isn't needed."""
    path = tmp_path / "log.h5"
    for trials in (0, 1, 3):
        log_of("j", "running", trials=trials).write(path)
        whole = timing_log.read(path).progress()
        with monkeypatch.context() as without_hdf5:
            without_hdf5.delattr(reading, "opened")
            found = timing_log.read_progress(path)

        assert found == whole
        assert (found.status, found.trials_done) == ("running", trials)
        assert found.last_bandwidth_gbps == (1.0 if trials else None)
        assert found.longest_trial_s == (3.0 if trials else 0.0)
        assert found.code_changed == "submitted with 2, run with 1"


def test_progress_of_a_log_without_a_note(tmp_path: Path) -> None:
    """Of an earlier release, of another writer, with an error that is longer than the block: what all of it says."""
    path, ours = tmp_path / "other.h5", tmp_path / "ours.h5"
    log = log_of("j", "failed", trials=2)
    log.write(ours)
    noted = timing_log.read_progress(ours)

    path.write_bytes(sealed(ours.read_bytes()[512:]))  # as an earlier release
    assert timing_log.read_progress(path) == noted
    with h5py.File(path, "w") as file:
        log.write_to(file)
    assert timing_log.read_progress(path) == noted
    log.header.error = "long " * 1000
    log.write(path)
    assert timing_log.read_progress(path) == replace(noted, error=log.header.error)


def test_progress_of_a_damaged_log(tmp_path: Path) -> None:
    """One flipped bit, in the seal, the note or behind them, or a missing end: an error that names the log."""
    path = tmp_path / "log.h5"
    log_of("j", "complete", trials=2).write(path)
    whole = path.read_bytes()
    block = len(whole[:512].rstrip(b"\0"))
    for place in (*range(0, block, 7), block - 1, block, 511, 512, 5000, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TimingLogError, match=r"log\.h5"):
            timing_log.read_progress(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(TimingLogError, match="damaged"):
        timing_log.read_progress(path)
