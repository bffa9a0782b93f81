"""What Slurm's words mean: the strings below are squeue's and sacct's own, of Slurm 22.05 to 26.05."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.cluster import slurm, slurm_states
from jobs.cluster.choice import default_cluster
from jobs.cluster.orphans import end_orphans
from jobs.cluster.slurm_states import QueueState
from jobs.errors import NoAnswerError, StudyError, SubmissionError
from jobs.paths import StudyPaths
from support.commands import Commands

WAITING = [
    "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Licenses", "Prolog", "Cleaning",
    "ReqNodeNotAvail", "ReqNodeNotAvail, Reserved for maintenance", "ReqNodeNotAvail,_UnavailableNodes:node[1-4]",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "Reservation",
    "PartitionDown", "PartitionInactive", "NodeDown", "BurstBufferStageIn", "MaxBillingPerAccount", "MaxJobsPerAccount",
    "AssocMaxJobsLimit", "AssocGrpJobsLimit", "AssocGrpCpuLimit", "AssocGrpNodeLimit", "AssocGrpGRES",
    "AssocGrpCPURunMinutesLimit", "AssocGrpGRESRunMinutes", "AssocMaxSubmitJobLimit", "QOSGrpBillingRunMinutes",
    "QOSMaxJobsPerUserLimit", "QOSMaxNodePerUserLimit", "QOSMaxGRESPerUser", "QOSMaxSubmitJobPerUserLimit",
    "QOSGrpNodeLimit", "QOSGrpMemLimit", "QOSUsageThreshold", "QOSJobLimit", "QOSResourceLimit",
]  # fmt: skip

HELD = [
    "JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "launch failed requeued held", "launch_failed_requeued_held",
    "job requeued in held state",
]  # fmt: skip

TOO_MUCH = [
    "PartitionTimeLimit", "PartitionNodeLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit",
    "AssocMaxCpuPerJobLimit", "AssocMaxNodePerJobLimit", "AssocMaxGRESMinutesPerJob", "QOSMaxCpuMinutesPerJobLimit",
    "QOSMaxGRESPerNode", "QOSMaxMemoryPerJob", "QOSMinCpuNotSatisfied", "QOSMinGRES", "MaxMemPerLimit",
]  # fmt: skip

NO_BUDGET = [
    "AssocGrpCPUMinutesLimit", "AssocGrpBillingMinutes", "AssocGrpGRESMinutes", "AssocGrpNodeMinutes",
    "AssocGrpWallLimit", "QOSGrpCPUMinutesLimit", "QOSGrpGRESMinutes", "QOSGrpWallLimit",
]  # fmt: skip

NEVER = [
    "AccountNotAllowed", "InvalidAccount", "InvalidQOS", "QOSNotAllowed", "BadConstraints", "DependencyNeverSatisfied",
    "ReservationDeleted", "DeadLine",
]  # fmt: skip


@pytest.mark.parametrize("reason", WAITING)
def test_a_job_that_waits_its_turn_waits(reason: str) -> None:
    """Also at a limit of running jobs, in a drained partition, before a maintenance: the reason is Slurm's own."""
    assert slurm_states.whereabouts("17_3", "PENDING", reason, "") == QueueState("waiting", reason)


@pytest.mark.parametrize(
    ("reasons", "remedy"),
    [
        (HELD, "`scontrol release 17_3` lets it start"),
        (TOO_MUCH, "it asks for more than a job may have"),
        (NO_BUDGET, "the budget is used up"),
        (NEVER, "it can't start by itself"),
    ],
    ids=["held", "too much", "no budget", "never"],
)
def test_a_job_that_cannot_start_is_stuck(reasons: list[str], remedy: str) -> None:
    """Held, beyond a limit of one job, without budget, or asking for what there isn't: with what to do about it."""
    for reason in reasons:
        found = slurm_states.whereabouts("17_3", "PENDING", reason, "")
        assert (found.state, found.detail.startswith(f"{reason}: ")) == ("stuck", True), reason
        assert remedy in found.detail, reason


