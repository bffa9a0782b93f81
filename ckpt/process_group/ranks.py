"""Ranks that save and load together: how they wait for each other and exchange small values, and notice who is gone.

Over a key-value store and not over gloo's collectives, because a collective that lost a rank can neither say which nor
be used again. gloo is there for the strategies that need it: `use_process_group`. Between the processes of a job the
store is an `Exchange`, which strangers can't join; torch.distributed's stores do as well among those who trust all
around them.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ckpt.errors import LostRankError
from ckpt.process_group.exchange import FAILURE, GONE, Exchange, for_torch

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # it is documented all the same

_MOST_NAMED = 5
_LONGEST_REASON = 10_000

_LOOK_S = 0.5
"""How often a rank that waits looks whether another has failed; an `Exchange` wakes it."""

_process_group: list[str] = []
"""The group that is torch.distributed's default in this process, by name."""

_stores_of_gloo: list[Any] = []
"""What gloo was started with: it keeps no reference to the Python part of a store."""

_GRACE_S = 10
"""How much longer the others wait than the first rank, so that it is the first who tells whom all were waiting for."""

T = TypeVar("T")


class Ranks(ABC):
    """A group of processes, as one of them sees it. Every method that waits does so for a bounded time.

    Attributes:
        rank: this one's place, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    @abstractmethod
    def all_gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank; a value is what JSON can hold.

        Raises:
            LostRankError: if a rank did not come, or failed; naming it.
        """

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """On the first rank everybody's value, by rank; nothing on the others, which don't wait.

        Raises:
            LostRankError: as above.
        """

    @abstractmethod
    def fail(self, reason: str) -> None:
        """Tell those that wait for this rank, or will, that it can't go on."""

    @abstractmethod
    def use_process_group(self) -> None:
        """Make these ranks the default process group of torch.distributed (gloo)."""

    def barrier(self) -> None:
        """Wait until everybody is here.

        Raises:
            LostRankError: as above.
        """
        self.all_gather(None)

    def broadcast(self, value: Any, read: Callable[[Any], T] | None = None) -> Any:
        """The first rank's value; as all others, JSON.

        Args:
            value: the first rank's counts.
            read: what the value is made of it, as in `read`.

        Raises:
            LostRankError: as above, and if `read` can't take it.
        """
        values = self.all_gather(value if self.rank == 0 else None)[:1]
        return (self.read(values, read) if read else values)[0]

    def called(self, rank: int) -> str:
        """What messages call a rank of this group."""
        return f"rank {rank}"

    def read(self, values: Sequence[Any], read: Callable[[Any], T]) -> list[T]:
        """What values of the ranks, from the first on, are to be: whatever came in, only that goes on.

        Args:
            values: as they came; none on a rank that gathers nothing.
            read: returns the value that one is, or raises ValueError or TypeError if it is none.

        Raises:
            LostRankError: naming the rank whose value it can't take.
        """
        wanted = []
        for rank, value in enumerate(values):
            try:
                wanted.append(read(value))
            except (ValueError, TypeError) as error:
                reason = f"{self.called(rank)} sent a value of another shape: {_short(error)}"
                self.fail(reason)
                raise LostRankError(reason) from error
        return wanted


class Alone(Ranks):
    """One process."""

    rank, size = 0, 1

    def all_gather(self, value: Any) -> list[Any]:
        """Its own value."""
        return [value]

    def gather(self, value: Any) -> list[Any]:
        """Its own value."""
        return [value]

    def fail(self, reason: str) -> None:
        """Nobody waits."""

    def use_process_group(self) -> None:
        """None is needed."""


