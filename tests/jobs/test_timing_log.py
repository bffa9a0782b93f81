"""The timing log: what is written is read again, by us and by others, and no failure costs what is there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.timing_log import DiskUse, Header, Hook, Metadata, Sample, TimingLog, reading
from jobs.timing_log.seal import sealed
from support.frozen_log import V1, exactly, version_1


def reseal(path: Path) -> None:
    """Seal a log anew whose content was changed on purpose."""
    content = path.read_bytes()
    if content.startswith(b"ckpt-study"):
        path.write_bytes(sealed(content[512:]))


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
integers = st.integers(-(2**63), 2**63 - 1)
of_type = {"str": text, "int": integers, "float": st.floats(), "bool": st.booleans()}


def records(row: type) -> st.SearchStrategy[Any]:
    """Any values that a row's fields allow."""
    return st.builds(row, **{each.name: of_type[str(each.type)] for each in fields(row)})


attributes = st.dictionaries(st.sampled_from(["a", "b c", "ü"]), st.one_of(*of_type.values()))
logs = st.builds(
    TimingLog,
    header=records(Header),
    samples=st.lists(records(Sample), max_size=4),
    disk=st.lists(records(DiskUse), max_size=3),
    metadata=st.lists(records(Metadata), max_size=2),
    hooks=st.lists(records(Hook), max_size=2),
    state=attributes,
    storage=attributes,
    provenance=attributes,
)


@given(log=logs)
@settings(max_examples=40)
def test_round_trip(log: TimingLog, tmp_path: Path) -> None:
    """Every log comes back as it was written, to the last bit and type: no rows, NaN, newlines, any language."""
    log.write(tmp_path / "log.h5")

    assert exactly(log) == exactly(timing_log.read(tmp_path / "log.h5"))


@pytest.mark.parametrize(
    ("told", "kept"), [("a NUL \0 in it", "a NUL \\x00 in it"), ("no UTF-8: \udcff", "no UTF-8: \\udcff")]
)
def test_text_that_hdf5_can_not_hold(told: str, kept: str, tmp_path: Path) -> None:
    """A message or a path with a NUL, or with bytes that are no UTF-8, costs no log: they are spelt out."""
    log = version_1()
    log.samples = [replace(log.samples[0], valid=False, reason=told)]
    log.header.error, log.storage["path"] = told, told

    log.write(tmp_path / "log.h5")

    read = timing_log.read(tmp_path / "log.h5")
    assert [kept] * 3 == [read.samples[0].reason, read.header.error, read.storage["path"]]


def test_version_1_stays_readable() -> None:
    """A file of version 1 is read by every later release, with the exact values."""
    assert exactly(version_1()) == exactly(timing_log.read(V1))


