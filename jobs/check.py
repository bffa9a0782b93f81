"""Preflight: what would go wrong with a study, before any node-hour is spent, with a remedy for every problem.

On Slurm the last check runs on a compute node: `python -m jobs.check` there reads what to look at from its standard
input, and answers on its standard output.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ckpt import registry
from ckpt.cli import unwritten
from ckpt.disk import mounts
from ckpt.disk.answering import NOTICE_S, is_it_down, silence
from ckpt.disk.room import room_of, size
from ckpt.errors import MissingLibraryError
from jobs import check_targets
from jobs.cluster import interpreter, memory, refusals, slurm
from jobs.cluster.arrays import Batch, batches, from_environment, origins
from jobs.cluster.node_probe import NodeError, NoNodeError, ask_node
from jobs.findings import Finding
from jobs.paths import StudyPaths
from jobs.plan.plan import Plan
from jobs.plan.slurm_table import Slurm
from jobs.plan.study import Target

_RESULTS_BYTES, _RESULTS_FILES = 2**20, 10
"""More than what a job leaves in the results directory: its log, its files in `slurm`, its share of a report."""


def findings(paths: StudyPaths, planned: Plan, cluster: str) -> Iterator[Finding]:
    """Check what can be seen from here; on Slurm, what a compute node sees too."""
    yield from _room_for_results(paths, len(planned.jobs))
    if cluster != "slurm":
        largest = {name: planned.largest(name) for name in planned.study.targets}
        yield from check_targets.findings(planned.study.targets, largest)
        yield from _libraries({(job.strategy, json.dumps(job.options)) for job in planned.jobs})
        return
    given = from_environment(os.environ)
    arrays = batches(planned.study, planned.jobs, slurm.largest_array(), given)
    partitions = _partitions()
    for request in {batch.slurm.model_dump_json(): batch.slurm for batch in arrays}.values():
        yield from _request(request, partitions, origins(request, given))
    yield _results(paths)
    for batch in arrays:
        yield from _memory(batch)
        finding = _test_only(paths, planned, batch)
        yield finding
        if finding.level == "ok":
            yield from _on_a_node(paths, planned, batch)


def _libraries(chosen: set[tuple[str, str]]) -> Iterator[Finding]:
    for name, options in sorted(chosen):
        try:
            registry.create(name, json.loads(options)).prepare()
        except MissingLibraryError as error:
            remedy = "install it in the environment that jobs run in"
            if error.optional:
                yield Finding("unknown", f"{error}. Its jobs would be skipped", remedy)
            else:
                yield Finding("problem", str(error), remedy)
        else:
            yield Finding("ok", "strategies find their libraries", about=name)


@dataclass(frozen=True, slots=True)
class _Partition:
    longest_min: float
    features: frozenset[str]


def _partitions() -> dict[str, _Partition]:
    """Slurm's partitions, the default one also under the name `None`."""
    partitions: dict[str, _Partition] = {}
    for line in slurm.ask("sinfo", "--noheader", "--format=%P|%l|%f").splitlines():
        name, limit, features = line.strip().split("|", 2)
        available = frozenset(features.split(",")) - {"(null)"}
        for key in [name.rstrip("*"), *(["None"] if name.endswith("*") else [])]:
            before = partitions.get(key, _Partition(0, frozenset()))
            partitions[key] = _Partition(max(before.longest_min, minutes(limit)), before.features | available)
    return partitions


def minutes(limit: str) -> float:
    """Slurm's `days-hours:minutes:seconds` in minutes; infinite where there is no limit."""
    if limit in {"infinite", "UNLIMITED", "n/a"}:
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        parts += [0] * (3 - len(parts))
    hours, mins, secs = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + mins + secs / 60


def _request(request: Slurm, partitions: dict[str, _Partition], origin: str) -> Iterator[Finding]:
    if origin:
        yield Finding("ok", origin)
    name = str(request.partition)
    chosen = [partitions[partition] for partition in name.split(",") if partition in partitions]
    if not chosen:
        known = ", ".join(sorted(set(partitions) - {"None"}))
        what = "Slurm has no default partition" if name == "None" else f"there is no partition {name!r}"
        yield Finding("problem", what, f"write `partition = ...` below [slurm], one of: {known}")
        return
    shown = "the default partition" if name == "None" else f"partition {name}"
    longest = max(partition.longest_min for partition in chosen)
    asked = request.timeout_min or 0
    if asked > longest:
        remedy = f"write `timeout_min = {int(longest)}` below [slurm], or take another partition"
        yield Finding("problem", f"timeout_min = {asked}, but {shown} allows {longest:.0f} minutes", remedy)
    else:
        yield Finding("ok", f"{shown} exists, and allows {asked} minutes")
    wanted = set(re.findall(r"[A-Za-z_][\w.-]*", request.constraint or ""))
    features = frozenset().union(*(partition.features for partition in chosen))
    if wanted - features:
        remedy = f"the nodes of {shown} have: {', '.join(sorted(features)) or 'no features'}"
        yield Finding(
            "problem", f"constraint {request.constraint!r}: no node of {shown} has {min(wanted - features)}", remedy
        )


def _results(paths: StudyPaths) -> Finding:
    mount = mounts.mount_of(paths.root)
    if mount.facts.shared:
        return Finding("ok", f"the results directory lies on {mount.filesystem}, which nodes share")
    return Finding(
        "unknown",
        f"the results directory lies on {mount.filesystem} ({mount.mount_point}): nodes must see it under that path",
        "if the node below does not see it, choose --results DIR on a shared filesystem",
    )


