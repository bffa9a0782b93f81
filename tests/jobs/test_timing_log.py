"""The timing log: what is written is read again, by us and by others, and no failure costs what is there."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.timing_log import DiskUse, Header, Sample, TimingLog, reading
from jobs.timing_log.seal import sealed

V1 = Path(__file__).parent / "data" / "v1.h5"


def reseal(path: Path) -> None:
    """Seal a log anew whose content was changed on purpose."""
    content = path.read_bytes()
    if content.startswith(b"ckpt-study"):
        path.write_bytes(sealed(content[512:]))


def version_1() -> TimingLog:
    """What stands in `data/v1.h5`, which the writer of version 1 wrote."""
    total = Sample(
        trial=0,
        warmup=True,
        rank=0,
        operation="save",
        phase="total",
        start_s=0.5,
        duration_s=0.1,
        state_bytes=2**40 + 1,
        durability="committed",
        cache="n/a",
        resident_fraction=math.nan,
        cpu_s=0.3,
        peak_rss_bytes=3 * 2**30,
        valid=True,
        reason="",
    )
    call = replace(total, phase="call", durability="returned", cpu_s=math.nan, peak_rss_bytes=-1)
    load = replace(
        total, trial=1, warmup=False, operation="load", durability="n/a", cache="cold", resident_fraction=0.0
    )
    wrong = replace(load, cache="warm", resident_fraction=1.0, valid=False, reason="differs:\n“größer” — 3 bytes ✓")
    return TimingLog(
        header=Header(
            study="frozen",
            job_id="r01-torch_save-nvme-1x1",
            strategy="torch_save",
            label="torch_save",
            strategy_options="{}",
            strategy_facts='{"files": "1"}',
            target="nvme",
            round=1,
            nodes=1,
            tasks_per_node=1,
            trials_planned=1,
            created_utc="2026-01-02T03:04:05+00:00",
            clock_zero_unix_s=1767323045.25,
            status="complete",
        ),
        samples=[call, total, load, wrong],
        disk=[
            DiskUse(
                trial=0,
                file_count=2,
                apparent_bytes=2**40 + 900,
                allocated_bytes=2**40 + 4096,
                small_file_count=1,
                largest_file_bytes=2**40,
            )
        ],
        state={"model": "frozen", "state_bytes": 2**40 + 1, "digest": "0123"},
        storage={"filesystem": "ext4", "path": "/nvme/a b", "free_bytes": 5 * 2**40},
        provenance={"host": "node1", "clock_resolution_s": 1e-9},
    )


def exactly(log: TimingLog) -> str:
    """Everything in a log as text, so that a NaN equals itself and True isn't 1."""
    return repr(
        replace(log, **{name: dict(sorted(getattr(log, name).items())) for name in ("state", "storage", "provenance")})
    )


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


def test_write_leaves_one_file_for_all_to_read(tmp_path: Path) -> None:
    """A log replaces the one before it, leaves nothing beside it, and others may read it."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    log = version_1()
    log.samples = log.samples[:1]
    log.write(path)

    assert len(timing_log.read(path).samples) == 1
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_mode & 0o777 == 0o644


@contextmanager
def _largest_file(size_bytes: int) -> Iterator[None]:
    """As on a full disk: no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room_bytes", [0, 100, 5000, 20_000])
def test_full_disk_keeps_the_old_log(room_bytes: int, tmp_path: Path) -> None:
    """Where the disk is full the write fails with an OSError, the old log stays, and nothing else is left.

    HDF5 itself would end the process by a segmentation fault.
    """
    path = tmp_path / "log.h5"
    version_1().write(path)
    before = path.read_bytes()
    longer = version_1()
    longer.samples *= 500

    with _largest_file(room_bytes), pytest.raises(OSError, match="File too large"):
        longer.write(path)

    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())
    longer.write(path)
    assert len(timing_log.read(path).samples) == 2000


