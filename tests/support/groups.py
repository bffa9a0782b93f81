"""Process groups for tests of a single rank."""

from __future__ import annotations

from typing import Any

from ckpt.process_group.group import ProcessGroup


class UnaskedGroup(ProcessGroup):
    """One rank of a group whose other ranks are never needed: asking them for anything fails the test."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_gather(self, value: Any) -> list[Any]:
        """Fail the test."""
        raise AssertionError(f"rank {self.rank} waits for the others, with {value}")

    def gather(self, value: Any) -> list[Any]:
        """Fail the test."""
        raise AssertionError(f"rank {self.rank} waits for the others, with {value}")

    def fail(self, reason: str) -> None:
        """Fail the test."""
        raise AssertionError(reason)

    def init_torch_distributed(self) -> None:
        """Fail the test."""
        raise AssertionError("no process group is needed")
