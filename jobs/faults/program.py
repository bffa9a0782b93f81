"""One save, as a program that is watched, or that is made to fail: `python -m jobs.faults.program SUBJECT ROOT STEP`.

It opens the marks "begin" and "returned" (`recording.mark`); all that its save needs is built and imported before.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.faults.processes import python
from jobs.faults.recording import mark
from jobs.faults.subject import Subject


def command(subject: Subject, root: Path, step: int) -> list[str]:
    """Build the command that saves a step's state below a directory."""
    return python("jobs.faults.program", subject.to_json(), str(root), str(step))


def main(subject_json: str, root: str, step: str) -> None:
    """Save."""
    import torch

    torch.set_num_threads(1)
    subject = Subject.from_json(subject_json)
    subject.method.prepare()
    state = subject.state_at(int(step))
    mark("begin")
    subject.save(state, int(step), Path(root))
    mark("returned")


if __name__ == "__main__":
    main(*sys.argv[1:])
