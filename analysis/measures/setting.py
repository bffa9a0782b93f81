"""Builds the model of the measurements: setting -> method -> operation -> trials, computed once from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.logs.claims import PROVEN
from analysis.logs.frames import Results
from analysis.logs.operations import several_ranks, whole_ceilings, whole_operations
from analysis.measures.caveats import Caveat
from analysis.measures.ceilings import Ceiling, best, ceilings
from analysis.measures.commands import Command, commands_of
from analysis.measures.groups import Group, agreement, groups
from analysis.measures.loop import JobLoop, LoopSpec
from analysis.measures.loop_methods import about_loops, with_loops
from analysis.measures.loop_runs import job_loops
from analysis.measures.method import Measurements, Method, method_of
from analysis.measures.operation import Direction, Operation
from analysis.measures.stability import caveats_about
from analysis.measures.storage import NOTHING_KNOWN, Storage, storage_of
from analysis.measures.storage_caveats import about_storage
from analysis.measures.stragglers import own_work

REFERENCE = "torch_save"
"""The method that others are compared with unless another one is named, as in the original OpenLLaMA-3B comparison."""


SYNC = "sync"
"""The way that holds the loop: the reference's is what other ways are compared with."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What must be equal for methods to be compared: study, target, scale, state, versions, kind of node."""

    study: str
    target: str
    nodes: int
    tasks_per_node: int
    methods: tuple[Method, ...]
    """The reference first, then by label; also those without a valid trial."""
    apart: str = ""
    """How this setting differs from others of the same study, target and scale; empty if there are no others."""
    agreed: Mapping[str, str] = field(default_factory=dict)
    """The values that all of its jobs agree in, by the keys of `groups.MUST_AGREE`."""
    state: str = ""
    """The state in words."""
    node_local: bool | None = None
    """Whether every node has a separate target of that name; None where the logs don't have it."""
    ceilings: Mapping[Direction, Ceiling] = field(default_factory=dict)
    """The rates that the target reached by itself, in all jobs of the setting."""
    durability: str = PROVEN
    """`PROVEN`, or why its saves can't be proven durable."""
    storage: Storage = NOTHING_KNOWN
    """What the target lies on."""
    commands: tuple[Command, ...] = ()
    """What its jobs ran outside every clock, before their trials and between saves and loads."""
    caveats: tuple[Caveat, ...] = ()
    """What makes the numbers less reliable."""
    loop: LoopSpec | None = None
    """The training loop beside which its methods saved; None without one."""

    @property
    def scale(self) -> str:
        """Nodes and tasks per node: `2x4`."""
        return f"{self.nodes}x{self.tasks_per_node}"

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.tasks_per_node

    @property
    def name(self) -> str:
        """Study, target and scale."""
        return f"{self.study}, target {self.target}, {self.scale}"

    @property
    def at_all_scales(self) -> str:
        """The setting in words, for what covers all of its scales."""
        return f"{self.study}, target {self.target}{self._apart_in_brackets}"

    @property
    def _apart_in_brackets(self) -> str:
        return f" ({self.apart})" if self.apart else ""

    def __str__(self) -> str:
        """The setting in words: its name, and how it differs from others of the same name."""
        return self.name + self._apart_in_brackets

    def label(self, operation: Operation) -> str:
        """The operation as tables and figures name it; a save whose durability is unproven is called that."""
        unproven = operation is Operation.SAVE and self.durability != PROVEN
        return f"{operation.label}, durability unproven" if unproven else operation.label

    def method(self, label: str) -> Method | None:
        """Return the method with that label."""
        return next((method for method in self.methods if method.label == label), None)


