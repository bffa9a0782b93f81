"""Several ranks whose truths are known: what they did together is reported with exactly these truths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from analysis.measures.operation import Operation
from jobs import timing_log
from support.logs import amended
from support.studies import MakeStudy, Show, StudyOnDisk, only, rows


def scaled(study: StudyOnDisk, nodes: int, seconds: Sequence[float]) -> None:
    """Rewrite the study's log as that of a job with a rank on each of so many nodes, which start 0.25 s apart."""
    path = study.paths.log(study.job("torch_save").id)

    def change(log: timing_log.TimingLog) -> None:
        log.header.nodes, log.header.job_id = nodes, f"scale-{nodes}"
        [sample] = [each for each in log.samples if each.operation == "save" and each.phase == "total"]
        log.samples = [
            replace(sample, trial=trial, rank=rank, start_s=10.0 * trial + 0.25 * rank, duration_s=value)
            for trial, value in enumerate(seconds)
            for rank in range(nodes)
        ]

    log = timing_log.read(path)
    change(log)
    log.write(path.with_name(f"scale-{nodes}.h5"))


def test_scales_stand_against_the_smallest(make_study: MakeStudy, show: Show) -> None:
    """An operation of many ranks lasts from the first start to the last end, and moves the bytes of all."""
    study = make_study(strategies=["torch_save"])
    study.log("torch_save", save=[1.0])
    for nodes in (1, 2, 4):
        scaled(study, nodes, [2.0, 2.0])
    study.paths.plan_json.unlink()
    study.paths.log(study.job("torch_save").id).unlink()

    found = rows(show(study.root, "csv"), "scaling")

    # One rank: 1 GiB in 2 s. Two: 2 GiB in 2.25 s. Four: 4 GiB in 2.75 s.
    rates = [ranks * 2**30 / seconds / 1e9 for ranks, seconds in ((1, 2.0), (2, 2.25), (4, 2.75))]
    assert [float(row["nodes"]) for row in found] == [1, 2, 4]
    assert [float(row["save [GB/s]"]) for row in found] == pytest.approx(rates)
    assert [float(row["save, efficiency"]) for row in found] == pytest.approx([1.0, 2 / 2.25, 2 / 2.75])


def test_an_operation_is_valid_where_it_is_on_every_rank(make_study: MakeStudy) -> None:
    """One rank's mismatch makes the whole load invalid, with its reason."""
    study = make_study(strategies=["torch_save"])
    path = study.log("torch_save", save=[1.0, 1.0], cold=[1.0, 1.0])

    def second_rank(log: timing_log.TimingLog) -> None:
        for sample in list(log.samples):
            wrong = sample.trial == 1 and sample.operation == "load"
            log.samples.append(replace(sample, rank=1, valid=not wrong, reason="loaded state differs" if wrong else ""))

    amended(path, second_rank)
    [method] = only(study.root).setting.methods

    assert (len(method[Operation.LOAD_COLD]), method[Operation.LOAD_COLD].invalid, len(method[Operation.SAVE])) == (
        1,
        1,
        2,
    )
    assert method.problems == (f"{study.job('torch_save').id}: 1 invalid load sample(s): loaded state differs",)
