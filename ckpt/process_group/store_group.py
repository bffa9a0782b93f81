"""A process group over a key-value store, which reports lost ranks by name.

gloo's collectives can't be used for that: one that lost a rank doesn't report which, and can't be used again. gloo is
started only for the strategies that need it (`init_torch_distributed`). The processes of a job share an `Exchange`,
which admits only processes that know a secret; torch.distributed's stores work as well where all hosts are trusted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ckpt.errors import LostRankError
from ckpt.process_group import gloo
from ckpt.process_group.exchange import FAILURE, GONE, Exchange
from ckpt.process_group.group import ProcessGroup, first_line

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # it is documented all the same

_MOST_NAMED = 5
_LONGEST_REASON = 10_000

_POLL_S = 0.5
"""The longest pause between two looks into a store; an `Exchange` wakes those that wait instead."""

_GRACE_S = 10
"""How much longer the other ranks wait than the first one: it alone knows which rank is late, and reports it first."""


class StoreGroup(ProcessGroup):
    """A group of processes that share a store, which the first process serves.

    Args:
        store: shared by all processes; the server of an `Exchange` ends all waits for a process that is gone.
        members: the group's processes in the order of their ranks: the number of each in the job, and its host, or an
            empty string.
        number: this process's number in the job.
        timeout_s: how long to wait for other ranks.
        name: of the group, unique among the groups that share the store.
    """

    def __init__(
        self, store: Store | Exchange, members: Sequence[tuple[int, str]], number: int, timeout_s: float, name: str
    ) -> None:
        self.rank = [member for member, _ in members].index(number)
        self.size = len(members)
        self._store = store
        self._members, self._timeout_s, self._name = members, timeout_s, name
        self._server = self.describe(0)
        self._count = 0

    def subgroup(self, numbers: Collection[int], name: str) -> StoreGroup:
        """Return the group of the members with these numbers in the job; this process must be one of them."""
        members = [member for member in self._members if member[0] in numbers]
        group = StoreGroup(self._store, members, self._members[self.rank][0], self._timeout_s, f"{self._name}/{name}")
        group._server = self._server  # the store's server, which may be no member
        return group

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks: the first rank collects and returns them."""
        with self._report_losses():
            values = self._collect(value)
            key = f"{self._name}/{self._count}/all"
            if self.rank == 0:
                self._store.set(key, json.dumps(values))
                return values
            self._wait([key], self._timeout_s + _GRACE_S, 0)
            values = self._parse(0, self._store.get(key))
            if not isinstance(values, list) or len(values) != self.size:
                raise LostRankError(f"{self.describe(0)} sent an unexpected value: not a list of {self.size} values")
            return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on the first rank, and an empty list on the others, which don't wait."""
        with self._report_losses():
            return self._collect(value)

    def _collect(self, value: Any) -> list[Any]:
        self._count += 1
        key = f"{self._name}/{self._count}"
        if self.rank:
            self._store.set(f"{key}/{self.rank}", json.dumps(value))
            return []
        if self.size == 1:
            return [value]
        keys = [f"{key}/{rank}" for rank in range(1, self.size)]
        self._wait(keys, self._timeout_s, *range(1, self.size))
        texts = self._store.multi_get(keys)
        if isinstance(self._store, Exchange):  # a loop has a collective in every step, and the server keeps all keys
            self._store.delete_soon([*keys, f"{self._name}/{self._count - 1}/all"])  # which all ranks have read by now
        return [value, *(self._parse(rank, text) for rank, text in enumerate(texts, 1))]

    def _parse(self, rank: int, text: bytes) -> Any:
        """Parse the JSON that a rank sent."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LostRankError(f"{self.describe(rank)} sent invalid JSON: {first_line(error)}") from error

    def gather_survivors(self, topic: str, value: Any, within_s: float) -> dict[int, Any]:
        """Return on the first rank, by rank, the values of the ranks that answer in time.

        For the end of a job, when ranks may be lost. The other ranks get an empty dict and don't wait.

        Args:
            topic: names this exchange; use each topic once.
            value: this rank's value, serialisable as JSON.
            within_s: how long the first rank waits for all others together.
        """
        key = f"{self._name}/{topic}/{self.rank}"
        if self.rank:
            with suppress(RuntimeError, OSError):  # the server may be gone already
                self._store.set(key, json.dumps(value))
            return {}
        values = {0: value}
        end = time.monotonic() + within_s
        for rank in range(1, self.size):
            key = f"{self._name}/{topic}/{rank}"
            while not self._store.check([key]) and time.monotonic() < end:
                if self._store.check([f"{GONE}/{self._members[rank][0]}"]):
                    break
                time.sleep(0.05)
            if self._store.check([key]):
                values[rank] = self._parse(rank, self._store.get(key))
        return values

    @property
    def first_is_lost(self) -> str:
        """A message if this process noticed that the first rank is gone or hangs; empty otherwise."""
        broken = self._store.broken if isinstance(self._store, Exchange) else ""
        return f"{self._server} is gone or hangs" if broken else ""

    def forget(self) -> None:
        """Remove the values that this group's collectives left in the store, when no rank reads them any more."""
        for count in range(1, self._count + 1):
            for last in ("all", *range(1, self.size)):
                self._store.delete_key(f"{self._name}/{count}/{last}")

    def leave(self) -> None:
        """Disconnect in order, so that the server doesn't report this process as lost."""
        if isinstance(self._store, Exchange):
            self._store.leave()

    def send(self, to: int, value: Any) -> None:
        """Send a value, serialisable as JSON, to another rank of the group, without waiting for it.

        Raises:
            LostRankError: if the first rank, which relays the value, is gone or hangs.
        """
        with self._report_losses():
            self._store.set(f"{self._name}/mail/{self.rank}/{to}", json.dumps(value))

    def receive(self, sender: int) -> Any:
        """Wait for a value that another rank of the group sends, and return it.

        Raises:
            LostRankError: if it doesn't arrive in time, or a rank failed.
        """
        key = f"{self._name}/mail/{sender}/{self.rank}"
        with self._report_losses():
            self._wait([key], self._timeout_s, sender)
            value = self._parse(sender, self._store.get(key))
            self._store.delete_key(key)
            return value

    def fail(self, reason: str) -> None:
        """Report a failure of this rank to all ranks that wait, now or later."""
        self._report(f"{self.describe(self.rank)}: {reason}")

    def _report(self, failure: str) -> None:
        """Store a failure where all waiting ranks look, unless an earlier one is stored there."""
        with suppress(RuntimeError, OSError):  # if the server is gone, every rank notices
            if not self._store.check([FAILURE]):
                self._store.set(FAILURE, json.dumps(failure))

    @contextmanager
    def _report_losses(self) -> Iterator[None]:
        """Report a loss that this rank notices to the other ranks, which may be waiting for other ones."""
        try:
            yield
        except LostRankError as error:
            self._report(str(error))
            raise
        except (RuntimeError, OSError) as error:  # torch's stores raise RuntimeError if their server is gone
            reason = f"{self._server} is gone or hangs, and it relays the ranks' messages ({first_line(error)})"
            raise LostRankError(reason) from error

    def init_torch_distributed(self) -> None:
        """Make this group the default process group of torch.distributed, with gloo, unless it is already."""
        self._count += 1
        prefix = f"{self._name}/gloo/{self._count}"
        gloo.start(self._store, self._name, prefix, self.rank, self.size, self._timeout_s)

    def describe(self, rank: int) -> str:
        """Return the name of a rank for messages: its number in the job, and its host if that is known."""
        number, host = self._members[rank]
        return f"rank {number} ({host})" if host else f"rank {number}"

    def _wait(self, keys: Sequence[str], timeout_s: float, *ranks: int) -> None:
        """Wait until all keys are set.

        Args:
            keys: to wait for.
            timeout_s: how long to wait at most.
            ranks: that set the keys, in the keys' order.

        Raises:
            LostRankError: if a key is not set in time, or a rank reported a failure.
        """
        end = time.monotonic() + timeout_s
        pause_s = 0.001
        while not self._are_set(keys, end - time.monotonic()):
            if self._store.check([FAILURE]):
                raise LostRankError(_parse_failure(self._store.get(FAILURE)))
            if time.monotonic() > end:
                late = [rank for key, rank in zip(keys, ranks, strict=True) if not self._store.check([key])]
                more = f" and {len(late) - _MOST_NAMED} more" if len(late) > _MOST_NAMED else ""
                names = ", ".join(map(self.describe, late[:_MOST_NAMED])) + more
                raise LostRankError(f"{names} did not answer within {timeout_s:.0f} s")
            if not isinstance(self._store, Exchange):
                time.sleep(min(pause_s, max(0, end - time.monotonic())))
                pause_s = min(2 * pause_s, _POLL_S)

    def _are_set(self, keys: Sequence[str], limit_s: float) -> bool:
        """Return whether all keys are set; an `Exchange` waits for them, or for a failure."""
        if not isinstance(self._store, Exchange):  # torch's stores print warnings while one waits
            return bool(self._store.check(list(keys)))
        try:
            self._store.wait(list(keys), timedelta(seconds=max(0.01, limit_s)))
        except RuntimeError as error:
            if "timeout" not in str(error).lower():
                raise
            return False
        return True


def _parse_failure(text: bytes) -> str:
    """Return the failure that a rank reported, or a message if it isn't readable."""
    try:
        reason = json.loads(text)
    except (ValueError, RecursionError):
        reason = None
    return reason[:_LONGEST_REASON] if isinstance(reason, str) else "a rank failed and left no readable reason"
