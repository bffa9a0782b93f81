"""Which of many cases in a loop failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted(case: object) -> Iterator[None]:
    """Add the case to whatever is raised: pytest shows it below the error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the case {case}")
        raise