def _room_for_results(paths: StudyPaths, jobs: int) -> Iterator[Finding]:
    """Whether logs, scripts and the report will fit; a quota shows only when something is written."""
    where, remedy = mounts.existing_parent(paths.root), "make room there, or choose --results DIR"
    if silent := silence(where, NOTICE_S, write=True):
        yield _hanging_results(where, silent)
        return
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(bytes(_RESULTS_BYTES))
            file.flush()
            os.fsync(file.fileno())
        room = room_of(where)
    except OSError as error:
        yield Finding("problem", f"the results' directory: {unwritten(error, where)}", remedy)
        return
    needed_bytes, needed_files = jobs * _RESULTS_BYTES, jobs * _RESULTS_FILES
    if room.free_bytes is not None and room.free_bytes < needed_bytes:
        what = f"{size(room.free_bytes)} are free in {where}, and the results of {jobs} jobs may take"
        yield Finding("problem", f"{what} {size(needed_bytes)}", remedy)
    if room.free_files is not None and room.free_files < needed_files:
        what = f"only {room.free_files:,} more files fit in {where}; the results of {jobs} jobs may take"
        yield Finding("problem", f"{what} {needed_files:,}", remedy)


def _hanging_results(where: Path, silent: str) -> Finding:
    what = f"{where}, where the results go, {silent}"
    return Finding("problem", what, f"{is_it_down(where)} Wait until it answers, or choose --results DIR")


def _test_only(paths: StudyPaths, planned: Plan, batch: Batch) -> Finding:
    """What sbatch itself says: account, quality of service, nodes, everything that this site checks."""
    from jobs.cluster import submit

    refused = submit.refusal(paths, planned, batch)
    if not refused:
        return Finding("ok", f"Slurm would take the array of {len(batch.jobs)} jobs")
    alone = submit.refusal(paths, planned, replace(batch, jobs=batch.jobs[:1]))
    if alone:
        return Finding("problem", f"Slurm would not take the jobs: {alone}", refusals.remedy(alone))
    if refusals.SUBMIT_LIMIT.search(refused):
        what = f"Slurm would take some of the {len(batch.jobs)} jobs now: {refused}"
        return Finding("ok", what, "`run` sends the others as jobs end; `submit`, whenever it is typed again")
    return Finding("ok", f"Slurm would take the {len(batch.jobs)} jobs one by one, and not as an array: {refused}")


def _memory(batch: Batch) -> Iterator[Finding]:
    asked = memory.of(batch)
    if asked is None:
        return
    needed, given = (f"{size / 2**20:,.0f} MB" for size in (asked.needed_bytes, asked.given_bytes))
    if asked.needed_bytes > asked.given_bytes:
        what = f"jobs get {given} of memory on each node ({asked.origin}), and need at least {needed}"
        yield Finding("problem", what, f"write `mem_gb = {memory.enough_gb(asked)}` below [slurm]")
    else:
        yield Finding("ok", f"jobs get {given} of memory on each node ({asked.origin}), and need at least {needed}")


def _on_a_node(paths: StudyPaths, planned: Plan, batch: Batch) -> Iterator[Finding]:
    """Check Python, the package, the results directory and the targets on a compute node."""
    from jobs.cluster import submit

    names = sorted({job.target for job in batch.jobs})
    anchor = mounts.existing_parent(paths.root)
    question = {
        "anchor": str(anchor),
        "anchor_inode": anchor.stat().st_ino,
        "targets": {name: planned.study.targets[name].model_dump(mode="json") for name in names},
        "largest": {name: planned.largest(name) for name in names},
        "strategies": sorted({(job.strategy, json.dumps(job.options)) for job in batch.jobs}),
    }
    command = [*interpreter.node_python(), "-m", "jobs.check"]
    try:
        text = ask_node(batch.slurm, submit.flags(paths, planned, batch), command, json.dumps(question), anchor)
        yield from [Finding(**facts) for facts in json.loads(text)]
    except NoNodeError as error:
        yield Finding("unknown", f"no compute node was asked: {error}", "try again when one is free")
    except NodeError as error:
        yield Finding(
            "problem",
            f"the package does not start on a compute node by {shlex.join(command[:-2])}: {error}",
            f"nodes must see it; where Python starts otherwise (a container, a module), set {interpreter.VARIABLE}",
        )
    except (ValueError, TypeError) as error:
        remedy = f"nothing that starts Python there (a container, a module, {interpreter.VARIABLE}) may print anything"
        yield Finding("problem", f"a compute node's answer can't be read: {error}", remedy)


def answer(question: dict[str, Any]) -> list[Finding]:
    """On a compute node: check the results directory, the targets and the libraries."""
    anchor = Path(question["anchor"])
    findings = [Finding("ok", f"Python {platform.python_version()} and the package start")]
    if silent := silence(anchor, NOTICE_S):
        findings.append(_hanging_results(anchor, silent))
    elif anchor.exists() and anchor.stat().st_ino == question["anchor_inode"]:
        findings.append(Finding("ok", f"{anchor}, where the results go, is seen"))
    else:
        what = f"{anchor}, where the results go, is not seen"
        findings.append(Finding("problem", what, "choose --results DIR on a filesystem that the nodes share"))
    studied = {name: Target.model_validate(target) for name, target in question["targets"].items()}
    findings += check_targets.findings(studied, question["largest"])
    findings += _libraries({(name, options) for name, options in question["strategies"]})
    return [replace(finding, host=platform.node()) for finding in findings]


if __name__ == "__main__":
    print(json.dumps([asdict(finding) for finding in answer(json.load(sys.stdin))]))