STATES = {
    ("PENDING", "Priority", ""): ("waiting", "Priority"),
    ("PENDING", "None", ""): ("waiting", "Slurm has not considered it yet"),
    ("REQUEUED", "None", ""): ("waiting", "Slurm has not considered it yet"),
    ("REQUEUE_FED", "None", ""): ("waiting", "Slurm has not considered it yet"),
    ("CONFIGURING", "None", "node7"): ("waiting", "node7, CONFIGURING: its nodes are being started"),
    ("SUSPENDED", "None", "node7"): ("waiting", "node7, SUSPENDED: it goes on when Slurm or an administrator"),
    ("STOPPED", "None", "node7"): ("waiting", "node7, STOPPED: its processes were stopped by a signal"),
    ("RUNNING", "None", "node[7-8]"): ("running", "node[7-8]"),
    ("COMPLETING", "None", "node7"): ("running", "node7, COMPLETING: its processes are being ended"),
    ("SIGNALING", "None", "node7"): ("running", "node7, SIGNALING"),
    ("STAGE_OUT", "None", "node7"): ("running", "node7, STAGE_OUT"),
    ("REVOKED", "None", ""): ("running", "REVOKED: another cluster of the federation runs it"),
    ("EXPEDITING", "None", "node7"): ("running", "node7, EXPEDITING"),
    ("SPECIAL_EXIT", "job requeued in held state", ""): ("stuck", "job requeued in held state: it is held"),
    ("REQUEUE_HOLD", "None", ""): ("stuck", "None: it is held: `scontrol release 17` lets it start"),
    ("RESV_DEL_HOLD", "None", ""): ("stuck", "None: it is held"),
    ("CANCELLED", "JobArrayTaskLimit", ""): ("gone", "CANCELLED"),
    ("OUT_OF_MEMORY", "OutOfMemory", "node7"): ("gone", "OUT_OF_MEMORY"),
}


@pytest.mark.parametrize(("said", "expected"), STATES.items(), ids=["-".join(said[:2]) for said in STATES])
def test_every_state_of_squeue(said: tuple[str, str, str], expected: tuple[str, str]) -> None:
    """Suspended, requeued and held, being ended: each has a state that can end, and its reason."""
    found = slurm_states.whereabouts("17", *said)

    assert found.state == expected[0]
    assert found.detail.startswith(expected[1])


def test_lines_of_squeue() -> None:
    """A reason may be any text, also with the separator and of several lines."""
    text = "17_0|RUNNING|node1|None\n17_1|PENDING||burst_buffer/lua: a | b\nand more\n18|PENDING||Priority\n"

    assert slurm_states.in_queue(text) == {
        "17_0": QueueState("running", "node1"),
        "17_1": QueueState("waiting", "burst_buffer/lua: a | b"),
        "18": QueueState("waiting", "Priority"),
    }


def test_lines_of_sacct() -> None:
    """Elements that never started share a line; what has an exit code that explains itself to few is explained."""
    text = (
        "9_0|COMPLETED|0:0|node1|1795691936\n9_[1-3,7%1]|CANCELLED by 2001|0:0|None assigned|1795691940\n"
        "10|FAILED|0:53|node2|1795691950\n11|OUT_OF_MEMORY|0:125|node2|Unknown\n12|RUNNING|0:0|node1|Unknown\n"
        "13_[0-4:2]|PENDING|0:0|None assigned|Unknown\n14|NODE_FAIL|1:0|node2|1795691950\n15|FAILED|0:9|node2|1\n"
        "16|FAILED|9:0|node2|1\n17|FAILED|1:0|node2|1\n"
    )
    found = slurm_states.endings(text)

    assert list(found) == ["9_0", "9_1", "9_2", "9_3", "9_7", "10", "11", "14", "15", "16", "17"]
    assert (found["9_7"].state, found["9_7"].detail) == ("CANCELLED", "CANCELLED by 2001, before it started")
    assert (found["9_0"].ended_unix_s, found["11"].ended_unix_s) == (1795691936, 0)
    assert "the results directory is not on that node" in found["10"].detail
    assert "raise `mem_gb`" in found["11"].detail
    assert found["14"].detail == "NODE_FAIL, exit code 1:0, on node2"
    assert "where memory runs out" in found["15"].detail
    exited = [number for number, ending in found.items() if ending.exited]
    assert exited == ["9_0", "9_1", "9_2", "9_3", "9_7", "14", "17"]


def test_where_accounting_says_that_jobs_are() -> None:
    """For whom the queue doesn't show them: running where, waiting for a reason that isn't shown, or gone."""
    text = (
        "9_0|RUNNING|0:0|node1|Unknown\n9_[1-2%1]|PENDING|0:0|None assigned|Unknown\n"
        "10|CANCELLED by 2001|0:0|None assigned|1795691940\n"
    )
    waiting = QueueState("waiting", "Slurm shows the reason to the job's user alone")

    assert slurm_states.by_accounting(text) == {
        "9_0": QueueState("running", "node1"),
        "9_1": waiting,
        "9_2": waiting,
        "10": QueueState("gone", "CANCELLED"),
    }


def test_elements_of_an_array() -> None:
    """As sacct and squeue write them; what an older Slurm cuts off with dots is left out."""
    assert list(slurm_states.elements("17")) == ["17"]
    assert list(slurm_states.elements("17_3")) == ["17_3"]
    assert list(slurm_states.elements("17_[0-6:3,9,11-12%1]")) == [f"17_{index}" for index in (0, 3, 6, 9, 11, 12)]
    assert list(slurm_states.elements("17_[1,3,...]")) == ["17_1", "17_3"]


