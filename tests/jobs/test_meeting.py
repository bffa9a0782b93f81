"""How the processes of a job meet where nobody else can join, and what those do that are left when one is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckpt.process_group.exchange import SECRET_BYTES
from jobs import timing_log
from jobs.errors import StudyError, TimingLogError
from jobs.node.rendezvous import meet
from jobs.paths import StudyPaths
from support.waiting import until

COUNT = 3


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """The file where they meet."""
    return tmp_path / "job.meeting"


def test_the_file_is_private(where: Path) -> None:
    """It has a random secret and can be read by the user alone, also where others made one before; later it's gone."""
    where.write_text("127.0.0.1 1\n")
    where.chmod(0o666)
    seen = set()
    for _ in range(2):
        with meet(where, 0, 2, one_host=True, timeout_s=30):
            assert (0o100600, os.geteuid()) == (where.stat().st_mode, where.stat().st_uid)
            seen.add(where.read_text().split()[2])
        assert [] == list(where.parent.iterdir())
    assert [SECRET_BYTES * 2] * 2 == [len(secret) for secret in seen]


def test_on_one_host_nobody_else_can_connect(where: Path) -> None:
    """The server listens at the loopback address alone."""
    with meet(where, 0, 2, one_host=True, timeout_s=30):
        port = int(where.read_text().split()[1])
        listening = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    assert [f"127.0.0.1:{port}"] == [line.split()[3] for line in listening.stdout.splitlines()]


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_file_that_others_reach(mode: int, where: Path) -> None:
    """What others can read or write is no secret: the rank refuses it, and says what to do."""
    where.write_text(f"127.0.0.1 1 {'00' * SECRET_BYTES}\n")
    where.chmod(mode)
    with (
        pytest.raises(StudyError, match=f"has mode {mode:04o} .* remove it"),
        meet(where, 1, 2, one_host=True, timeout_s=30),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else(where: Path) -> None:
    """A file that another user left is refused, whatever its mode."""
    where.write_text(f"127.0.0.1 1 {'00' * SECRET_BYTES}\n")
    where.chmod(0o600)
    os.chown(where, 12345, -1)
    with pytest.raises(StudyError, match="belongs to user 12345"), meet(where, 1, 2, one_host=True, timeout_s=30):
        pass


def test_no_link_is_followed(where: Path) -> None:
    """A symbolic link in the file's place is refused."""
    where.symlink_to(where.with_name("elsewhere"))
    with pytest.raises(StudyError, match="is no file of ours"), meet(where, 1, 2, one_host=True, timeout_s=30):
        pass


@pytest.mark.parametrize("content", ["", "127.0.0.1 1", "127.0.0.1 99999 " + "00" * 32, "h 1 00", "\xff", "a b c d"])
def test_a_damaged_file(content: str, where: Path) -> None:
    """A file that says nothing useful is one message."""
    where.write_text(content, encoding="latin-1")
    where.chmod(0o600)
    with (
        pytest.raises(StudyError, match="does not say where the ranks meet"),
        meet(where, 1, 2, one_host=True, timeout_s=30),
    ):
        pass


@pytest.fixture
def start(
    planned: Callable[[Mapping[str, Any]], StudyPaths], python: Any, tiny: dict[str, Any]
) -> Callable[..., tuple[StudyPaths, str, list[subprocess.Popen[bytes]]]]:
    """Starts the three processes of a job of three ranks, as submitit's local executor would."""

    def make(strategy: str, repeats: int) -> tuple[StudyPaths, str, list[subprocess.Popen[bytes]]]:
        content = tiny | {
            "strategies": [strategy],
            "slurm": {"tasks_per_node": COUNT},
            "trials": {"repeats": repeats, "warmups": 0, "ceiling": False},
        }
        paths = planned(content)
        job_id = f"r01-{strategy}-here-1x{COUNT}"
        started = [
            python.start(
                "-m", "jobs", "job", paths.root, job_id,
                SUBMITIT_LOCAL_GLOBALID=str(rank), SUBMITIT_LOCAL_NTASKS=str(COUNT),
                SUBMITIT_LOCAL_NODEID="0", SUBMITIT_LOCAL_JOB_ID="7",
            )
            for rank in range(COUNT)
        ]  # fmt: skip
        return paths, job_id, started

    return make


def trials_in(path: Path) -> int:
    """How many trials a log has so far."""
    with contextlib.suppress(TimingLogError):
        return len({sample.trial for sample in timing_log.read(path).samples})
    return 0


def test_strangers_do_not_matter(start: Callable[..., tuple[StudyPaths, str, list[Any]]]) -> None:
    """With garbage and 200 held connections at its port from the first moment on, a job of three ranks completes."""
    paths, job_id, started = start("torch_save", 2)
    meeting = paths.slurm / f"{job_id}.submitit-7.meeting"
    until(meeting.exists)
    port = int(meeting.read_text().split()[1])
    with contextlib.ExitStack() as stack:
        for number in range(200):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            if number % 2:
                with contextlib.suppress(OSError):
                    stranger.sendall(b"\xff" * 10_000)
        assert [0] * COUNT == [process.wait() for process in started]
    log = timing_log.read(paths.log(job_id))
    assert ("complete", "", 2) == (log.header.status, log.header.error, trials_in(paths.log(job_id)))


@pytest.mark.parametrize("strategy", ["torch_save", "torch_dcp"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank(strategy: str, rank: int, start: Callable[..., tuple[StudyPaths, str, list[Any]]]) -> None:
    """The others end at once, though they would wait for ten minutes; the log is failed, whoever wrote it."""
    paths, job_id, started = start(strategy, 10**4)
    until(lambda: trials_in(paths.log(job_id)) > 1)
    started[rank].send_signal(signal.SIGKILL)
    ended = [process.wait() for process in started]

    assert -signal.SIGKILL == ended[rank]
    assert 0 not in ended
    log = timing_log.read(paths.log(job_id))
    assert "failed" == log.header.status
    named = f"rank {rank} ({socket.gethostname()}) is gone" in log.header.error
    assert named or (rank and strategy == "torch_dcp")  # gloo may notice first that a connection broke, and not whose
    assert [] == list(paths.slurm.glob("*.lost"))


def test_the_first_rank_is_killed_before_the_others_come(
    start: Callable[..., tuple[StudyPaths, str, list[Any]]],
) -> None:
    """Its log doesn't stay as running: those that find nobody at its address say so in its place."""
    paths, job_id, started = start("torch_save", 2)
    for process in started[1:]:
        process.send_signal(signal.SIGSTOP)
    until((paths.slurm / f"{job_id}.submitit-7.meeting").exists)
    started[0].send_signal(signal.SIGKILL)
    started[0].wait()
    for process in started[1:]:
        process.send_signal(signal.SIGCONT)
    for process in started[1:]:
        process.wait()
    log = timing_log.read(paths.log(job_id))
    assert "failed" == log.header.status
    assert "rank 0 can't be reached" in log.header.error


def test_ranks_meet_among_strangers(where: Path) -> None:
    """Who comes while others hold the server's connections gets in all the same."""
    with (
        ThreadPoolExecutor(1) as pool,
        contextlib.ExitStack() as stack,
        meet(where, 0, 2, one_host=True, timeout_s=30) as first,
    ):
        port = int(where.read_text().split()[1])
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))

        def second() -> None:
            with meet(where, 1, 2, one_host=True, timeout_s=30) as exchange:
                exchange.set("second", "here")

        pool.submit(second).result()
        assert b"here" == first.get("second")
