"""One trial: save, sync, commit, evict, load, verify. The only place with a clock, but for the ceiling's.

    one trial:   save ──────────────────► load, cold ► load, warm
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.disk import commit, direct_io, durable, listing, page_cache, writeback
from ckpt.errors import LostRankError
from ckpt.process_group.group import ProcessGroup
from ckpt.state.compare import first_difference, mapped_file, poison
from ckpt.state.layout import State, state_bytes
from ckpt.state.sharding import Shard, tensors_of
from jobs.node import received
from jobs.node.crew import Crew, Parts
from jobs.node.usage import Cost, collect
from jobs.timing_log import NOT_APPLICABLE, DiskUse, Sample, TimingLog

if TYPE_CHECKING:
    from ckpt.strategy import Strategy

COLD_BELOW = 0.01
"""A load counts as cold if less than this share of the checkpoint's pages was cached before it."""

_DIFFERS = "loaded state differs"
_NOT_DURABLE = "not durable"
_NOT_OWNED = "not in memory of its own"
WRONG_ANSWERS = (_DIFFERS, _NOT_DURABLE, _NOT_OWNED)
"""How the reasons of invalid samples begin that say what a strategy did wrong without failing."""


class TrialError(Exception):
    """A strategy failed in a trial; the samples are in the log, marked."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is saved and loaded, and by whom, as one process sees it.

    Attributes:
        state: what this process has in memory; empty in one that only loads.
        expected: what it is to load; the state itself where that is its own.
    """

    strategy: Strategy
    crew: Crew
    parts: Parts
    state: State
    expected: State

    def save(self, staging: Path) -> list[Path] | None:
        """Write this process's part, and say which files it wrote; None for all that there are."""
        if self.parts.alone:
            self.strategy.save(self.state, staging)
            return None
        assert self.parts.saves is not None and self.crew.saving is not None  # noqa: PT018  # who calls this saves
        names = [each.whole.name for each in self.parts.saves.owned]
        own = {name: self.state[name] for name in names}
        return self.strategy.save_together(own, staging, self.parts.saves, self.crew.saving)

    def load(self, final: Path) -> State:
        """Read this process's part."""
        if self.parts.alone:
            return self.strategy.load(final)
        assert self.parts.loads is not None and self.crew.loading is not None  # noqa: PT018  # as above
        return self.strategy.load_together(final, self.parts.loads, self.parts.saved, self.crew.loading)

    def meet(self, group: ProcessGroup | None) -> None:
        """Wait for all processes, outside the clock, so that all start at once."""
        if self.strategy.uses_process_group and group is not None and group.size > 1:
            group.init_torch_distributed()
        self.crew.world.barrier()

    @property
    def saved_bytes(self) -> int:
        """The logical size of what this process saves."""
        return _size_bytes(self.parts.saves.owned) if self.parts.saves else 0

    @property
    def loaded_bytes(self) -> int:
        """The logical size of what this process loads."""
        return _size_bytes(self.parts.loads.held) if self.parts.loads else 0


