"""System calls that fail, or are slow, in one process, as the kernel or a filesystem would have it; strace does it.

strace counts a process's calls by thread: `when=3` means the third such call of every thread.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def injected(
    pid: int, faults: Mapping[str, str], log: Path, paths: Sequence[Path] = (), others: str = ""
) -> Iterator[None]:
    """Trace a stopped process until it ends.

    Args:
        pid: the process; the context lets it go on, and waits for its end before it exits.
        faults: for calls, with commas between, what strace injects, such as `error=EIO:when=3`. Calls that this
            machine or strace doesn't know are left out.
        log: where strace writes the calls; `has_hit` reads it.
        paths: only calls on these count; all if empty.
        others: more calls that the log shall have.

    Raises:
        ChildProcessError: if strace can't attach to the process.
    """
    known = {",".join(f"?{call}" for call in calls.split(",")): fault for calls, fault in faults.items()}
    traced = ",".join([*known, *(f"?{call}" for call in others.split(",") if call)])
    command = ["strace", "-f", "-y", "-s", "4096", "-p", str(pid), "-o", str(log), "-e", f"trace={traced}"]
    for calls, fault in known.items():
        command += ["-e", f"inject={calls}:{fault}"]
    for path in paths:
        command += ["-P", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        for line in tracer.stderr:
            if "attached" in line:
                break
        else:
            raise ChildProcessError("strace can't attach to a process of this user: is ptrace forbidden here?")
        try:
            yield
        except BaseException:
            tracer.kill()
            raise


def has_hit(log: Path) -> bool:
    """Whether strace let any call fail, or made it slow."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "(INJECTED)" in text or "(DELAYED)" in text
