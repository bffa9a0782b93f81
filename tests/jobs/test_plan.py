"""Planning: which jobs, in which order, under which names, and what they will write."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cluster.arrays import batches
from jobs.cluster.submissions import Submission, submissions
from jobs.errors import StudyError
from jobs.paths import StudyPaths
from jobs.plan import plan, study_file
from jobs.plan.study import Study
from jobs.plan_table import warnings

CHOICES = {
    "torch_save": "torch_save",
    "tensorstore_t5x": {"name": "tensorstore_t5x"},
    "tensorstore_basic": {"name": "tensorstore_basic", "compressor": "default"},
    "tensorstore_basic+compressor=none": {"name": "tensorstore_basic", "options": {"compressor": "none"}},
}
"""A strategy's label, and how a study may write it."""

few = settings(max_examples=40)


def small_study(**changed: Any) -> Study:
    """A study that is cheap to plan: the first two tensors of a preset."""
    content = {
        "name": "small",
        "state": {"model": "openllama-3b", "tensors": 2},
        "strategies": ["torch_save", "tensorstore_basic", "tensorstore_t5x"],
        "targets": {"nvme": {"path": "/nvme"}, "lustre": {"path": "$SCRATCH"}, "nfs": {}},
    }
    return study_file.parse(content | changed, "study.toml")


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z")
studies = st.builds(
    small_study,
    name=names,
    description=st.text(max_size=20),
    state=st.fixed_dictionaries(
        {"model": st.just("openllama-3b"), "tensors": st.integers(1, 3)},
        optional={"dtype": st.sampled_from(["float16", "bfloat16", "float32"]), "seed": st.integers(0, 9)},
    ),
    strategies=st.lists(st.sampled_from(list(CHOICES)), min_size=1, unique=True).map(
        lambda labels: [CHOICES[label] for label in labels]
    ),
    targets=st.dictionaries(
        names,
        st.fixed_dictionaries({}, optional={"path": st.text(max_size=20), "allow_tmpfs": st.booleans()}),
        min_size=1,
        max_size=4,
    ),
    trials=st.fixed_dictionaries(
        {}, optional={"repeats": st.integers(1, 9), "warmups": st.integers(0, 3), "warm_load": st.booleans()}
    ),
    rounds=st.integers(1, 4),
    shuffle_seed=st.integers(),
)


@given(studies)
@few
def test_every_round_holds_every_cell_once(of: Study) -> None:
    """A plan has a job for each strategy on each target in each round, and rounds follow one another."""
    jobs = plan.make_plan(of).jobs

    labels = [each.label for each in of.methods()]
    cells = set(itertools.product(labels, of.targets))
    assert of.rounds * len(cells) == len(jobs)
    assert list(range(len(jobs))) == [job.order for job in jobs]
    for number in range(1, of.rounds + 1):
        start = (number - 1) * len(cells)
        in_round = jobs[start : start + len(cells)]
        assert {number} == {job.round for job in in_round}
        assert cells == {(job.label, job.target) for job in in_round}


@given(studies)
@few
def test_ids_are_file_names(of: Study) -> None:
    """An id says round, strategy, target and scale, can be a file's name anywhere, and belongs to one job."""
    planned = plan.make_plan(of)

    for job in planned.jobs:
        assert f"r{job.round:02d}-{job.label}-{job.target}-1x1" == job.id
        assert re.fullmatch(r"[A-Za-z0-9_.+=-]{1,200}", job.id)
        assert planned.job(job.id) is job
    assert len(planned.jobs) == len({job.id for job in planned.jobs})


@given(studies)
@few
def test_planning_is_pure(of: Study) -> None:
    """The same study gives the same plan, whatever else was random before, and leaves chance to others."""
    random.seed(1)
    before = random.getstate()
    first = plan.make_plan(of)
    assert before == random.getstate()

    random.seed(2)
    assert first == plan.make_plan(of)


