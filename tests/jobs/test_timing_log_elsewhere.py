"""The timing log as other programs see it: xarray, h5dump."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from jobs.timing_log import DiskUse, Sample, TimingLog
from support.frozen_log import version_1


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
