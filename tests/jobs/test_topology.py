"""Which process of a job does what, how they find each other, and whose clock they follow."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import LostRankError
from ckpt.process_group.store_group import StoreGroup
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import tensors_of
from jobs.errors import StudyError
from jobs.node import clock as clocks
from jobs.node.clock import Clock
from jobs.node.groups import connect
from jobs.node.topology import Assignment, ProcessInfo, assign, process_info
from jobs.paths import StudyPaths
from jobs.plan import plan, study_file
from jobs.plan.plan import Job
from jobs.plan.scale import Scale

LAYOUT = (
    TensorLayout("a", (10, 3), "float32"),
    TensorLayout("b", (7,), "bfloat16"),
    TensorLayout("c", (), "int64"),
)

scales = st.builds(Scale, st.integers(1, 5), st.integers(1, 4), st.integers(1, 24))


@given(scales)
def test_every_rank_has_one_process(scale: Scale) -> None:
    """Those that save, and those that load, are numbered node by node, each in a process of its own."""
    assert list(range(scale.ranks)) == [scale.saver(place) for place in scale.savers()]
    assert list(range(scale.load_ranks)) == [scale.loader(place) for place in scale.loaders()]
    assert set(scale.savers()) | set(scale.loaders()) <= set(range(scale.processes))
    assert 0 in scale.savers()
    assert 0 in scale.loaders()
    per_node = [
        sum(place // scale.processes_per_node == node for place in scale.savers()) for node in range(scale.nodes)
    ]
    assert [scale.tasks_per_node] * scale.nodes == per_node


def make_job(nodes: int = 2, tasks_per_node: int = 2, **trials: Any) -> Job:
    """A job of that scale."""
    content = {
        "name": "small",
        "state": {"model": "openllama-3b", "tensors": 2},
        "strategies": ["torch_save"],
        "targets": {"lustre": {"path": "/lustre"}},
        "trials": trials,
        "slurm": {"nodes": nodes, "tasks_per_node": tasks_per_node},
    }
    return plan.make_plan(study_file.parse(content, "study.toml")).jobs[0]


def slurm(number: int, count: int, node: int) -> dict[str, str]:
    """What srun tells a process."""
    told = {"PROCID": number, "STEP_NUM_TASKS": count, "NODEID": node, "JOB_ID": 17, "STEP_ID": 3, "RESTART_COUNT": 1}
    return {f"SLURM_{key}": str(value) for key, value in told.items()}


def test_process_info() -> None:
    """The environment of srun, or of submitit's local executor, says which process this is."""
    assert ProcessInfo(3, 4, 1, "slurm-17-3-1") == process_info(make_job(), slurm(3, 4, 1))
    local = {"GLOBALID": "1", "NTASKS": "2", "NODEID": "0", "JOB_ID": "99", "LOCALID": "1"}
    found = process_info(make_job(1, 2), {f"SUBMITIT_LOCAL_{key}": value for key, value in local.items()})
    assert ProcessInfo(1, 2, 0, "submitit-99") == found
    assert ProcessInfo(0, 1, 0, "") == process_info(make_job(1, 1), slurm(3, 4, 1))


HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_NAMESPACE": "1827274753", "PMIX_RANK": "3",
}  # fmt: skip
PALS = {
    "PALS_RANKID": "3", "PALS_NODEID": "1", "PALS_LOCAL_RANKID": "1", "PALS_APID": "f8c3:55", "PMI_RANK": "3",
    "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1",
}  # fmt: skip
FLUX = {
    "FLUX_TASK_RANK": "3", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_SIZE": "4", "FLUX_JOB_NNODES": "2",
    "FLUX_JOB_ID": "ƒ2ocxkrz", "PMI_RANK": "3", "PMI_SIZE": "4",
}  # fmt: skip
BATCH_STEP = {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "4"}

LAUNCHERS: dict[str, tuple[Mapping[str, str], str]] = {
    "mpiexec of MPICH or Intel MPI": (HYDRA, "hydra-"),
    "mpiexec of Open MPI": (OPEN_MPI, "openmpi-1827274753"),
    "PALS": (PALS, "pals-f8c3_55"),
    "Flux": (FLUX, "flux-_2ocxkrz"),
    "mpiexec in the script of a Slurm job": (OPEN_MPI | BATCH_STEP, "openmpi-1827274753"),
    "mpiexec whose helpers were started by srun": (HYDRA | slurm(1, 2, 1), "hydra-"),
    "srun on a Cray": (slurm(3, 4, 1) | PALS, "pals-f8c3_55"),
}


@pytest.mark.parametrize(("environment", "launch"), LAUNCHERS.values(), ids=LAUNCHERS)
def test_every_launcher(environment: Mapping[str, str], launch: str) -> None:
    """The last of four ranks on two nodes; the name of the start can be part of a file's name."""
    assert ProcessInfo(3, 4, 1, launch) == process_info(make_job(), environment)