@given(studies)
@few
def test_plan_json_round_trip(of: Study) -> None:
    """`plan.json` gives back the very plan, and is plain JSON."""
    planned = plan.make_plan(of)
    text = plan.to_json(planned)

    assert planned == plan.from_json(text, "plan.json")
    assert [job.id for job in planned.jobs] == [job["id"] for job in json.loads(text)["jobs"]]


@given(studies)
@few
def test_a_further_round_changes_nothing_before_it(of: Study) -> None:
    """Rounds can be added to a study that has run: the jobs there were stay as they are."""
    jobs = plan.make_plan(of).jobs
    longer = plan.make_plan(of.model_copy(update={"rounds": of.rounds + 1})).jobs

    assert jobs == longer[: len(jobs)]


def test_orders_differ() -> None:
    """No two rounds have the same order of cells, and another seed gives other orders."""

    def orders(seed: int) -> list[tuple[tuple[str, str], ...]]:
        jobs = plan.make_plan(small_study(rounds=6, shuffle_seed=seed)).jobs
        return [tuple((job.label, job.target) for job in jobs if job.round == number) for number in range(1, 7)]

    assert len(set(orders(0) + orders(1))) == 12


def test_order_stays_as_it_is() -> None:
    """The shuffled order depends on the seed alone: a login node and a compute node agree, today and next year."""
    jobs = plan.make_plan(small_study(rounds=2, shuffle_seed=7, strategies=["torch_save", "tensorstore_t5x"])).jobs

    assert [job.id for job in jobs] == [
        "r01-tensorstore_t5x-lustre-1x1",
        "r01-torch_save-lustre-1x1",
        "r01-torch_save-nfs-1x1",
        "r01-tensorstore_t5x-nvme-1x1",
        "r01-torch_save-nvme-1x1",
        "r01-tensorstore_t5x-nfs-1x1",
        "r02-tensorstore_t5x-nvme-1x1",
        "r02-torch_save-nvme-1x1",
        "r02-torch_save-lustre-1x1",
        "r02-tensorstore_t5x-lustre-1x1",
        "r02-tensorstore_t5x-nfs-1x1",
        "r02-torch_save-nfs-1x1",
    ]


def test_bytes_and_files_of_the_quick_study() -> None:
    """What the first ten tensors of OpenLLaMA-3B take, counted by hand."""
    embedding, attention, feed_forward, norm = 32_000 * 3200, 3200 * 3200, 8640 * 3200, 3200
    parameters = embedding + 4 * attention + 3 * feed_forward + 2 * norm  # the first 10 in state_dict order
    jobs = {job.strategy: job for job in plan.make_plan(study_file.read(study_file.find("quick"))).jobs}

    assert {2 * parameters} == {job.state_bytes for job in jobs.values()} == {452_620_800}
    assert jobs["torch_save"].checkpoint_files == 1
    # 64 × 64 chunks of each matrix, 64 of each vector; a .zarray for each of 10, and metadata.json
    chunks = 500 * 50 + 4 * 50 * 50 + 3 * 135 * 50 + 2 * 50
    assert chunks + 10 + 1 == jobs["tensorstore_basic"].checkpoint_files
    # At most 64 MiB = 2^24 float32: the embedding is halved three times, a feed-forward matrix once.
    chunks = 8 + 4 * 1 + 3 * 2 + 2 * 1
    assert chunks + 10 + 1 == jobs["tensorstore_t5x"].checkpoint_files
    # The most that a checkpoint may take: the data, as float32 with TensorStore, and less than 1 % for the rest.
    for strategy, bytes_per_element in {"torch_save": 2, "tensorstore_basic": 4, "tensorstore_t5x": 4}.items():
        data = bytes_per_element * parameters
        assert data < jobs[strategy].checkpoint_bytes < 1.01 * data
        assert 2 * jobs[strategy].checkpoint_bytes == jobs[strategy].written_bytes  # two repeats, no warm-up


def test_warmups_are_written_too() -> None:
    """A job's trials are the measured ones and the warm-ups before them."""
    jobs = plan.make_plan(small_study(trials={"repeats": 5, "warmups": 2})).jobs

    assert {7} == {job.trials for job in jobs}
    assert all(7 * job.checkpoint_bytes == job.written_bytes for job in jobs)


