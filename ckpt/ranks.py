"""Ranks that save and load together: how they wait for each other and exchange small values, and notice who is gone.

Over torch.distributed's key-value store and not over gloo's collectives, because a collective that lost a rank can
neither say which nor be used again. gloo is there for the strategies that need it: `use_process_group`.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ckpt.errors import LostRankError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # it is documented all the same

_MOST_NAMED = 5

_LOOK_S = 0.5
"""How often a rank that waits looks whether another has failed."""

_FAILURE = "failure"
"""The key of the first failure, one for all groups of a store: whoever waits has to know."""

_process_group: list[str] = []
"""The group that is torch.distributed's default in this process, by name."""

_GRACE_S = 10
"""How much longer the others wait than the first rank, so that it is the first who tells whom all were waiting for."""


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

    def broadcast(self, value: Any) -> Any:
        """The first rank's value; as all others, JSON.

        Raises:
            LostRankError: as above.
        """
        return self.all_gather(value if self.rank == 0 else None)[0]


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


class _Bounded:
    """A store none of whose calls holds this process for long: a server that hangs holds a thread of its own.

    torch's own limits don't: a client that gives up waiting asks the server to forget it, and waits for the answer.
    """

    def __init__(self, store: Store, limit_s: float) -> None:
        self.store = store
        self._limit_s = limit_s
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._hangs = False
        threading.Thread(target=self._serve, daemon=True).start()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call one of the store's methods.

        Raises:
            TimeoutError: if it doesn't return in time, or an earlier one did not.
        """
        if self._hangs:
            raise TimeoutError("the store does not answer")
        answer: Future[Any] = Future()
        self._calls.put((answer, getattr(self.store, name), arguments))
        try:
            return answer.result(self._limit_s)
        except TimeoutError:
            self._hangs = True
            raise TimeoutError(f"the store did not answer within {self._limit_s:.0f} s") from None

    def _serve(self) -> None:
        while True:
            answer, function, arguments = self._calls.get()
            try:
                answer.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001  # whoever called gets it
                answer.set_exception(error)


class StoreRanks(Ranks):
    """Processes that share a store, whose server is the first one.

    Args:
        store: shared by all.
        members: who belongs to the group: each one's place among all processes, and what messages call it. The
            group's ranks are in this order.
        me: this process's place among all.
        timeout_s: how long to wait for others.
        name: of the group, among all that share the store.
    """

    def __init__(
        self, store: Store | _Bounded, members: Sequence[tuple[int, str]], me: int, timeout_s: float, name: str
    ) -> None:
        self.rank = [place for place, _ in members].index(me)
        self.size = len(members)
        self._store = store if isinstance(store, _Bounded) else _Bounded(store, timeout_s + _GRACE_S)
        self._members, self._timeout_s, self._name = members, timeout_s, name
        self._count = 0

    def subgroup(self, places: Collection[int], name: str) -> StoreRanks:
        """Those of the group's members with these places among all processes; this process is one of them."""
        members = [each for each in self._members if each[0] in places]
        me = self._members[self.rank][0]
        return StoreRanks(self._store, members, me, self._timeout_s, f"{self._name}/{name}")

    def all_gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank: the first one collects and gives back."""
        with self._losses_told():
            values = self._collect(value)
            answer = f"{self._name}/{self._count}/all"
            if self.rank == 0:
                self._store.call("set", answer, json.dumps(values))
                return values
            self._wait([answer], self._timeout_s + _GRACE_S, 0)
            found: list[Any] = json.loads(self._store.call("get", answer))
            return found

    def gather(self, value: Any) -> list[Any]:
        """On the first rank everybody's value, by rank; nothing on the others, which don't wait."""
        with self._losses_told():
            return self._collect(value)

    def _collect(self, value: Any) -> list[Any]:
        self._count += 1
        key = f"{self._name}/{self._count}"
        if self.rank:
            self._store.call("set", f"{key}/{self.rank}", json.dumps(value))
            return []
        if self.size == 1:
            return [value]
        others = [f"{key}/{rank}" for rank in range(1, self.size)]
        self._wait(others, self._timeout_s, *range(1, self.size))
        return [value, *map(json.loads, self._store.call("multi_get", others))]

    def gather_those_left(self, topic: str, value: Any, within_s: float) -> dict[int, Any]:
        """On the first rank, the values of all that answer in time, by rank; on the others nothing, without a wait.

        For the end, when some may be lost; once for each topic.
        """
        key = f"{self._name}/{topic}/{self.rank}"
        if self.rank:
            with suppress(RuntimeError, OSError):  # the server may be gone already
                self._store.call("set", key, json.dumps(value))
            return {}
        found = {0: value}
        end = time.monotonic() + within_s
        for rank in range(1, self.size):
            key = f"{self._name}/{topic}/{rank}"
            while not self._store.call("check", [key]) and time.monotonic() < end:
                time.sleep(0.05)
            if self._store.call("check", [key]):
                found[rank] = json.loads(self._store.call("get", key))
        return found

    def send(self, to: int, value: Any) -> None:
        """Leave a value for another rank of the group.

        Raises:
            LostRankError: if the first rank is gone, through which it would go.
        """
        with self._losses_told():
            self._store.call("set", f"{self._name}/mail/{self.rank}/{to}", json.dumps(value))

    def receive(self, sender: int) -> Any:
        """Wait for the value that another rank leaves, and take it.

        Raises:
            LostRankError: if it doesn't come.
        """
        key = f"{self._name}/mail/{sender}/{self.rank}"
        with self._losses_told():
            self._wait([key], self._timeout_s, sender)
            value = json.loads(self._store.call("get", key))
            self._store.call("delete_key", key)
            return value

    def fail(self, reason: str) -> None:
        """Leave the reason where everybody who waits looks."""
        self._leave(f"{self.called(self.rank)}: {reason}")

    def _leave(self, failure: str) -> None:
        with suppress(RuntimeError, OSError):  # where the server is gone, everybody sees that
            if not self._store.call("check", [_FAILURE]):  # the first one stays
                self._store.call("set", _FAILURE, json.dumps(failure))

    @contextmanager
    def _losses_told(self) -> Iterator[None]:
        """Whoever notices a loss tells the others, who wait for other things."""
        try:
            yield
        except LostRankError as error:
            self._leave(str(error))
            raise
        except (RuntimeError, OSError) as error:  # what torch raises when the server is gone
            raise LostRankError(
                f"{self.called(0)} is gone or hangs, through which the ranks talk ({_short(error)})"
            ) from error

    def use_process_group(self) -> None:
        """Start gloo among these ranks, unless it runs already."""
        import torch.distributed as dist

        if dist.is_initialized():
            if _process_group == [self._name]:
                return
            dist.destroy_process_group()
        self._count += 1
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(  # type: ignore[attr-defined]  # as above
                f"{self._name}/gloo/{self._count}", self._store.store
            ),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self._timeout_s),
        )
        _process_group[:] = [self._name]

    def called(self, rank: int) -> str:
        """What messages call a rank of this group: by its place among all processes."""
        place, host = self._members[rank]
        return f"rank {place} ({host})"

    def _wait(self, keys: Sequence[str], timeout_s: float, *ranks: int) -> None:
        """Wait for all keys, each from its rank, but no longer than that, nor once a rank has failed."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                self._store.call("wait", list(keys), timedelta(seconds=max(0.01, min(_LOOK_S, end - time.monotonic()))))
            except RuntimeError as error:
                if "timeout" not in str(error).lower():
                    raise
            else:
                return
            if self._store.call("check", [_FAILURE]):
                raise LostRankError(json.loads(self._store.call("get", _FAILURE)))
            if time.monotonic() > end:
                late = [rank for key, rank in zip(keys, ranks, strict=True) if not self._store.call("check", [key])]
                more = f" and {len(late) - _MOST_NAMED} more" if len(late) > _MOST_NAMED else ""
                names = ", ".join(map(self.called, late[:_MOST_NAMED])) + more
                raise LostRankError(f"{names} did not answer within {timeout_s:.0f} s")


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
