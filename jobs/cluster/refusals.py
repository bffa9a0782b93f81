"""What Slurm says when it does not take jobs, and what to do about it; pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.errors import NoAnswerError, SubmissionError

SUBMIT_LIMIT = re.compile(r"(Max|Grp)Submit")
"""In sbatch's message when a user has as many jobs in the queue as an association or a QOS allows."""

NOT_NOW = re.compile(r"allocation failure: Requested node configuration is not available")
"""What sbatch --test-only says where no node can have these keys, and where all that could are down or drained."""

UNSURE = re.compile(
    r"did not answer|timed out|unable to contact|connect failure|connection (refused|reset)|zero bytes", re.IGNORECASE
)
"""In messages of a controller that may have taken the jobs all the same, so that they must not be sent again."""

_SPEAKER = re.compile(r"^(sbatch failed: )?((sbatch|srun): )?((error|fatal): )?")


def words(message: str) -> str:
    """The message of sbatch or srun, in one line."""
    lines = [_SPEAKER.sub("", line.strip()) for line in message.splitlines()]
    unique = dict.fromkeys(line for line in lines if line)
    return "; ".join([line for line in unique if not line.endswith("Unspecified error")] or unique)


def not_taken(what: str, refused: str, requests: Sequence[str]) -> SubmissionError:
    """The error of jobs that Slurm did not take, with what to correct; nothing is to correct if it didn't answer."""
    if UNSURE.search(refused):
        return NoAnswerError(f"{what}: {refused}\ntype the same command again when Slurm answers")
    return SubmissionError("\n".join([f"{what}: {refused}", *filter(None, requests), remedy(refused)]))


def remedy(refused: str) -> str:
    """What to write when Slurm refuses jobs."""
    if re.search(r"\baccounts?\b", refused, re.IGNORECASE):
        return "write `account = ...` below [slurm], or export SBATCH_ACCOUNT"
    return "correct the keys below [slurm], or below the target's own slurm table"
