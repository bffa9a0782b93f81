"""One trial: save, sync, commit, evict, load, verify. The only module with a clock, apart from the ceiling's.

    one trial:   save ──────────────────► load, cold ► load, warm ► load into memory that exists, cold
                 │ call │ sync │ commit │
                 └─────── total ────────┘

With several ranks every process runs this, and all start an operation at once. A save's `commit` begins with the wait
for those that haven't synced yet: the checkpoint appears when all have, or not at all.

The clock is innermost: collectors start, clock, work, clock, collectors stop. Building the state, imports,
eviction, verification and cleaning lie outside.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ckpt.disk import commit, direct_io, full, listing, page_cache, writeback
from ckpt.errors import CheckpointError, LostRankError
from ckpt.state.compare import first_difference, poison
from ckpt.state.layout import State
from jobs.node import committing, received
from jobs.node.context import JobContext
from jobs.node.recorder import DIFFERS
from jobs.node.subject import Subject
from jobs.node.usage import UNKNOWN, ResourceUsage, measure_usage
from jobs.node.verifying import not_its_own
from jobs.timing_log import LOAD, LOAD_INTO, NOT_APPLICABLE, SAVE, DiskUse, Sample

_PHASES = ("call", "sync", "commit")
"""Of a save, in this order."""


class TrialError(Exception):
    """A strategy failed in a trial; the samples are in the log, marked."""


@dataclass(slots=True)
class _Save:
    """One save, as this process measured it."""

    times: list[float] = field(default_factory=list)
    """Before the call, and after the call, the sync and the commit, as far as it got."""
    files: list[Path] = field(default_factory=list)
    """Those that this process wrote."""
    usage: ResourceUsage = field(default_factory=ResourceUsage)
    problem: str = ""

    @property
    def failed_in(self) -> str:
        """The operation, and the phase that had not ended when the save failed."""
        return f"{SAVE}, {_PHASES[len(self.times) - 2]}"


@dataclass(frozen=True, slots=True)
class _Load:
    """One way to load a checkpoint."""

    operation: str
    number: int
    """Which load of its trial."""
    cold: bool
    """Whether the page cache is emptied before."""
    read: Callable[[Path], State]

    @property
    def name(self) -> str:
        """What it is called in errors."""
        return f"{'cold' if self.cold else 'warm'} {LOAD}" if self.operation == LOAD else self.operation


class Trial:
    """One trial of one strategy on this process, with what it measured so far."""

    def __init__(self, number: int, subject: Subject, context: JobContext, *, warmup: bool) -> None:
        self.number = number
        self.samples: list[Sample] = []
        self.disk_use: DiskUse | None = None
        """What the checkpoint took on disk; on the first process."""
        self._subject, self._context, self._warmup = subject, context, warmup

    def save(self, final: Path) -> None:
        """Write a checkpoint until it is durable under its final name.

        Raises:
            TrialError: if the strategy failed, here or on another rank.
        """
        with self._naming(SAVE):
            begun, staging = committing.begin(self._context.groups, final)
            try:
                with writeback.watched(staging) as descriptor:
                    save = self._save(staging, begun)
                    if self._subject.assignment.saves:
                        self._record_save(save, final, staging, descriptor)
            finally:
                if begun:
                    begun.release()
            if save.problem:
                raise self._failure(save.failed_in, save.problem)
            self.disk_use = self._disk_use(final)

    @contextmanager
    def _naming(self, operation: str) -> Iterator[None]:
        """Name the trial and the operation in errors of what is done before and after its clock runs."""
        try:
            yield
        except (OSError, CheckpointError) as error:
            raise self._failure(operation, f"{type(error).__name__}: {error}") from error

    def _failure(self, operation: str, problem: str) -> TrialError:
        return TrialError(f"trial {self.number}, {operation}: {problem}")

    def _save(self, staging: Path, begun: commit.Staging | None) -> _Save:
        subject, groups, clock = self._subject, self._context.groups, self._context.clock
        save = _Save()
        _prefault(subject.saved_bytes)
        subject.wait_for_all(groups.writers)
        with measure_usage() as save.usage:
            save.times.append(clock())
            try:
                if subject.assignment.saves:
                    save.files = subject.save(staging)
                    save.times.append(clock())
                    committing.sync(subject, staging, save.files)
                    save.times.append(clock())
                committing.publish(subject, begun)
            except LostRankError as error:
                save.problem = str(error)
            except Exception as error:  # noqa: BLE001  # whatever a library raises, the sample has it
                save.problem = full.named(f"{type(error).__name__}: {error}", error, staging)
                groups.world.fail(save.problem)
            save.times.append(clock())
        return save

    def _record_save(self, save: _Save, final: Path, staging: Path, descriptor: int) -> None:
        """Record what a save took, and check that it is as durable as it should be."""
        size_bytes = self._subject.saved_bytes
        durabilities = ("returned", "synced", self._context.proof.committed)
        for phase, durability, start_s, end_s in zip(_PHASES, durabilities, save.times, save.times[1:], strict=False):
            self._sample(SAVE, phase, start_s, end_s, size_bytes, durability=durability, problem=save.problem)
        problem, dirty = save.problem, None
        if not problem:
            problem, dirty = committing.unwritten(self._subject, final, staging, save.files, self._context.proof)
        if not problem:
            problem = committing.failed_writes(descriptor)
        start_s, end_s = save.times[0], save.times[-1]
        self._sample(
            SAVE, "total", start_s, end_s, size_bytes,
            durability=self._context.proof.committed, usage=save.usage, dirty=dirty, problem=problem,
        )  # fmt: skip

    def _disk_use(self, final: Path) -> DiskUse | None:
        """What the checkpoint took on disk, on all nodes together; None on all processes but the first."""
        world = self._context.groups.world
        inventory = asdict(listing.inventory(final)) if self._context.groups.is_leader else None
        columns = [column.name for column in fields(listing.Inventory)]
        inventories = [
            counts for counts in world.read(world.gather(inventory), received.counts(columns)) if counts is not None
        ]
        if not inventories:
            return None
        sums = {key: sum(counts[key] for counts in inventories) for key in columns}
        largest = max(counts["largest_file_bytes"] for counts in inventories)
        return DiskUse(trial=self.number, **sums | {"largest_file_bytes": largest})

    def load(self, final: Path, *, cold: bool) -> None:
        """Read the checkpoint back, with the page cache emptied or as it is, and compare every bit.

        Raises:
            TrialError: if the strategy failed, here or on another rank.
        """
        self._load(_Load(LOAD, 0 if cold else 1, cold, self._subject.load), final)

    def load_into(self, final: Path) -> None:
        """Read the checkpoint into memory that exists, with the page cache emptied, and compare every bit.

        Raises:
            TrialError: as `load` does.
        """
        subject = self._subject
        targets = subject.targets() if subject.assignment.loads else {}
        self._load(_Load(LOAD_INTO, 2, True, lambda path: subject.fill(path, targets)), final)

    def _load(self, load: _Load, final: Path) -> None:
        subject, groups, clock = self._subject, self._context.groups, self._context.clock
        with self._naming(load.name):
            resident, cache = self._page_cache(final, cold=load.cold)
        problem, loaded = "", {}
        gc.collect()
        if load.operation == LOAD:
            _prefault(subject.loaded_bytes)
        subject.wait_for_all(groups.loaders)
        if not subject.assignment.loads:
            return
        with measure_usage() as usage:
            start_s = clock()
            try:
                loaded = load.read(final)
            except LostRankError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001  # whatever a library raises, the sample has it
                problem = f"{type(error).__name__}: {error}"
                groups.world.fail(problem)
            end_s = clock()
        wrong = "" if problem else self._verify(loaded)
        self._sample(
            load.operation, "total", start_s, end_s, subject.loaded_bytes,
            cache=cache, load_number=load.number, resident=resident, usage=usage, problem=problem or wrong,
        )  # fmt: skip
        if problem:
            raise self._failure(load.name, problem)

    def _page_cache(self, final: Path, *, cold: bool) -> tuple[float, str]:
        """Empty the page cache, if the load is to be cold; returns what fraction is cached, and what that proves."""
        node = self._context.groups.node
        worker = node.rank, node.size
        if cold:
            page_cache.evict(final, worker)
            node.barrier()
        pages = node.all_gather(page_cache.residency(final, worker, self._context.proof.sight))
        resident = page_cache.fraction(node.read(pages, received.pair(received.count, received.number)))
        return resident, self._context.proof.cache(resident) if cold else "warm"

    def _verify(self, loaded: State) -> str:
        """What is wrong with a loaded state, empty if nothing; then poison it."""
        try:
            if wrong := not_its_own(self._subject.state, loaded):
                return wrong
            mismatch = first_difference(self._subject.expected, loaded)
            poison(loaded)
        except Exception as error:  # noqa: BLE001  # a strategy may return anything
            return f"{DIFFERS}: it is no dict of tensors ({type(error).__name__}: {error})"
        return f"{DIFFERS}: {mismatch}" if mismatch else ""

    def _sample(
        self,
        operation: str,
        phase: str,
        start_s: float,
        end_s: float,
        size_bytes: int,
        *,
        durability: str = NOT_APPLICABLE,
        cache: str = NOT_APPLICABLE,
        load_number: int = -1,
        resident: float = math.nan,
        usage: ResourceUsage | None = None,
        dirty: int | None = None,
        problem: str = "",
    ) -> None:
        if usage and not self._context.proof.reads_counted:
            usage.device_read_bytes = UNKNOWN
        sample = Sample(
            trial=self.number, warmup=self._warmup, rank=self._context.groups.process.rank,
            operation=operation, phase=phase, start_s=start_s, duration_s=end_s - start_s, state_bytes=size_bytes,
            durability=durability, cache=cache, load_number=load_number, resident_fraction=resident,
            valid=not problem, reason=problem, dirty_pages=-1 if dirty is None else dirty,
            **asdict(usage or ResourceUsage()),
        )  # fmt: skip
        self.samples.append(sample)


def _prefault(size_bytes: int) -> None:
    """Touch as much memory as the operation needs, and free it.

    Hypervisors reclaim idle guest memory. Getting it back can take longer than the I/O, and whether that happens
    depends on what ran before, not on the strategy.
    """
    direct_io.prefault(direct_io.aligned_buffer(max(1, size_bytes)))