def test_only_jobs_of_a_failed_submission_are_orphans(commands: Commands, tmp_path: Path) -> None:
    """Not those whose script became a link, nor another study's, nor, elsewhere, one that is just being submitted."""
    paths = StudyPaths(tmp_path)
    paths.slurm.mkdir()
    failed, sent = (paths.slurm / f".submission_file_{name}.sh" for name in ("failed", "sent"))
    failed.touch()
    (paths.slurm / "8_submission.sh").touch()
    sent.symlink_to("8_submission.sh")
    commands.add(
        "squeue", f"echo '7|{failed}'; echo '8|{sent}'; echo '9|/x/.submission_file_other.sh'; echo '10|(null)'"
    )
    commands.add("scancel", "")

    assert end_orphans(paths) == []  # it may just be at it
    assert commands.calls() == []
    assert end_orphans(paths, failed_now=True) == ["7"]
    assert commands.calls()[-1] == "scancel 7"
    os.utime(failed, (0, 0))
    assert end_orphans(paths) == ["7"]
    commands.add("squeue", "exit 1")
    with pytest.raises(NoAnswerError, match="squeue failed"):
        end_orphans(paths)


def test_the_queue_is_asked_for_the_jobs_and_not_for_the_user(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question with the arrays' numbers, whoever asks; array elements are told apart by their whole number."""
    monkeypatch.setenv("LOGNAME", "bob")
    commands.add("squeue", "echo '17_0|RUNNING|node1|None'; echo '17_1|PENDING||Priority'; echo '19|PENDING||None'")
    found = slurm.queue(["17_0", "17_1", "19"])

    assert set(found) == {"17_0", "17_1", "19"}
    assert [call for call in commands.calls() if "--jobs=17,19 " in call and "user" not in call] == commands.calls()
    assert len(commands.calls()) == 1

    slurm.queue(["17_0", "19"], {0})
    assert commands.calls()[-1].endswith(" --user=0")  # the controller lists this user's jobs only
    for unknown in (-1, 2**31 - 7):
        slurm.queue(["17_0", "19"], {0, unknown})
        assert "--user" not in commands.calls()[-1]


def test_jobs_that_slurm_has_forgotten_are_gone(commands: Commands) -> None:
    """squeue fails when it knows none of the numbers: that is an answer. Any other failure isn't."""
    commands.add("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm.queue(["17_0"]) == {}
    commands.add("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(StudyError, match="Unable to contact"):
        slurm.queue(["17_0"])


def test_accounting_is_asked_for_the_array_where_it_has_no_element(commands: Commands) -> None:
    """sacct finds no element that never started, but its array; where there is no accounting, nothing is known."""
    commands.add(
        "sacct",
        'case "$*" in *--jobs=9_0,9_5) echo "9_0|FAILED|1:0|node1|7" ;;'
        ' *--jobs=9) echo "9_0|FAILED|1:0|node1|7"; echo "9_[1-29%1]|CANCELLED by 2001|0:0|None assigned|9" ;; esac',
    )
    found = slurm.endings(["9_0", "9_5"])
    assert {number: ending.state for number, ending in found.items()} == {"9_0": "FAILED", "9_5": "CANCELLED"}

    commands.add("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.endings(["9_0", "9_5"]) == {}


def test_settings_count_where_their_command_fails_after_them(commands: Commands) -> None:
    """A controller that limits requests refuses scontrol's last one, a ping, when it has told all settings."""
    commands.add("scontrol", "echo 'MaxArraySize            = 51'; exit 1")
    assert slurm.largest_array() == 50
    assert slurm.settings("config") == {"MaxArraySize": "51"}
    commands.add("scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    assert slurm.largest_array() == 1000
    with pytest.raises(StudyError, match="Unable to contact"):
        slurm.settings("config")


def test_a_silent_slurm_is_refused(commands: Commands) -> None:
    """Where sbatch is installed and the controller doesn't answer, no job may start on what may be a login node."""
    commands.add("sbatch", "exit 1")
    commands.add("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SubmissionError, match=r"Unable to contact.*--cluster local"):
        default_cluster()
    commands.add("sinfo", "echo nvme")
    assert default_cluster() == "slurm"


@pytest.mark.parametrize("command", ["qsub", "bsub", "flux"])
def test_another_batch_system_is_refused(commands: Commands, command: str) -> None:
    """The message names how to run there, and how to run here all the same."""
    commands.add(command, "exit 1")
    with pytest.raises(SubmissionError, match=rf"with `{command} .*slurm/study.pbs.*--cluster local"):
        default_cluster()


def test_a_laptop_runs_jobs_itself(commands: Commands) -> None:
    """No batch system at all: this machine, and nothing is asked."""
    assert default_cluster() == "local"
    assert commands.calls() == []
