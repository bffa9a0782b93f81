"""Loads into memory that existed: an operation of its own in tables, figures and reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.figures import draw
from analysis.logs.frames import Results
from analysis.logs.load import load_results
from analysis.measures.comparison import compare
from analysis.measures.method import Method
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from analysis.tables.methods import all_tables
from jobs.timing_log import LOAD_INTO, Sample
from support.logs import GB, LogBuilder, job

MIB = 2**20


def filled(cold: Sample, **changes: Any) -> Sample:
    """The sample of a load in place in the trial of a cold load, which took half of its time."""
    half_s = cold.duration_s / 2
    return replace(cold, operation=LOAD_INTO, load_number=2, start_s=cold.start_s + 100, duration_s=half_s, **changes)


MakeResults = Callable[..., Results]


@pytest.fixture
def results_of(tmp_path: Path) -> MakeResults:
    """Results of three methods: one with loads in place, one whose strategy can't, one whose logs are older."""

    def make(**changes: Any) -> Results:
        for label, facts in (("fast", {"in_place": "yes"}), ("torch_save", {"in_place": "no"}), ("old", {})):
            built = LogBuilder(job(label), strategy_facts=json.dumps(facts))
            for _ in range(3):
                built.trial(save=4.0, cold=2.0, warm=1.0)
            built.log.samples = [replace(s, state_bytes=GB, peak_extra_bytes=1000 * MIB) for s in built.log.samples]
            if label == "fast":
                cold = [sample for sample in built.log.samples if sample.cache == "cold"]
                built.log.samples += [filled(sample, peak_extra_bytes=9 * MIB, **changes) for sample in cold]
            built.write(tmp_path / "logs" / f"{label}.h5")
        return load_results(tmp_path)

    return make


def method_of(results: Results, label: str = "fast") -> Method:
    """The method of that label."""
    (setting,) = settings(results)
    method = setting.method(label)
    assert method is not None
    return method


def test_it_is_compared_with_no_other_load(results_of: MakeResults) -> None:
    """It has trials of its own, and the cold load keeps its own."""
    method = method_of(results_of())
    assert method.load_in_place() is Operation.INTO_COLD
    assert method[Operation.INTO_COLD].durations_s == (1, 1, 1)
    assert method[Operation.LOAD_COLD].durations_s == (2, 2, 2)
    assert method.cold_load() is Operation.LOAD_COLD
    assert method.usage_of(Operation.INTO_COLD).gbps == 1
    assert method.usage_of(Operation.INTO_COLD).extra_bytes == 9 * MIB


def test_the_table(results_of: MakeResults) -> None:
    """Time, rate and memory of the method that was measured, and why the others are left out."""
    [comparison] = compare(results_of())
    (table,) = [table for table in all_tables(comparison) if table.name == "in_place"]
    assert [row[0] for row in table.rows] == ["fast"]
    assert "load in place" in table.headings
    notes = "\n".join(table.notes)
    assert "can't load in place: torch_save" in notes
    assert "for want of a valid load in place: old" in notes
    summary = next(table for table in all_tables(comparison) if table.name == "summary")
    assert "load in place, cold from the device [s]" in summary.headings


def test_unproven_ones_have_a_column_of_their_own(results_of: MakeResults) -> None:
    """As with plain loads, one that isn't proven cold is called that."""
    method = method_of(results_of(cache="cold-unproven", resident_fraction=0.25))
    assert method.load_in_place() is Operation.INTO_UNPROVEN
    assert Operation.INTO_UNPROVEN.label == "load in place, cold unproven"
    assert any("not proven cold" in problem for problem in method.problems)


def test_invalid_ones_do_not_count(results_of: MakeResults) -> None:
    """A load in place that read something else has no trial, and is among the problems."""
    method = method_of(results_of(valid=False, reason="loaded state differs: a: 4 of 8 bytes differ"))
    assert method.load_in_place() is None
    assert any("invalid load into sample" in problem and "differs" in problem for problem in method.problems)


def test_figures(results_of: MakeResults) -> None:
    """It has figures of its own."""
    drawn, _ = draw(settings(results_of()))
    assert any("in place" in figure.caption for figure in drawn)
    assert any("into-cold" in figure.name for figure in drawn)


def test_old_logs_have_no_such_table(tmp_path: Path) -> None:
    """A study without loads in place is shown as before."""
    built = LogBuilder(job("torch_save")).trial(save=4.0, cold=2.0)
    built.write(tmp_path / "logs" / "a.h5")
    [comparison] = compare(load_results(tmp_path))
    assert "in_place" not in [table.name for table in all_tables(comparison)]
    summary = all_tables(comparison)[0]
    assert not any("in place" in heading for heading in summary.headings)
