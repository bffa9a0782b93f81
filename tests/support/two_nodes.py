"""Two nodes with a process each, in one process."""

from __future__ import annotations

from typing import Any

from ckpt.process_group.group import SingleProcess


class TwoNodes(SingleProcess):
    """A group in which another node answers with its own client."""

    def __init__(self, other: tuple[str, str]) -> None:
        self._other = other

    def all_gather(self, value: Any) -> list[Any]:
        """The values of this node and the other one."""
        return [value, self._other]
