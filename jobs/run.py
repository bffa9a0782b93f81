"""The entry point of jobs that were submitted when it was called `jobs.run`, and may still wait in a queue."""

from jobs.node.run import run_submitted

__all__ = ["run_submitted"]
