"""The file of a study's outcomes across runs: begun, continued where a run ended, and refused if it is another's."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ckpt.cli import unwritten
from ckpt.disk import leftovers, mounts
from ckpt.state.layout import state_bytes
from ckpt.workload.spec import layout_of
from jobs.errors import StudyError
from jobs.faults.budget import Budget
from jobs.faults.outcomes import FAULTS, USES, Cell, FaultLog, read
from jobs.node.provenance import code_version
from jobs.plan.study import Study

_STUDY_WORD = 4
"""Of the command: `python -m jobs faults STUDY`; people write a path in several ways."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a study's directory, and keep other runs from writing its file of outcomes meanwhile.

    Where a filesystem has no locks, nothing keeps them from it.

    Raises:
        StudyError: if another run is at work there, or there can't be such a directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StudyError(f"{unwritten(error, directory)}, or try --results DIR") from error
    try:
        if leftovers.lock(descriptor) is leftovers.Lock.HELD:
            raise StudyError(
                f"another `python -m jobs faults` is writing to {directory}: wait until it has ended, or give another "
                "--results DIR"
            )
        yield
    finally:
        os.close(descriptor)


def begun(study: Study, command: str, target: str, directory: Path, budget: Budget) -> FaultLog:
    """Describe a run that has no outcomes yet."""
    return FaultLog(
        study=study.name,
        command=command,
        target=target,
        filesystem=mounts.mount_of(directory).filesystem,
        state_bytes=state_bytes(layout_of(study.state)),
        seed=budget.seed,
        versions=_versions({name for method in study.methods() for name in method.requires}),
    )


def continued(path: Path, new: FaultLog, labels: Collection[str]) -> FaultLog:
    """Take the cells that were tried from a file, if there is one.

    Args:
        path: the file; it stays as it is.
        new: this run.
        labels: of the study's methods.

    Raises:
        StudyError: if the file is another run's: of another seed, state or target, or of other versions.
    """
    try:
        before = read(path)
    except FileNotFoundError:
        return new
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} can't be read ({error}): start anew with --again, or give --results DIR") from None
    different = [*_differences(before, new), *_gone(before, labels)]
    if different:
        raise StudyError(
            f"{path} has outcomes that these can't join: {'; '.join(different)}. Start anew with --again, or give "
            "another --results DIR"
        )
    new.cells.extend(cell for cell in before.cells if not cell.skipped)  # a library may be there now
    return new


def put(log: FaultLog, cell: Cell, labels: Sequence[str]) -> None:
    """Add a cell, in the order of the study's methods."""
    log.cells.append(cell)
    log.cells.sort(key=lambda c: (labels.index(c.method), USES.index(c.use), FAULTS.index(c.fault)))


def _differences(before: FaultLog, new: FaultLog) -> Iterator[str]:
    for name in ("study", "target", "filesystem", "state_bytes", "seed"):
        have, want = getattr(before, name), getattr(new, name)
        if have != want:
            yield f"{name.replace('_', ' ')} {have!r} there, and {want!r} now"
    have, want = (" ".join(shlex.split(log.command)[_STUDY_WORD + 1 :]) for log in (before, new))
    if have != want:
        yield f"options {have!r} there, and {want!r} now"
    for name in sorted(before.versions.keys() | new.versions.keys()):
        have, want = (log.versions.get(name, "none") for log in (before, new))
        if have != want:
            yield f"{name} {have} there, and {want} now"


def _gone(before: FaultLog, labels: Collection[str]) -> Iterator[str]:
    gone = sorted({cell.method for cell in before.cells} - set(labels))
    if gone:
        yield f"methods that the study doesn't have now: {', '.join(gone)}"


def _versions(modules: Collection[str]) -> dict[str, str]:
    """The versions of Python, the kernel, this package, torch and the packages that have modules."""
    packages = metadata.packages_distributions()
    tops = {module.partition(".")[0] for module in modules} | {"torch"}
    names = sorted({name for top in tops for name in packages.get(top, ())})
    own = {"python": platform.python_version(), "kernel": platform.release(), "ckpt-study": code_version()}
    return own | {name: metadata.version(name) for name in names}
