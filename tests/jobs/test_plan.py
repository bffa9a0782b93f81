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

from jobs.cluster.submissions import Submission, submissions
from jobs.errors import StudyError
from jobs.paths import StudyPaths
from jobs.plan import plan, study_file
from jobs.plan.study import Study
from support.study_files import small_study

CHOICES = {
    "torch_save": "torch_save",
    "tensorstore_t5x": {"name": "tensorstore_t5x"},
    "tensorstore_basic": {"name": "tensorstore_basic", "compressor": "default"},
    "tensorstore_basic+compressor=none": {"name": "tensorstore_basic", "options": {"compressor": "none"}},
}
"""A strategy's label, and how a study may write it."""

few = settings(max_examples=40)


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