def test_a_later_column_is_no_obstacle(tmp_path: Path) -> None:
    """A log to which a later release has added a column, an attribute and a group is read."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    with h5py.File(path, "a") as file:
        file["samples"].create_dataset("network_bytes", data=[1, 2, 3, 4])
        file.attrs["added"] = "later"
        file.create_group("network")
    reseal(path)

    assert exactly(version_1()) == exactly(timing_log.read(path))


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2, 3]


def _other_schema(path: Path, schema: Any) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = schema


def _changed(path: Path, **attributes: Any) -> None:
    version_1().write(path)
    with h5py.File(path, "a") as file:
        file.attrs.update(attributes)
    reseal(path)


def _without(path: Path, *names: str) -> None:
    version_1().write(path)
    with h5py.File(path, "a") as file:
        for name in names:
            del file[name]
    reseal(path)


def _ragged(path: Path) -> None:
    version_1().write(path)
    with h5py.File(path, "a") as file:
        del file["samples/rank"]
        file["samples/rank"] = [0]
    reseal(path)


NO_LOGS = {
    "missing": (lambda path: path.unlink(missing_ok=True), "no such timing log"),
    "empty": (lambda path: path.touch(), "can't be read as HDF5"),
    "text": (lambda path: path.write_text("trial,seconds\n0,1.5\n"), "can't be read as HDF5"),
    "directory": (lambda path: path.mkdir(), "can't be read as HDF5"),
    "foreign HDF5": (_foreign, "'schema' is None, expected 'ckpt-timing-log'"),
    "another schema": (lambda path: _other_schema(path, "ckpt-timing-logs"), "'schema' is 'ckpt-timing-logs'"),
    "a schema of several": (lambda path: _other_schema(path, ["ckpt-timing-log", "b"]), "expected 'ckpt-timing-log'"),
    "a schema that is a number": (lambda path: _other_schema(path, np.arange(3)), "'schema' is [0, 1, 2]"),
    "a later version": (
        lambda path: _changed(path, schema_version=2),
        "has version 2 of the timing log, and version 1",
    ),
    "several versions": (lambda path: _changed(path, schema_version=[1, 1]), "has version [1, 1]"),
    "without a group": (lambda path: _without(path, "samples"), "damaged timing log"),
    "without a column": (lambda path: _without(path, "samples/duration_s"), "damaged timing log"),
    "columns of different lengths": (_ragged, "damaged timing log"),
}


@pytest.mark.parametrize(("make", "told"), NO_LOGS.values(), ids=NO_LOGS)
def test_no_timing_log(make: Any, told: str, tmp_path: Path) -> None:
    """What is no timing log of a known version is told with its path and the reason."""
    path = tmp_path / "log.h5"
    make(path)

    with pytest.raises(TimingLogError) as caught:
        timing_log.read(path)

    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_truncated_anywhere(tmp_path: Path) -> None:
    """A log that was cut short, wherever, is refused; it is never read in part."""
    whole, cut = V1.read_bytes(), tmp_path / "log.h5"
    for size in range(0, len(whole), 97):
        cut.write_bytes(whole[:size])
        with pytest.raises(TimingLogError, match=r"log\.h5 can't be read as HDF5"):
            timing_log.read(cut)


@pytest.fixture(params=["with rows", "without rows"])
def log(request: pytest.FixtureRequest) -> TimingLog:
    """A log, and one of a job that has only begun."""
    found = version_1()
    return found if request.param == "with rows" else replace(found, samples=[], disk=[])


@pytest.mark.parametrize("step", ["check_seal", "check_texts", "checked"])
def test_a_log_that_is_replaced_while_it_is_read(
    step: str, log: TimingLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked is what is read: a job that writes its next trial meanwhile changes nothing."""
    path = tmp_path / "log.h5"
    log.write(path)
    before = repr(timing_log.read(path))  # a NaN is not equal to itself
    longer = replace(log, samples=[*version_1().samples] * 40, provenance={"python": "3.11 " * 1000})
    check = getattr(reading, step)

    def replaced_then_checked(*arguments: Any) -> Any:
        longer.write(path)
        return check(*arguments)

    monkeypatch.setattr(reading, step, replaced_then_checked)
    assert before == repr(timing_log.read(path))
    monkeypatch.undo()
    assert before != repr(timing_log.read(path))


def test_reading_needs_neither_torch_nor_submitit() -> None:
    """A laptop reads logs with h5py and numpy alone."""
    code = (
        "import sys, pathlib; from jobs import timing_log; timing_log.read(pathlib.Path(sys.argv[1])); "
        "print(sorted({'torch', 'transformers', 'tensorstore', 'pandas', 'submitit', 'pydantic'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code, V1], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"


def test_a_text_too_long_for_an_attribute_is_cut(tmp_path: Path) -> None:
    """A thousand mounts, or an endless error, cost their own end and not the log."""
    log = version_1()
    log.provenance["mounts"] = "é" * 100_000
    log.header.error = "x" * 100_000
    log.write(tmp_path / "log.h5")
    read = timing_log.read(tmp_path / "log.h5")

    assert read.provenance["mounts"].endswith("... (cut: 200000 bytes)")
    assert read.header.error.startswith("x" * 60_000)
    assert len(version_1().samples) == len(read.samples)