def settings(results: Results, reference: str = REFERENCE) -> list[Setting]:
    """Build everything that was measured, by study, target and scale.

    Args:
        results: the frames.
        reference: the label of the method that comes first.
    """
    several = several_ranks(results.samples, results.jobs)
    samples = _ByJob(whole_operations(results.samples, several))
    whole = whole_ceilings(results.ceiling)
    disk, ceiling = _ByJob(results.disk), _ByJob(best(whole))
    work = _ByJob(own_work(several, results.ranks))
    all_ceilings, small_files, hooks = _ByJob(whole), _ByJob(results.metadata), _ByJob(results.hooks)
    loops = job_loops(results)
    built = []
    for group in groups(results.jobs):
        measurements = Measurements(*(rows.of(group.jobs) for rows in (samples, disk, ceiling, work)))
        storage = storage_of(group.jobs, all_ceilings.of(group.jobs), small_files.of(group.jobs))
        setting = _setting(group, measurements, storage, loops, reference)
        built.append(replace(setting, commands=commands_of(hooks.of(group.jobs))))
    return [
        replace(setting, caveats=(*about_storage(setting.target, setting.storage, of_study), *setting.caveats))
        for setting in built
        for of_study in [{other.target: other.storage for other in built if other.study == setting.study}]
    ]


class _ByJob:
    """The rows of a frame, looked up by job."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self._rows = frame.groupby(["study", "job_id"], sort=False).indices

    def of(self, jobs: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of these jobs, in the order of the frame."""
        keys = zip(jobs["study"], jobs["job_id"], strict=True)
        rows = [self._rows[key] for key in keys if key in self._rows]
        return self._frame.take(np.sort(np.concatenate(rows)) if rows else [])


def _setting(
    group: Group,
    measurements: Measurements,
    storage: Storage,
    loops: Mapping[tuple[str, str], Sequence[JobLoop]],
    reference: str,
) -> Setting:
    jobs = group.jobs
    first = reference, f"{reference}+way={SYNC}"
    labels = sorted(set(jobs["label"].dropna()), key=lambda label: (label not in first, label))
    by_label = (jobs[jobs["label"] == label] for label in labels)
    methods = with_loops([method_of(rows, measurements.of(rows)) for rows in by_label], jobs, loops)
    return Setting(
        study=group.study,
        target=group.target,
        nodes=group.nodes,
        tasks_per_node=group.tasks_per_node,
        methods=methods,
        apart=group.apart,
        agreed=agreement(jobs),
        state=_state_in_words(jobs),
        node_local=_node_local(jobs),
        ceilings=ceilings(measurements.ceiling),
        durability=_durability(jobs),
        storage=storage,
        caveats=(*caveats_about(jobs, measurements.samples, measurements.ceiling), *about_loops(methods)),
        loop=next((method.loop.spec for method in methods if method.loop), None),
    )


def _durability(jobs: pd.DataFrame) -> str:
    proofs = jobs["storage_durability_proof"].dropna() if "storage_durability_proof" in jobs else pd.Series(dtype=str)
    return next((str(proof) for proof in proofs if proof != PROVEN), PROVEN)


def _node_local(jobs: pd.DataFrame) -> bool | None:
    values = set(jobs["node_local"].dropna().map(bool)) if "node_local" in jobs else set()
    return values.pop() if len(values) == 1 else None


def _state_in_words(jobs: pd.DataFrame) -> str:
    described = jobs.dropna(subset=["state_digest"]) if "state_digest" in jobs else jobs.iloc[:0]
    if not len(described):
        return "no job got as far as building it"
    return "; ".join(
        f"{job['state_model']}, {job['state_tensors']:.0f} tensors, {job['state_parameters'] / 1e9:.3f}e9 "
        f"parameters, {job['state_dtypes']}, {job['state_bytes'] / 2**30:.2f} GiB, digest "
        f"{job['state_digest'][:12]}{_sharding_in_words(job)}"
        for _, job in described.drop_duplicates("state_digest").iterrows()
    )


def _sharding_in_words(job: pd.Series) -> str:
    """Describe how the state differs from weights that one rank saves and loads."""
    ranks = int(job["nodes"] * job["tasks_per_node"])
    words = [f"contents {job['state_contents']}"] if job["state_contents"] != "weights" else []
    if ranks > 1:
        words.append(f"among {ranks} ranks, {job['state_sharding']}")
    if job["load_ranks"]:
        words.append(f"loaded on {job['load_ranks']:.0f} ranks")
    if job["read_shift"]:
        nodes = "node" if job["read_shift"] == 1 else "nodes"
        words.append(f"each share loaded {job['read_shift']:.0f} {nodes} from where it was written")
    return "".join(f", {word}" for word in words)