WRONG_STARTS: dict[str, tuple[Mapping[str, str], str]] = {
    "by hand": ({}, "takes 4 processes, 2 on each of 2 node(s), and was started as 1: start it by `srun --nodes=2"),
    "too few": (slurm(0, 2, 0), "was started as 2"),
    "not node by node": (slurm(1, 4, 1), "process 1 has SLURM_NODEID=1, and 0 is expected where 2 processes on each"),
    "not node by node, by mpiexec": (
        HYDRA | {"MPI_LOCALRANKID": "0"},
        "process 3 has MPI_LOCALRANKID=0, and 1 is expected where 2 processes on each node are numbered node by node",
    ),
    "without nodes": (
        {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_ID": "3"},
        "PMI_RANK and PMI_SIZE are set here, but not MPI_LOCALRANKID, so that it is not known which processes share a",
    ),
    "no number": (HYDRA | {"PMI_RANK": "three"}, "PMI_RANK='three' is no number"),
}


@pytest.mark.parametrize(("environment", "told"), WRONG_STARTS.values(), ids=WRONG_STARTS)
def test_a_wrong_start_is_told(environment: Mapping[str, str], told: str) -> None:
    """A job that wasn't started as it is planned says how to start it."""
    with pytest.raises(StudyError) as error:
        process_info(make_job(), environment)
    assert told in str(error.value)


def assigned(number: int, scale: Scale, read_shift: int = 0, *, node_local: bool = False) -> Assignment:
    """What the process of that rank does."""
    process = ProcessInfo(number, scale.processes, number // scale.processes_per_node, "")
    return assign(scale, process, LAYOUT, "dim0", read_shift, node_local=node_local)


def test_a_shift_reads_what_other_nodes_wrote() -> None:
    """With two ranks on each of three nodes and a shift of one, rank 4 loads the share of rank 0."""
    scale = Scale(3, 2, 6)
    found = [assigned(number, scale, 1) for number in range(6)]

    assert [0, 1, 2, 3, 4, 5] == [each.own.rank for each in found if each.own]
    assert [2, 3, 4, 5, 0, 1] == [each.loads.rank for each in found if each.loads]
    assert {False} == {each.loads_its_own for each in found}


def test_other_ranks_load() -> None:
    """Four ranks save and six load: six processes, three to a node, of which two save."""
    scale = Scale(2, 2, 6)
    found = [assigned(number, scale) for number in range(6)]

    assert [0, 1, None, 2, 3, None] == [each.own and each.own.rank for each in found]
    assert [0, 1, 2, 3, 4, 5] == [each.loads and each.loads.rank for each in found]
    assert {(4, 6)} == {(each.saved.count, each.loads.partition.count) for each in found if each.loads}


def test_on_node_local_targets_each_node_has_its_rows() -> None:
    """Ten rows on two nodes with two ranks each are 3, 3, 3 and 1: a node's checkpoint has 6, or 4."""
    scale = Scale(2, 2, 4)
    found = [assigned(number, scale, node_local=True) for number in range(4)]

    assert [(6, 3), (6, 3), (4, 3), (4, 3)] == [each.saved.layout[0].shape for each in found]
    assert [3, 3, 3, 1] == [tensors_of(each.saves.owned)[0].shape[0] for each in found if each.saves]
    assert [(0, 3), (3, 6), (0, 3), (3, 4)] == [
        (each.loads.held[0].start, each.loads.held[0].stop) for each in found if each.loads
    ]
    assert {True} == {each.loads_its_own for each in found}


def test_one_rank_a_node_on_node_local_targets() -> None:
    """Then a checkpoint has one writer and one reader, as if there were no other nodes."""
    scale = Scale(2, 1, 2)
    found = [assigned(number, scale, node_local=True) for number in range(2)]

    assert [1, 1] == [each.saved.count for each in found]
    assert [each.saved for each in found] == [each.loads.partition for each in found if each.loads]
    assert assigned(0, scale).saved.count == 2


def test_processes_meet(tmp_path: Path) -> None:
    """They find each other through a file that is gone once all are there, and know each other's hosts."""
    job, paths = make_job(1, 3), StudyPaths(tmp_path)
    paths.slurm.mkdir()

    def one(number: int) -> list[Any]:
        groups = connect(job, paths, ProcessInfo(number, 3, 0, "here"), node_local=False, timeout_s=30)
        met = groups.world.all_gather(number)
        groups.leave()
        return met

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(3)))
    assert [[0, 1, 2]] * 3 == found
    assert [] == list(paths.slurm.iterdir())


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    """The first process waits for a bounded time, and so does one that finds no first."""
    job, paths = make_job(1, 3), StudyPaths(tmp_path)
    paths.slurm.mkdir()

    def one(number: int) -> str:
        with pytest.raises(LostRankError) as error:
            connect(job, paths, ProcessInfo(number, 3, 0, "here"), node_local=False, timeout_s=1)
        return str(error.value)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(2)))
    assert "rank 2 (not here yet) did not answer within 1 s" in found[0]
    (tmp_path / "slurm" / f"{job.id}.here.meeting").unlink(missing_ok=True)
    assert "rank 0 left no address" in one(1)


def test_clocks_agree() -> None:
    """A clock that was an hour off shows the first one's time, to within half a round trip."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))  # type: ignore[attr-defined]
    mine = Clock()
    own = [mine, Clock(mine.zero_unix_s - 3600)]

    def one(number: int) -> float:
        joined = store if number == 0 else dist.TCPStore("127.0.0.1", store.port, is_master=False)  # type: ignore[attr-defined]
        return clocks.agree(StoreGroup(joined, [(0, "a"), (1, "b")], number, 20, "world"), own[number])

    with ThreadPoolExecutor(2) as pool:
        uncertainties_s = list(pool.map(one, range(2)))
    first, second, third = own[0](), own[1](), own[0]()
    assert 0 == uncertainties_s[0] < uncertainties_s[1] < 10
    assert first - uncertainties_s[1] <= second <= third + uncertainties_s[1]