class Trial:
    """One trial of one strategy: what this process measures goes into its log."""

    def __init__(
        self, number: int, subject: Subject, log: TimingLog, clock: Callable[[], float], *, warmup: bool
    ) -> None:
        self._number, self._subject = number, subject
        self._log, self._clock, self._warmup = log, clock, warmup

    def save(self, final: Path) -> None:
        """Write a checkpoint until it is durable under its final name.

        Raises:
            TrialError: if the strategy failed, here or on another rank.
        """
        crew = self._subject.crew
        begun = commit.begin(final) if crew.leads else None
        staging = Path(crew.here.broadcast(str(begun.path) if begun else None, received.text))
        try:
            with writeback.watched(staging) as descriptor:
                self._save(final, staging, begun, descriptor)
        finally:
            if begun:
                begun.release()

    def _save(self, final: Path, staging: Path, begun: commit.Staging | None, descriptor: int) -> None:
        subject, crew = self._subject, self._subject.crew
        files: list[Path] | None = None
        _have_memory(subject.saved_bytes)
        subject.meet(crew.saving)
        times: list[float] = []
        problem = ""
        with collect() as cost:
            times.append(self._clock())
            try:
                if subject.parts.saves:
                    files = subject.save(staging)
                    times.append(self._clock())
                    self._sync(staging, files)
                    times.append(self._clock())
                self._commit(begun)
            except LostRankError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001  # whatever a library raises, the sample tells it
                problem = f"{type(error).__name__}: {error}"
                crew.world.fail(problem)
            times.append(self._clock())
        if subject.parts.saves:
            self._saved(final, staging, files, times, cost, problem, descriptor)
        if problem:
            raise TrialError(problem)
        inventory = asdict(listing.inventory(final)) if crew.leads else None
        columns = [column.name for column in fields(listing.Inventory)]
        found = crew.world.read(crew.world.gather(inventory), received.counts(columns))
        if found:
            self._log.disk.append(DiskUse(trial=self._number, **_together([each for each in found if each])))

    def _sync(self, staging: Path, files: list[Path] | None) -> None:
        """Bring what this process wrote to stable storage; directories that others write into too come later."""
        if files is None:
            durable.flush(staging, files=not self._subject.strategy.syncs_files)
        elif not self._subject.strategy.syncs_files:
            durable.sync_files(files)

    def _commit(self, begun: commit.Staging | None) -> None:
        """Once everybody's files are on storage, and not before, the checkpoint gets its name."""
        crew = self._subject.crew
        crew.world.barrier()
        if begun:
            if not self._subject.parts.alone:
                durable.flush(begun.path, files=False)
            begun.publish()
        crew.world.barrier()

    def _saved(
        self,
        final: Path,
        staging: Path,
        files: list[Path] | None,
        times: list[float],
        cost: Cost,
        problem: str,
        descriptor: int,
    ) -> None:
        """Note what a save took, and look whether it is as durable as it should be."""
        size_bytes = self._subject.saved_bytes
        phases = [("call", "returned"), ("sync", "synced"), ("commit", "committed")]
        for (phase, durability), start, end in zip(phases, times, times[1:], strict=False):
            self._sample("save", phase, start, end, size_bytes, durability=durability, problem=problem)
        dirty = None
        if not problem and files is None:
            dirty = page_cache.dirty_pages(final)
        elif not problem:
            dirty = page_cache.dirty_pages_of([final / each.relative_to(staging) for each in files or []])
        if dirty:
            problem = f"{_NOT_DURABLE}: {dirty} pages were not on storage when it had ended"
        if not problem:
            try:  # outside the clock: it syncs the whole filesystem, other programs' files too
                writeback.raise_errors(descriptor)
            except OSError as error:
                problem = f"{_NOT_DURABLE}: {error}"
        self._sample(
            "save",
            "total",
            times[0],
            times[-1],
            size_bytes,
            durability="committed",
            cost=cost,
            dirty=dirty,
            problem=problem,
        )

    def load(self, final: Path, *, cold: bool) -> None:
        """Read the checkpoint back, with the page cache emptied or as it is, and compare every bit.

        Raises:
            TrialError: if the strategy failed, here or on another rank.
        """
        subject, crew = self._subject, self._subject.crew
        dealt = crew.node.rank, crew.node.size
        if cold:
            page_cache.evict(final, dealt)
            crew.node.barrier()
        pages = crew.node.all_gather(page_cache.residency(final, dealt))
        resident = page_cache.fraction(crew.node.read(pages, received.pair(received.count, received.number)))
        # What this node never had is in none of its caches.
        provable = not self._log.storage.get("cache_caveat") or self._log.header.read_shift
        cache = ("cold" if resident < COLD_BELOW and provable else "cold-unproven") if cold else "warm"
        problem, loaded = "", {}
        gc.collect()
        _have_memory(subject.loaded_bytes)
        subject.meet(crew.loading)
        if not subject.parts.loads:
            return
        with collect() as cost:
            start = self._clock()
            try:
                loaded = subject.load(final)
            except LostRankError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001  # as above
                problem = f"{type(error).__name__}: {error}"
                crew.world.fail(problem)
            end = self._clock()
        wrong = "" if problem else self._verify(loaded)
        self._sample(
            "load",
            "total",
            start,
            end,
            subject.loaded_bytes,
            cache=cache,
            load_number=0 if cold else 1,
            resident=resident,
            cost=cost,
            problem=problem or wrong,
        )
        if problem:
            raise TrialError(problem)

    def _verify(self, loaded: State) -> str:
        """What is wrong with a loaded state, empty if nothing; then poison it."""
        try:
            if _storages(self._subject.state) & _storages(loaded):
                return f"{_DIFFERS}: it is the saved one itself, and nothing was read"
            file = mapped_file(loaded)
            if file:
                return f"{_NOT_OWNED}: it is mapped from {file}, which is read when somebody looks"
            mismatch = first_difference(self._subject.expected, loaded)
            poison(loaded)
        except Exception as error:  # noqa: BLE001  # a strategy may return anything
            return f"{_DIFFERS}: it is no dict of tensors ({type(error).__name__}: {error})"
        return f"{_DIFFERS}: {mismatch}" if mismatch else ""

    def _sample(
        self,
        operation: str,
        phase: str,
        start: float,
        end: float,
        size_bytes: int,
        *,
        durability: str = NOT_APPLICABLE,
        cache: str = NOT_APPLICABLE,
        load_number: int = -1,
        resident: float = math.nan,
        cost: Cost | None = None,
        dirty: int | None = None,
        problem: str = "",
    ) -> None:
        self._log.samples.append(
            Sample(
                trial=self._number,
                warmup=self._warmup,
                rank=self._subject.crew.place.number,
                operation=operation,
                phase=phase,
                start_s=start,
                duration_s=end - start,
                state_bytes=size_bytes,
                durability=durability,
                cache=cache,
                load_number=load_number,
                resident_fraction=resident,
                valid=not problem,
                reason=problem,
                dirty_pages=-1 if dirty is None else dirty,
                **asdict(cost or Cost()),
            )
        )


def _have_memory(size_bytes: int) -> None:
    """Touch as much memory as the operation will want, and give it back.

    A virtual machine's host takes memory back that has been free for a few seconds. To get it again can take longer
    than the disk does, and whether it has to depends on what ran before, and not on the strategy.
    """
    direct_io.populate(direct_io.aligned_buffer(max(1, size_bytes)))


def _together(found: list[dict[str, int]]) -> dict[str, int]:
    """What lies in several directories: on node-local targets each node has its own."""
    counts = {key: sum(each[key] for each in found) for key in found[0]}
    return counts | {"largest_file_bytes": max(each["largest_file_bytes"] for each in found)}


def _size_bytes(share: tuple[Shard, ...]) -> int:
    return state_bytes(tensors_of(share))


def _storages(state: State) -> set[int]:
    """The addresses of the memory that a state's tensors lie in."""
    return {tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}
