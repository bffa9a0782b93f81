"""What jobs ask of Slurm: a study's table over its profile's, and what a user's environment adds."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.cluster.arrays import batches, from_environment, origins
from jobs.plan import plan
from jobs.plan.slurm_table import Slurm
from jobs.plan.study import Study


def small_study(slurm: dict[str, Any]) -> Study:
    """One strategy on one target, with that request."""
    return Study.model_validate({
        "name": "demo", "state": {"model": "openllama-3b"}, "strategies": ["torch_save"], "targets": {"here": {}},
        "slurm": slurm,
    })  # fmt: skip


def test_a_table_over_another_leaves_out_what_it_is_without() -> None:
    """`without` takes away what lies below, its own keys stay, and what a table above gives counts again."""
    profile = Slurm(partition="batch", exclusive=True, mem_gb=4, additional_parameters={"mem": "0", "nice": 1})
    study = Slurm(without=("mem", "mem_gb", "exclusive"), partition="debug")
    target = Slurm(mem_gb=8)

    both = study.over(profile)
    assert ("debug", None, None, {"nice": 1}) == (
        both.partition, both.exclusive, both.mem_gb, both.additional_parameters,
    )  # fmt: skip
    assert (8, None) == ((above := target.over(study).over(profile)).mem_gb, above.exclusive)
    again = Slurm.model_validate_json(both.model_dump_json())
    assert again == both


def test_the_signal_comes_before_the_time_limit() -> None:
    """Where a study gives a short limit alone, the signal takes a quarter of it; where it gives both, they must fit."""
    short = plan.make_plan(small_study(slurm={"timeout_min": 2}))
    (batch, *_) = batches(short.study, short.jobs)
    assert (2, 30) == (batch.slurm.timeout_min, batch.slurm.signal_delay_s)

    with pytest.raises(ValueError, match="signal_delay_s = 120 leaves jobs no time of timeout_min = 2"):
        small_study(slurm={"timeout_min": 2, "signal_delay_s": 120})


def test_an_exported_account_pays_where_the_study_names_none() -> None:
    """SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_QOS count below the study's own keys; no other variable does."""
    planned = plan.make_plan(small_study(slurm={"partition": "cpu"}))
    given = from_environment({
        "SBATCH_ACCOUNT": "proj", "SBATCH_PARTITION": "gpu", "SBATCH_QOS": "", "SBATCH_TIMELIMIT": "1", "SLURM_X": "1",
    })  # fmt: skip
    (batch, *_) = batches(planned.study, planned.jobs, given=given)

    assert ("proj", "cpu", None) == (batch.slurm.account, batch.slurm.partition, batch.slurm.qos)
    assert "jobs go to account proj (from SBATCH_ACCOUNT), partition cpu" == origins(batch.slurm, given)