def test_failure_while_writing_keeps_the_old_log(tmp_path: Path) -> None:
    """A value that HDF5 can't store fails the write; the old log stays, and nothing else is left."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    broken = version_1()
    broken.provenance["host"] = object()

    with pytest.raises(TypeError):
        broken.write(path)

    assert exactly(version_1()) == exactly(timing_log.read(path))
    assert [path] == list(tmp_path.iterdir())


def test_directory_that_is_gone(tmp_path: Path) -> None:
    """A log whose directory is gone can't be written, and that is an OSError."""
    with pytest.raises(OSError, match="No such file or directory"):
        version_1().write(tmp_path / "gone" / "log.h5")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_directory_keeps_the_old_log(tmp_path: Path) -> None:
    """In a directory that became read-only the write fails with an OSError, and the old log stays."""
    path = tmp_path / "log.h5"
    version_1().write(path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            version_1().write(path)
    finally:
        tmp_path.chmod(0o700)

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


@pytest.mark.parametrize("step", ["check_seal", "check_texts", "check_objects"])
def test_a_log_that_is_replaced_while_it_is_read(
    step: str, log: TimingLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked is what is read: a job that writes its next trial meanwhile changes nothing."""
    path = tmp_path / "log.h5"
    log.write(path)
    before = repr(timing_log.read(path))  # a NaN is not equal to itself
    longer = replace(log, samples=[*version_1().samples] * 40, provenance={"python": "3.11 " * 1000})
    check = getattr(reading, step)

    def replaced_then_checked(*arguments: Any) -> None:
        longer.write(path)
        check(*arguments)

    monkeypatch.setattr(reading, step, replaced_then_checked)
    assert before == repr(timing_log.read(path))
    monkeypatch.undo()
    assert before != repr(timing_log.read(path))


def test_every_column_is_described(tmp_path: Path) -> None:
    """Every dataset has units and a long name, lies on a dimension scale, and quantities name their unit."""
    units = {"_s": "s", "_bytes": "byte"}
    version_1().write(tmp_path / "log.h5")
    with h5py.File(tmp_path / "log.h5") as file:
        columns = [column for group in ("samples", "disk") for column in file[group].values()]
        assert {each.name for row in (Sample, DiskUse) for each in fields(row)} <= {
            column.name.rpartition("/")[2] for column in columns
        }
        for column in columns:
            name = column.name.rpartition("/")[2]
            expected = next((unit for suffix, unit in units.items() if name.endswith(suffix)), "1")
            assert expected == column.attrs["units"], name
            assert len(column.attrs["long_name"]) > 5, name
            assert column.is_scale or column.dims[0].keys(), name


@pytest.fixture(params=["with rows", "without rows"])
def log(request: pytest.FixtureRequest) -> TimingLog:
    """A log, and one of a job that has only begun."""
    found = version_1()
    return found if request.param == "with rows" else replace(found, samples=[], disk=[])


@pytest.mark.parametrize(("group", "rows"), [("samples", "samples"), ("disk", "disk")])
def test_xarray_opens_a_table(group: str, rows: str, log: TimingLog, tmp_path: Path) -> None:
    """Xarray opens a table without a warning: named dimensions, true booleans, text as text, equal values."""
    path = tmp_path / "log.h5"
    log.write(path)
    expected = getattr(log, rows)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_dataset(path, group=f"/{group}", engine="h5netcdf") as dataset:
            dataset.load()

    assert {"samples": ["sample"], "disk": ["disk_trial"]}[group] == list(dataset.sizes)
    kinds = {"int": "i", "float": "f", "bool": "b", "str": "U"}
    for each in fields(Sample if group == "samples" else DiskUse):
        column = dataset[each.name]
        if each.type == "str":
            assert all(isinstance(value, str) for value in column.values.tolist())
        else:
            assert kinds[str(each.type)] == column.dtype.kind, each.name
        np.testing.assert_array_equal([getattr(row, each.name) for row in expected], column.values)


def test_xarray_opens_the_whole_file(log: TimingLog, tmp_path: Path) -> None:
    """Xarray opens the file as a tree without a warning, with every group and every attribute."""
    path = tmp_path / "log.h5"
    log.write(path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            tree.load()

    assert {"/", "/samples", "/disk", "/ceiling", "/ranks", "/state", "/storage", "/provenance"} == set(tree.groups)
    sizes = {name for group in tree.groups for name in tree[group].sizes}
    assert {"sample", "disk_trial", "ceiling_row", "ranks_row"} == sizes
    assert asdict(log.header) | {"schema": "ckpt-timing-log", "schema_version": 1} == tree.attrs
    assert log.storage == tree["storage"].attrs


def test_h5dump_prints_it(tmp_path: Path) -> None:
    """`h5dump`, where it is installed, prints all of a log, booleans and units included; else nothing is tested."""
    if shutil.which("h5dump") is None:
        return
    version_1().write(tmp_path / "log.h5")
    printed = subprocess.run(["h5dump", tmp_path / "log.h5"], capture_output=True, text=True, check=True).stdout

    assert [
        each for each in ('"committed"', '"byte"', '"ckpt-timing-log"', "DIMENSION_LIST") if each not in printed
    ] == []


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
