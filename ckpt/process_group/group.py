"""The processes that save and load one checkpoint together, as a strategy sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ckpt.errors import LostRankError

T = TypeVar("T")


class ProcessGroup(ABC):
    """A group of processes, from the point of view of one of them. Every method that waits has a time limit.

    Attributes:
        rank: this process's number in the group, from 0.
        size: how many processes the group has.
    """

    rank: int
    size: int

    @abstractmethod
    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks.

        Args:
            value: this rank's value, serialisable as JSON.

        Raises:
            LostRankError: if a rank did not answer, or failed; the message names it.
        """

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on the first rank, and an empty list on the others, which don't wait.

        Args:
            value: this rank's value, serialisable as JSON.

        Raises:
            LostRankError: if a rank did not answer, or failed; the message names it.
        """

    @abstractmethod
    def fail(self, reason: str) -> None:
        """Report to all ranks that wait for this one, now or later, that it can't go on."""

    @abstractmethod
    def init_torch_distributed(self) -> None:
        """Make this group the default process group of torch.distributed, with gloo."""

    def barrier(self) -> None:
        """Wait until every rank has called this.

        Raises:
            LostRankError: if a rank did not answer, or failed; the message names it.
        """
        self.all_gather(None)

    def broadcast(self, value: Any, read: Callable[[Any], T] | None = None) -> Any:
        """Return the first rank's value on every rank.

        Args:
            value: serialisable as JSON; the other ranks' values are ignored.
            read: checks and converts the value, as in `read`.

        Raises:
            LostRankError: if a rank did not answer, or failed, or `read` rejects the value.
        """
        values = self.all_gather(value if self.rank == 0 else None)[:1]
        return (self.read(values, read) if read else values)[0]

    def describe(self, rank: int) -> str:
        """Return the name of a rank for messages."""
        return f"rank {rank}"

    def read(self, values: Sequence[Any], read: Callable[[Any], T]) -> list[T]:
        """Check and convert values that came from other ranks before anything else uses them.

        Args:
            values: the ranks' values, from the first rank on; none on a rank that gathers nothing.
            read: returns the converted value; raises ValueError or TypeError if it has another type or shape.

        Raises:
            LostRankError: if `read` rejects a value; the message names the rank that sent it.
        """
        converted = []
        for rank, value in enumerate(values):
            try:
                converted.append(read(value))
            except (ValueError, TypeError) as error:
                reason = f"{self.describe(rank)} sent an unexpected value: {first_line(error)}"
                self.fail(reason)
                raise LostRankError(reason) from error
        return converted


class SingleProcess(ProcessGroup):
    """A group of one process."""

    rank, size = 0, 1

    def all_gather(self, value: Any) -> list[Any]:
        """Return the process's own value in a list."""
        return [value]

    def gather(self, value: Any) -> list[Any]:
        """Return the process's own value in a list."""
        return [value]

    def fail(self, reason: str) -> None:
        """Do nothing: no other rank waits."""

    def init_torch_distributed(self) -> None:
        """Do nothing: one process needs no process group."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, of at most 200 characters, or the error's type."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
