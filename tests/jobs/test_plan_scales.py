"""Planning at several scales: which jobs there are, what each asks for, and what a rank and a node write."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.cluster.arrays import batches
from jobs.errors import StudyError
from jobs.plan import plan
from jobs.plan.study import Study
from jobs.plan_table import warnings
from support.study_files import small_study


def scaled_study(**changed: Any) -> Study:
    """A study of two scales on a shared target and on a node-local one."""
    targets = {"lustre": {"path": "/lustre"}, "nvme": {"path": "/nvme", "node_local": True}}
    slurm = {"nodes": [1, 2], "tasks_per_node": 2, "exclusive": True}
    return small_study(**{"targets": targets, "slurm": slurm} | changed)


def test_scales_are_an_axis() -> None:
    """Every strategy runs on every target at every scale; a target's own scales go before the study's."""
    own = {"lustre": {"path": "/lustre", "slurm": {"nodes": 4, "tasks_per_node": [1, 8]}}, "nfs": {"path": "/nfs"}}
    jobs = plan.make_plan(scaled_study(targets=own, strategies=["torch_save"])).jobs

    assert {
        "r01-torch_save-lustre-4x1", "r01-torch_save-lustre-4x8", "r01-torch_save-nfs-1x2", "r01-torch_save-nfs-2x2",
    } == {job.id for job in jobs}  # fmt: skip


def test_a_job_at_several_scales_is_found_by_its_scale() -> None:
    """Without a scale the message lists those that there are."""
    planned = plan.make_plan(scaled_study())

    assert "r01-torch_save-nvme-2x2" == planned.find("torch_save", "nvme", 1, "2x2").id
    for scale in ("", "8x8"):
        with pytest.raises(StudyError, match=r"at the scales (1x2, 2x2|2x2, 1x2): choose one by --scale"):
            planned.find("torch_save", "nvme", 1, scale)


def test_rounds_stay_apart_where_scales_differ() -> None:
    """Jobs that disturb each other go out round by round, each scale in an array of its own; others all at once."""
    planned = plan.make_plan(scaled_study(rounds=3))
    found = batches(planned.study, planned.jobs)

    apart = [batch for batch in found if not batch.one_at_a_time]
    assert {((1,), (2,)), ((2,), (2,))} == {(batch.slurm.nodes, batch.slurm.tasks_per_node) for batch in found}
    assert 2 == len(apart)
    rounds = [{job.round for job in batch.jobs} for batch in found if batch.one_at_a_time]
    assert [{1}, {1}, {2}, {2}, {3}, {3}] == rounds
    assert sorted(job.id for job in planned.jobs) == sorted(job.id for batch in found for job in batch.jobs)


def test_more_processes_where_more_ranks_load() -> None:
    """Where eight ranks load what four saved, Slurm is asked for eight; who can't load so is left out, and told."""
    targets = {"lustre": {"path": "/lustre"}}
    strategies = ["torch_save", "tensorstore_tuned"]
    slurm = {"nodes": 2, "tasks_per_node": 2}
    planned = plan.make_plan(small_study(strategies=strategies, targets=targets, slurm=slurm, trials={"load_ranks": 8}))

    (batch,) = batches(planned.study, planned.jobs)
    assert ["r01-tensorstore_tuned-lustre-2x2"] == [job.id for job in planned.jobs]
    assert ((2,), (4,)) == (batch.slurm.nodes, batch.slurm.tasks_per_node)
    assert ["torch_save at 2x2: it can't load on 8 ranks what 4 saved"] == planned.left_out()


def test_options_that_several_ranks_cannot_use_are_left_out() -> None:
    """With several ranks there are no shards of one rank's file: that is told, and the rest is planned."""
    strategies = ["torch_save", {"name": "safetensors_tuned", "shard_mib": [0, 64]}]
    slurm = {"nodes": 1, "tasks_per_node": [1, 4]}
    planned = plan.make_plan(small_study(strategies=strategies, targets={"lustre": {"path": "/lustre"}}, slurm=slurm))

    assert 5 == len(planned.jobs)
    (reason,) = planned.left_out()
    assert reason.startswith("safetensors_tuned+shard_mib=64 at 1x4: ")
    assert "4 ranks write a file each" in reason


def test_a_study_of_which_nothing_is_left_says_why() -> None:
    """A plan without jobs is no plan."""
    targets, slurm = {"lustre": {"path": "/lustre"}}, {"nodes": 4}
    with pytest.raises(StudyError, match="plans no job: torch_save at 4x1: it can't load on 2 ranks what 4 saved"):
        plan.make_plan(small_study(strategies=["torch_save"], targets=targets, slurm=slurm, trials={"load_ranks": 2}))


def test_half_a_thousand_ranks_with_the_training_state_of_the_largest_model() -> None:
    """What is planned for 512 ranks agrees with what the model's dimensions say, computed by hand."""
    hidden, layers, ranks = 16384, 126, 512
    of_study = small_study(
        state={"model": "llama-3-405b", "contents": "training"},
        strategies=["torch_save", "tensorstore_t5x", "tensorstore_basic"],
        targets={"lustre": {"path": "/lustre"}},
        slurm={"nodes": 64, "tasks_per_node": 8},
    )
    planned = plan.make_plan(of_study)
    jobs = {job.strategy: job for job in planned.jobs}

    # Rows of each matrix that a rank has: 128256 / 512 is no whole number, so 510 ranks have 251 rows of the
    # vocabulary, one has 246, and the last one none.
    layer = (32 + 2 + 2 + 32 + 104 + 104) * hidden + 32 * 53248 + 2 * 32
    elements = 2 * 251 * hidden + layers * layer + 32
    assert {14 * elements} == {job.rank_bytes for job in planned.jobs}
    assert {14 * 405_853_388_800} == {job.state_bytes for job in planned.jobs}
    assert ranks == jobs["torch_save"].checkpoint_files
    # Four states (the model and three copies). No rank's rows of a tensor are more than one chunk of 64 MiB.
    tensors = 9 * layers + 3
    chunks = 4 * (2 * 511 + (tensors - 2) * ranks)
    assert chunks + 4 * tensors + 1 == jobs["tensorstore_t5x"].checkpoint_files
    # Chunks of 64 x 64: as many in a rank's rows as whole chunks cover them, or a divisor of its rows.
    assert jobs["tensorstore_basic"].checkpoint_files > 100 * jobs["tensorstore_t5x"].checkpoint_files
    assert ["tensorstore_basic", "tensorstore_t5x"] == [text.split()[0] for text in warnings(planned)]
    assert "4,557 a rank" in warnings(planned)[1]


def test_a_node_has_its_part_on_node_local_targets() -> None:
    """What has to fit on one node is what its ranks write; on a shared target it is everything."""
    jobs = {job.target: job for job in plan.make_plan(scaled_study(strategies=["torch_save"])).jobs if job.nodes == 2}

    assert jobs["lustre"].directory_bytes == jobs["lustre"].checkpoint_bytes
    assert (4, 4) == (jobs["lustre"].directory_files, jobs["lustre"].checkpoint_files)
    assert (2, 4) == (jobs["nvme"].directory_files, jobs["nvme"].checkpoint_files)
    assert jobs["nvme"].directory_bytes < 0.6 * jobs["nvme"].checkpoint_bytes
