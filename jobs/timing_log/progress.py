"""How far a job is: what its timing log adds up to, and the note of it at the beginning of the log's file.

The note saves a watcher of a thousand jobs from reading the logs with HDF5.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.timing_log.loop_rows import Block, LoopSave, blocks_of_runs
from jobs.timing_log.schema import Header, Sample

_DIGEST_CHARACTERS = 16
_TYPES: Mapping[str, tuple[type, ...]] = {
    "status": (str,),
    "error": (str,),
    "code_changed": (str,),
    "trials_done": (int,),
    "last_bandwidth_gbps": (float, type(None)),
    "longest_trial_s": (float,),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a timing log says of its job."""

    status: str
    error: str
    code_changed: str
    """How the code that ran differs from what was submitted; empty if it doesn't."""
    trials_done: int
    """Trials with a total, warm-ups included; of a training loop, valid blocks, all those of a first save as one.

    What an interrupted run did of a pass over all kinds of blocks doesn't count once the job has gone on: it does that
    pass again.
    """
    last_bandwidth_gbps: float | None
    """Of the last operation, in GB/s of the state's logical size, from the first rank's start to the last one's end."""
    longest_trial_s: float
    """From its first operation's start to its last one's end; of a training loop, the longest block. 0 before one."""


def of(
    header: Header,
    samples: Sequence[Sample],
    blocks: Sequence[Block],
    saves: Sequence[LoopSave],
    provenance: Mapping[str, Any],
) -> Progress:
    """The progress that a log with this content adds up to."""
    totals = [sample for sample in samples if sample.phase == "total"]
    done = len({sample.trial for sample in totals}) + _blocks_done(blocks)
    bandwidth_gbps = _bandwidth_of_save(saves) if saves else _bandwidth_gbps(totals)
    longest_s = max(_longest_s((row.trial, row) for row in totals), _longest_s((row.block, row) for row in blocks))
    return Progress(header.status, header.error, version_changed(provenance), done, bandwidth_gbps, longest_s)


def _longest_s(rows: Iterable[tuple[int, Sample | Block]]) -> float:
    """How long the longest trial or block took, of all ranks' rows by its number; 0 if there is none."""
    spans: dict[int, tuple[float, float]] = {}
    for number, row in rows:
        start_s, end_s = spans.get(number, (math.inf, -math.inf))
        spans[number] = min(start_s, row.start_s), max(end_s, row.start_s + row.duration_s)
    lengths_s = (end_s - start_s for start_s, end_s in spans.values())
    return float(max(filter(math.isfinite, lengths_s), default=0.0))


def _blocks_done(blocks: Sequence[Block]) -> int:
    *interrupted, last = blocks_of_runs(blocks) or [0]
    kinds = len({block.every for block in blocks if not block.opening}) or 1
    first_save = any(block.opening and block.valid for block in blocks)
    return first_save + sum(count - count % kinds for count in interrupted) + last


def version_changed(provenance: Mapping[str, Any]) -> str:
    """How the code that ran differs from what was submitted; empty if it doesn't, or what was submitted isn't known."""
    submitted, ran = (str(provenance.get(key, "")) for key in ("code_version_submitted", "code_version"))
    if submitted == ran or not submitted or submitted.startswith("unknown"):
        return ""
    return f"submitted with {submitted}, run with {ran}"


def _bandwidth_gbps(totals: Sequence[Sample]) -> float | None:
    """The bandwidth of the last operation among these totals."""

    def operation(sample: Sample) -> tuple[int, str, str]:
        return sample.trial, sample.operation, sample.cache

    last = [sample for sample in totals if operation(sample) == operation(totals[-1])]
    if not last:
        return None
    duration_s = max(sample.start_s + sample.duration_s for sample in last) - min(sample.start_s for sample in last)
    return sum(sample.state_bytes for sample in last) / duration_s / 1e9 if duration_s > 0 else None


def _bandwidth_of_save(saves: Sequence[LoopSave]) -> float | None:
    """The bandwidth of the last save, by the rank whose commit came last; None if it was never committed."""
    last = max((save.block, save.save) for save in saves)
    ranks = [save for save in saves if (save.block, save.save) == last]
    longest_s = max(save.commit_s for save in ranks)
    committed = all(save.commit_s > 0 for save in ranks) and math.isfinite(longest_s)
    return sum(save.state_bytes for save in ranks) / longest_s / 1e9 if committed else None


def note(progress: Progress) -> bytes:
    """A line with the progress and a digest of it, in ASCII."""
    text = json.dumps(asdict(progress))
    return f"progress {_digest(text)} {text}\n".encode()


def of_note(line: bytes) -> Progress | None:
    """The progress in a line of `note`; None if it is another line, or damaged."""
    try:
        word, digest, text = line.decode("ascii").rstrip("\n").split(" ", 2)
        if (word, digest) != ("progress", _digest(text)):
            return None
        facts = {"longest_trial_s": 0.0} | json.loads(text)  # which earlier releases didn't note
        known = facts.keys() == _TYPES.keys() and all(type(facts[name]) in kinds for name, kinds in _TYPES.items())
        return Progress(**facts) if known else None
    except (ValueError, AttributeError, TypeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
