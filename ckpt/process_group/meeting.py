"""The ranks of a distributed job meet before they save or load together, so that none waits for one that never comes.

Every rank comes with what it is about to do, and rank 0 judges whether that fits together. Until then the ranks
exchange messages through the store of torch.distributed's default process group, with a time limit. What they do
together afterwards uses a gloo group of this package's own: the default group belongs to the training loop, which may
be using it at this moment. If a rank dies, gloo's connections break, and the others notice at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ckpt.errors import CheckpointError, LostRankError
from ckpt.process_group.group import first_line
from ckpt.process_group.store_group import StoreGroup

_WORK_TIMEOUT_S = 7200
"""How long a rank waits for another that is writing or reading; a rank that dies is noticed at once."""

_ROLL_CALL_S = 10
"""How long the ranks look for the one that broke the connection."""

_T = TypeVar("_T")
Judge = Callable[[list[Any]], Any]
"""Takes what the ranks came with, in the order of the ranks; returns what all should know, serialisable as JSON."""


@dataclass
class _Known:
    """What this process keeps for a default process group and a purpose."""

    purpose: str

    meetings: int = 0
    """How many meetings there were: all ranks count alike, and so have the same names for the next one."""

    gloo: list[Any] = field(default_factory=list)
    """The group of this package's own, or nothing. Its connections end when nothing else refers to it."""

    last: list[StoreGroup] = field(default_factory=list)
    """The last meeting's group, or nothing: its messages lie in the store until the next meeting."""

    def close(self) -> None:
        """Give up the gloo group, so that ranks that wait for this one notice."""
        import torch.distributed as dist

        if self.gloo:
            dist.destroy_process_group(self.gloo.pop())


_known: WeakKeyDictionary[Any, dict[str, _Known]] = WeakKeyDictionary()
"""By torch.distributed's default process group, which a program may end and start again, and by purpose."""


def meet(value: Any, judge: Judge, timeout_s: float, call: str, purpose: str = "") -> tuple[Meeting, Any]:
    """Wait until all ranks of torch.distributed's default process group have called this, and agree.

    Args:
        value: what this rank comes with, serialisable as JSON.
        judge: called on rank 0; it raises a CheckpointError if the ranks' values don't fit together.
        timeout_s: how long to wait for the other ranks.
        call: what every rank must call, for messages.
        purpose: what the ranks do together afterwards. Every purpose has a gloo group of its own, so that a thread can
            use one while another thread uses another.

    Returns:
        The meeting, and what `judge` returned.

    Raises:
        CheckpointError: on every rank that came, if another didn't in time, or `judge` raised one.
    """
    import torch.distributed as dist

    known = _known.setdefault(dist.group.WORLD, {}).setdefault(purpose, _Known(purpose))
    known.meetings += 1
    group = _over_store(f"{purpose} meeting {known.meetings}".lstrip(), timeout_s)
    try:
        came = group.gather([bool(known.gloo), value])
        if came and known.last:
            known.last.pop().forget()
        known.last[:] = [group]
        is_open, verdict, problem = group.broadcast(_judged(came, judge) if came else None)
        group.barrier()  # a rank that had given up before the last one came would not take part in what follows
    except LostRankError as error:
        raise CheckpointError(f"{error}: all ranks of the job must call {call}") from error
    if problem:
        raise CheckpointError(problem)
    meeting = Meeting(known)
    if not is_open:
        meeting.open()
    return meeting, verdict


def _judged(came: list[Any], judge: Judge) -> list[Any]:
    try:
        return [all(is_open for is_open, _ in came), judge([value for _, value in came]), ""]
    except CheckpointError as error:
        return [False, None, str(error)]


class Meeting:
    """The ranks that came, and work together until one of them fails.

    Attributes:
        rank: this process's number among them.
        size: how many they are.
    """

    def __init__(self, known: _Known) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._known = known

    @property
    def gloo(self) -> Any:
        """The process group for what they do together. Keep no reference to it."""
        return self._known.gloo[0]

    def open(self) -> None:
        """Make the gloo group; every rank calls this."""
        import torch.distributed as dist

        self._known.close()
        limit = timedelta(seconds=_WORK_TIMEOUT_S)
        self._known.gloo += [self.collective(lambda: dist.new_group(backend="gloo", timeout=limit))]

    def share(self, work: Callable[[], Any]) -> list[Any]:
        """Do something on every rank that calls no other rank; returns all ranks' results, serialisable as JSON.

        Raises:
            CheckpointError: on every rank, if the work of one raises anything; the message names the rank.
        """
        import torch.distributed as dist

        try:
            outcome = [work(), ""]
        except CheckpointError as error:
            outcome = [None, str(error)]
        except Exception as error:  # noqa: BLE001  # every rank raises it
            outcome = [None, f"{type(error).__name__}: {error}"]
        texts = [""] * self.size
        self.collective(lambda: dist.all_gather_object(texts, json.dumps(outcome), group=self.gloo))
        results, errors = zip(*map(json.loads, texts), strict=True)
        if message := named(errors):
            raise CheckpointError(message)
        return list(results)

    def share_first(self, work: Callable[[], Any]) -> Any:
        """Do something on rank 0 that calls no other rank; returns its result, serialisable as JSON, on every rank.

        Raises:
            CheckpointError: on every rank, if the work raises anything.
        """
        return self.share(lambda: None if self.rank else work())[0]

    def collective(self, work: Callable[[], _T]) -> _T:
        """Do something that all ranks do together, on this package's group.

        Raises:
            CheckpointError: on every rank, if one of them raises anything else than a CheckpointError, or dies. Those
                are for errors that the work itself raises on every rank.
        """
        try:
            return work()
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the ranks no longer expect the same messages
            reason = f"{type(error).__name__}: {first_line(error)}"
            _without_frames(error)
        except BaseException:
            self._known.close()
            raise
        self._known.close()
        raise CheckpointError(_roll_call(f"{self._known.purpose} roll call {self._known.meetings}".lstrip(), reason))


def named(errors: tuple[str, ...] | list[str]) -> str:
    """Return the first error with the ranks that had it; empty if no rank had one.

    Args:
        errors: by rank; empty for the ranks without.
    """
    message = next(filter(None, errors), "")
    ranks = [rank for rank, error in enumerate(errors) if error == message]
    if not message or len(ranks) == len(errors):
        return message
    return f"{', '.join(f'rank {rank}' for rank in ranks[:5])}{' and others' if len(ranks) > 5 else ''}: {message}"


def _without_frames(error: BaseException | None) -> None:
    """Forget where an error was raised: those functions' variables would keep the gloo group open."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _roll_call(name: str, reason: str) -> str:
    """Return which ranks are gone; or, if none is, why the first of them gave up."""
    try:
        reasons = _over_store(name, _ROLL_CALL_S).all_gather(reason)
    except LostRankError as error:
        return f"{error}, after the connection of the ranks broke ({reason})"
    return f"the connection of the ranks broke: {next((text for text in reasons if 'gloo' not in text), reasons[0])}"


def _over_store(name: str, timeout_s: float) -> StoreGroup:
    """Return all ranks as a group that exchanges messages through the store.

    Raises:
        CheckpointError: if the default process group has no store.
    """
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()  # noqa: SLF001  # it has no public name
    if store is None:
        raise CheckpointError(f"the {dist.get_backend()} process group has no store: use NCCL or gloo")
    members = [(rank, "") for rank in range(dist.get_world_size())]
    shared = dist.PrefixStore(f"ckpt/{name}", store)  # type: ignore[attr-defined]  # it is documented all the same
    return StoreGroup(shared, members, dist.get_rank(), timeout_s, name)
