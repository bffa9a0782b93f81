"""Logs and merged files of earlier releases: they load, and give the tables that they gave then.

`data/` has what the release before the rooms were sorted wrote, and the tables that it printed: `ranks.h5` is the log
of a job of two ranks with cold and warm loads, `merged-v2.h5` holds eight logs of one or two ranks. `merged-v1.h5` is
from an older release. The tables are frozen as CSV, which holds every number and note, and no layout for a terminal.
"""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

import analysis

DATA = Path(__file__).parent / "data"
ROOT = Path(analysis.__file__).parents[1]


@pytest.mark.parametrize("name", ["ranks", "merged-v1", "merged-v2"])
def test_tables_of_an_earlier_release(name: str) -> None:
    """`python -m analysis table` prints for an earlier release's file what that release printed."""
    command = [sys.executable, "-m", "analysis", "table", str(DATA / f"{name}.h5"), "--format", "csv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}

    printed = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=True)

    storage, _, tables = printed.stdout.partition("\n\n")
    assert ",not proven here\nstorage,Storage: " in storage  # a table that came later
    before = (DATA / f"{name}.csv").read_text(encoding="utf-8")
    before = before.replace("buffered or buffered or direct", "buffered or direct")  # a note repeated itself
    cells, cells_before = ([*csv.reader(text.splitlines())] for text in (tables, before))
    assert [*map(len, cells)] == [*map(len, cells_before)]
    differing = [(was, now) for was, now in zip(chain(*cells_before), chain(*cells), strict=True) if not same(was, now)]
    assert differing == []


def same(was: str, now: str) -> bool:
    """Whether two cells have the same content: that release printed every digit, also of p-values."""
    try:
        before, after = float(was), float(now)
    except ValueError:
        return was == now
    return math.isclose(before, after, rel_tol=1e-11) or float(f"{before:.3g}") == after


def test_loads_of_an_earlier_release_are_numbered() -> None:
    """Its logs have no `load_number`: on each rank the cold load is 0 and the warm one 1."""
    samples = analysis.load_results(DATA / "ranks.h5").samples
    loads = samples[samples["operation"] == "load"]

    assert len(loads) == 3 * 2 * 2
    assert (loads["load_number"] == (loads["cache"] == "warm")).all()
    assert set(loads["rank"]) == {0, 1}
