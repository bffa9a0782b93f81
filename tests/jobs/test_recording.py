"""A recording has what all processes of a program changed, in the order in which their calls returned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.faults.crash_states import last_state
from jobs.faults.power_cut import check_complete
from jobs.faults.recording import Operation, Recording, Sync
from jobs.faults.traced_calls import Reader
from jobs.faults.tracing import record
from support.faults import require_strace

PROGRAMS = {
    "a fork closes its copies of descriptors, and opens others of the same numbers": """
        file = os.open("file", os.O_WRONLY | os.O_CREAT)
        if not os.fork():
            os.close(file)
            other = os.open("of the fork", os.O_WRONLY | os.O_CREAT)
            assert other == file
            os.write(other, b"fork")
            os._exit(0)
        os.wait()
        os.write(file, b"parent")
    """,
    "a fork goes on where its parent was in a file, and the parent where the fork was": """
        file = os.open("file", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"1")
        if not os.fork():
            os.write(file, b"2")
            os._exit(0)
        os.wait()
        os.write(file, b"3")
        os.write(os.dup(file), b"4")
        os.write(file, b"5")
    """,
    "two processes append to a file": """
        files = [os.open("file", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
        os.write(files[0], b"1")
        if not os.fork():
            os.write(files[1], b"2")
            os._exit(0)
        os.wait()
        os.write(files[0], b"3")
    """,
    "a thread uses and closes its process's descriptors": """
        file, pipe = os.open("file", os.O_WRONLY | os.O_CREAT), []
        def work():
            os.write(file, b"thread")
            os.close(file)
            pipe.extend(os.pipe())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert file in pipe
        os.write(pipe[1], b"into the pipe")
    """,
    "another program has what is passed on to it, and nothing else": """
        kept, closed = (os.open(name, os.O_WRONLY | os.O_CREAT) for name in ("kept", "closed"))
        os.set_inheritable(kept, True)
        line = f"import os; pipe = os.pipe(); os.write({kept}, b'program'); os.write(pipe[1], b'pipe')"
        for close_fds in (True, False):
            subprocess.run([sys.executable, "-c", line], pass_fds=[kept] if close_fds else [], close_fds=close_fds)
        with open("output", "w") as file:
            subprocess.run(["echo", "text"], stdout=file)
        os.write(closed, b"parent")
    """,
    "ranks make a directory, and rename what the others wrote": """
        stage = os.path.abspath("stage")
        os.mkdir(stage)
        for rank in range(4):
            if not os.fork():
                with open(f"stage/{rank}", "wb") as file:
                    for block in range(50):
                        file.write(bytes([rank, block]) * 100)
                        file.flush()
                    os.fsync(file.fileno())
                os._exit(0)
        for _ in range(4):
            os.wait()
        os.rename(stage, os.path.abspath("final"))
    """,
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_several_processes(what: str, tmp_path: Path) -> None:
    """The recording ends with what the program left."""
    require_strace()
    root = tmp_path / "run"
    root.mkdir()
    lines = [line.removeprefix(" " * 8) for line in PROGRAMS[what].splitlines()]
    start = ["import os, subprocess, sys, threading", f"os.chdir({str(root)!r})"]
    code = "\n".join([*start, *lines])
    recording = record(root, [sys.executable, "-c", code], tmp_path / "trace")
    check_complete(recording, root)
    assert any(isinstance(content, bytes) and content for content in last_state(recording).content.values())


def read(root: Path, *lines: str) -> Recording:
    """Read a trace of these lines; `ROOT` is the directory, and quoted text is written as strace writes it."""
    parts = "\n".join(lines).replace("ROOT", str(root)).split('"')
    parts[1::2] = ["".join(f"\\x{byte:02x}" for byte in part.encode()) for part in parts[1::2]]
    (root / "trace").write_text('"'.join(parts) + "\n")
    (root / "run").mkdir()
    recording = Recording()
    Reader(root / "run", recording).read(root / "trace")
    return recording


def test_calls_at_the_same_time(tmp_path: Path) -> None:
    """A call counts from its return, and a sync covers what had returned when it began; the lines of a call that
    others interrupt are put together by their process.
    """
    recording = read(
        tmp_path,
        '11 openat(AT_FDCWD<ROOT>, "ROOT/run/a", O_WRONLY|O_CREAT, 0666) = 3<ROOT/run/a>',
        '12 openat(AT_FDCWD<ROOT>, "ROOT/run/b", O_WRONLY|O_CREAT, 0666) = 3<ROOT/run/b>',
        '11 write(3<ROOT/run/a>, "early", 5) = 5',
        "12 fsync(3<ROOT/run/b> <unfinished ...>",
        '11 write(3<ROOT/run/a>, "late", 4 <unfinished ...>',
        "12 <... fsync resumed>) = 0",
        "11 <... write resumed>) = 4",
        "11 fdatasync(3<ROOT/run/a>) = 0",
    )  # fmt: skip
    kinds = [step.kind if isinstance(step, Operation) else type(step).__name__ for step in recording.steps]
    assert kinds == ["add", "add", "write", "Sync", "write", "Sync"]
    assert recording.covers == {3: 3, 5: 5}
    assert last_state(recording).content == {"a": b"earlylate", "b": b""}
    assert [step.node for step in recording.steps if isinstance(step, Sync)] == [2, 1]


def test_a_child_that_acts_before_its_fork_returns(tmp_path: Path) -> None:
    """It has its parent's descriptors as they are then; so has a thread, which shares them from then on."""
    recording = read(
        tmp_path,
        '11 openat(AT_FDCWD<ROOT>, "ROOT/run/a", O_WRONLY|O_CREAT, 0666) = 3<ROOT/run/a>',
        "11 vfork( <unfinished ...>",
        '12 write(3<ROOT/run/a>, "1", 1) = 1',
        "12 close(3<ROOT/run/a>) = 0",
        "11 <... vfork resumed>) = 12",
        "11 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD <unfinished ...>",
        '13 write(3<ROOT/run/a>, "2", 1) = 1',
        "13 close(3<ROOT/run/a>) = 0",
        "11 <... clone3 resumed> => {parent_tid=[13]}, 88) = 13",
        '11 write(3<pipe:[7]>, "pipe", 4) = 4',
    )
    assert last_state(recording).content == {"a": b"12"}


def test_a_mark_stands_where_its_call_begins(tmp_path: Path) -> None:
    """What another process does before the call returns comes after the mark."""
    recording = read(
        tmp_path,
        '11 openat(AT_FDCWD<ROOT>, "/ckpt-mark/returned", O_RDONLY|O_CLOEXEC <unfinished ...>',
        '12 mkdir("ROOT/run/a", 0777) = 0',
        "11 <... openat resumed>) = -1 ENOENT (No such file or directory)",
        '12 openat(AT_FDCWD<ROOT>, "/ckpt-mark/returned", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)',
    )
    assert [step if isinstance(step, str) else "operation" for step in recording.steps] == [
        "returned", "operation", "returned",
    ]  # fmt: skip