def test_unknown_job_is_told_with_ids_that_there_are() -> None:
    """Asking for a job that isn't planned is told with some that are, and how many more."""
    planned = plan.make_plan(small_study())

    with pytest.raises(StudyError) as caught:
        planned.job("r1-torch_save-nvme")

    assert f"'r1-torch_save-nvme'; it plans {planned.jobs[0].id}, " in str(caught.value)
    assert str(caught.value).endswith("and 4 more")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"study": {}, "jobs": []}', '{"study": 3, "jobs": []}', '{"jobs": [{}]}']
)
def test_no_plan(text: str) -> None:
    """A plan.json that is none is named."""
    with pytest.raises(StudyError, match=r"results/plan\.json"):
        plan.from_json(text, "results/plan.json")


def test_plan_of_another_version() -> None:
    """A plan whose jobs have other fields is refused by name, and not half read."""
    content = json.loads(plan.to_json(plan.make_plan(small_study())))
    content["jobs"][0]["gpus"] = 8

    with pytest.raises(StudyError, match=r"plan\.json is no plan.*gpus"):
        plan.from_json(json.dumps(content), "plan.json")


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
    strategies = ["torch_save", {"name": "safetensors_direct", "shard_mib": [0, 64]}]
    slurm = {"nodes": 1, "tasks_per_node": [1, 4]}
    planned = plan.make_plan(small_study(strategies=strategies, targets={"lustre": {"path": "/lustre"}}, slurm=slurm))

    assert 5 == len(planned.jobs)
    (reason,) = planned.left_out()
    assert reason.startswith("safetensors_direct+shard_mib=64 at 1x4: ")
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": "../../../escaped"}, "a job has the id '../../../escaped', expected 'r01-"),
        ({"id": "/tmp/escaped"}, "a job has the id '/tmp/escaped', expected 'r01-"),
        ({"id": "r99-torch_save-nvme-1x1"}, "expected 'r01-"),
        ({"id": 3}, "a job's id is 3, and no str"),
        ({"target": "../.."}, "a job's target is '../..', and the study has nvme"),
        ({"nodes": "four"}, "a job's nodes is 'four', and no int"),
        ({"options": []}, r"a job's options is [], and no dict"),
    ],
)
def test_names_in_a_plan_are_those_that_are_made(changed: dict[str, Any], message: str) -> None:
    """A plan from elsewhere names no file outside the results: an id that isn't ours is told with what it should be."""
    content = json.loads(plan.to_json(plan.make_plan(small_study())))
    content["jobs"][0] |= changed

    with pytest.raises(StudyError) as caught:
        plan.from_json(json.dumps(content), "results/plan.json")

    assert str(caught.value).startswith("results/plan.json is no plan of this package (")
    assert message in str(caught.value)


@pytest.mark.parametrize("job_id", ["../escaped", "/escaped", "a/b", "..", ".hidden", "", "a\n", "a\0"])
def test_a_log_lies_in_its_directory(job_id: str, tmp_path: Path) -> None:
    """No id of a job is a path to anywhere else."""
    with pytest.raises(StudyError, match="is no id of a job"):
        StudyPaths(tmp_path).log(job_id)


@pytest.mark.parametrize("number", ["../../secret", "-u root", "17;18", "", "1_", 17])
def test_a_number_from_the_scheduler_is_one(number: Any, tmp_path: Path) -> None:
    """What stands in the list of submissions becomes part of file names, and an argument of scancel."""
    paths = StudyPaths(tmp_path)
    paths.slurm.mkdir()
    sent = Submission("r01-torch_save-nvme-1x1", "slurm", "17_3", 0.0, "2026-01-02T03:04:05+00:00", "0.1.0")
    paths.submissions_json.write_text(json.dumps([asdict(sent)]))
    assert submissions(paths) == [sent]
    paths.submissions_json.write_text(json.dumps([asdict(sent) | {"scheduler_id": number}]))

    with pytest.raises(StudyError, match=r"submissions\.json is damaged"):
        submissions(paths)