class StoreRanks(Ranks):
    """Processes that share a store, whose server is the first one.

    Args:
        store: shared by all; an `Exchange`'s server ends what waits for a process that is gone.
        members: who belongs to the group: each one's place among all processes, and what messages call it. The
            group's ranks are in this order.
        me: this process's place among all.
        timeout_s: how long to wait for others.
        name: of the group, among all that share the store.
    """

    def __init__(
        self, store: Store | Exchange, members: Sequence[tuple[int, str]], me: int, timeout_s: float, name: str
    ) -> None:
        self.rank = [place for place, _ in members].index(me)
        self.size = len(members)
        self._store = store
        self._members, self._timeout_s, self._name = members, timeout_s, name
        self._server = self.called(0)
        self._count = 0

    def subgroup(self, places: Collection[int], name: str) -> StoreRanks:
        """Those of the group's members with these places among all processes; this process is one of them."""
        members = [each for each in self._members if each[0] in places]
        me = self._members[self.rank][0]
        group = StoreRanks(self._store, members, me, self._timeout_s, f"{self._name}/{name}")
        group._server = self._server  # the store's, which may be no member
        return group

    def all_gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank: the first one collects and gives back."""
        with self._losses_told():
            values = self._collect(value)
            answer = f"{self._name}/{self._count}/all"
            if self.rank == 0:
                self._store.set(answer, json.dumps(values))
                return values
            self._wait([answer], self._timeout_s + _GRACE_S, 0)
            return self._answers(self._loads(0, self._store.get(answer)))

    def gather(self, value: Any) -> list[Any]:
        """On the first rank everybody's value, by rank; nothing on the others, which don't wait."""
        with self._losses_told():
            return self._collect(value)

    def _collect(self, value: Any) -> list[Any]:
        self._count += 1
        key = f"{self._name}/{self._count}"
        if self.rank:
            self._store.set(f"{key}/{self.rank}", json.dumps(value))
            return []
        if self.size == 1:
            return [value]
        others = [f"{key}/{rank}" for rank in range(1, self.size)]
        self._wait(others, self._timeout_s, *range(1, self.size))
        came = self._store.multi_get(others)
        return [value, *(self._loads(rank, each) for rank, each in enumerate(came, 1))]

    def _answers(self, values: Any) -> list[Any]:
        """What the first rank gives back."""
        if not isinstance(values, list) or len(values) != self.size:
            raise LostRankError(f"{self.called(0)} sent a value of another shape: no list of {self.size} values")
        return values

    def _loads(self, rank: int, text: bytes) -> Any:
        """A rank's value."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LostRankError(f"{self.called(rank)} sent no JSON: {_short(error)}") from error

    def gather_those_left(self, topic: str, value: Any, within_s: float) -> dict[int, Any]:
        """On the first rank, the values of all that answer in time, by rank; on the others nothing, without a wait.

        For the end, when some may be lost; once for each topic.
        """
        key = f"{self._name}/{topic}/{self.rank}"
        if self.rank:
            with suppress(RuntimeError, OSError):  # the server may be gone already
                self._store.set(key, json.dumps(value))
            return {}
        found = {0: value}
        end = time.monotonic() + within_s
        for rank in range(1, self.size):
            key = f"{self._name}/{topic}/{rank}"
            while not self._store.check([key]) and time.monotonic() < end:
                if self._store.check([f"{GONE}/{self._members[rank][0]}"]):
                    break
                time.sleep(0.05)
            if self._store.check([key]):
                found[rank] = self._loads(rank, self._store.get(key))
        return found

    @property
    def first_is_lost(self) -> str:
        """That the first rank is gone or hangs, if this one has noticed; empty if not."""
        broken = self._store.broken if isinstance(self._store, Exchange) else ""
        return f"{self._server} is gone or hangs" if broken else ""

    def leave(self) -> None:
        """Go, and be missed by nobody."""
        if isinstance(self._store, Exchange):
            self._store.leave()

    def send(self, to: int, value: Any) -> None:
        """Leave a value for another rank of the group.

        Raises:
            LostRankError: if the first rank is gone, through which it would go.
        """
        with self._losses_told():
            self._store.set(f"{self._name}/mail/{self.rank}/{to}", json.dumps(value))

    def receive(self, sender: int) -> Any:
        """Wait for the value that another rank leaves, and take it.

        Raises:
            LostRankError: if it doesn't come.
        """
        key = f"{self._name}/mail/{sender}/{self.rank}"
        with self._losses_told():
            self._wait([key], self._timeout_s, sender)
            value = self._loads(sender, self._store.get(key))
            self._store.delete_key(key)
            return value

    def fail(self, reason: str) -> None:
        """Leave the reason where everybody who waits looks."""
        self._note(f"{self.called(self.rank)}: {reason}")

    def _note(self, failure: str) -> None:
        with suppress(RuntimeError, OSError):  # where the server is gone, everybody sees that
            if not self._store.check([FAILURE]):  # the first one stays
                self._store.set(FAILURE, json.dumps(failure))

    @contextmanager
    def _losses_told(self) -> Iterator[None]:
        """Whoever notices a loss tells the others, who wait for other things."""
        try:
            yield
        except LostRankError as error:
            self._note(str(error))
            raise
        except (RuntimeError, OSError) as error:  # what torch raises when the server is gone
            raise LostRankError(
                f"{self._server} is gone or hangs, through which the ranks talk ({_short(error)})"
            ) from error

    def use_process_group(self) -> None:
        """Start gloo among these ranks, unless it runs already."""
        import torch.distributed as dist

        if dist.is_initialized():
            if _process_group == [self._name]:
                return
            dist.destroy_process_group()
        self._count += 1
        store = for_torch(self._store, self._timeout_s) if isinstance(self._store, Exchange) else self._store
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(f"{self._name}/gloo/{self._count}", store),  # type: ignore[attr-defined]  # as above
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self._timeout_s),
        )
        _process_group[:] = [self._name]
        _stores_of_gloo.append(store)

    def called(self, rank: int) -> str:
        """What messages call a rank of this group: by its place among all processes."""
        place, host = self._members[rank]
        return f"rank {place} ({host})"

    def _wait(self, keys: Sequence[str], timeout_s: float, *ranks: int) -> None:
        """Wait for all keys, each from its rank, but no longer than that, nor once a rank has failed."""
        end = time.monotonic() + timeout_s
        look_s = timeout_s if isinstance(self._store, Exchange) else _LOOK_S
        while True:
            try:
                self._store.wait(list(keys), timedelta(seconds=max(0.01, min(look_s, end - time.monotonic()))))
            except RuntimeError as error:
                if "timeout" not in str(error).lower():
                    raise
            else:
                return
            if self._store.check([FAILURE]):
                raise LostRankError(_reason(self._store.get(FAILURE)))
            if time.monotonic() > end:
                late = [rank for key, rank in zip(keys, ranks, strict=True) if not self._store.check([key])]
                more = f" and {len(late) - _MOST_NAMED} more" if len(late) > _MOST_NAMED else ""
                names = ", ".join(map(self.called, late[:_MOST_NAMED])) + more
                raise LostRankError(f"{names} did not answer within {timeout_s:.0f} s")


def _reason(text: bytes) -> str:
    """The failure that a rank noted, as far as it is one."""
    try:
        reason = json.loads(text)
    except (ValueError, RecursionError):
        reason = None
    return reason[:_LONGEST_REASON] if isinstance(reason, str) else "a rank failed, and left no readable reason"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
