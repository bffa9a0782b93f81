"""Defines the kinds of caveat that make numbers less reliable, with their texts and remedies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

FEWEST_TRIALS = 5


class Kind(Enum):
    """A kind of caveat: the template of its text, which shows a number, and the remedy."""

    DURABILITY_UNPROVEN = (
        "committed, and whether that is durable is unproven: {reason}. What fsync guarantees there: {fsync}",
        "a checkpoint may be lost with a server's power: ask who runs the target what it syncs",
    )
    COLD_UNPROVEN = (
        "not proven to come from the device: {reason}",
        "a restart may take longer: look at the servers' counters, or take a state of over three times their memory",
    )
    NOT_DIRECT = (
        "direct I/O is not direct here: {directions} went through the page cache",
        "strategies that ask for direct I/O get none, and the ceiling is that of buffered I/O",
    )
    SHARED_STORAGE = (
        "it lies on {what}, as {others} does",
        "their rates are those of the same hardware: such targets compare filesystems, not devices",
    )
    UNKNOWN_LAYOUT = (
        "how its files are laid out is unknown: {why}",
        "install the filesystem's tools on the nodes, or write the layout down yourself",
    )
    NEARLY_FULL = (
        "{number:.0%} of its capacity is used",
        "nearly full filesystems are slow: repeat with more room",
    )
    FEW_TRIALS = (
        "only {number:.0f} valid trials",
        f"raise `repeats` or `rounds` to {FEWEST_TRIALS} or more",
    )
    WIDE_SPREAD = (
        "the standard deviation is {number:.0%} of the mean",
        "look at the trials one by one, and repeat at a quieter time or with more `rounds`",
    )
    SLOW_FIRST_TRIAL = (
        "the first trial took {number:.1f} times as long as the others",
        "add a warm-up (`warmups = 1`)",
    )
    DRIFT = (
        "trials get {direction} with time (rank correlation {number:+.2f}, p = {p:.3f})",
        "the device's cache may fill, or its neighbours change: use more `rounds`",
    )
    DISTURBED_JOB = (
        "disturbed: the target's own {operation} went from {before:.2f} to {number:.2f} GB/s",
        "somebody else used it meanwhile: repeat, or trust the other rounds more",
    )
    ABOVE_CEILING = (
        "it is {number:.1f} times as fast as the target by itself",
        (
            "its share of the ceiling says little: a cache served it, the state is too small, or the ceiling's own I/O "
            "is slow"
        ),
    )
    STOLEN_CPU = (
        "the hypervisor took {number:.0%} of the CPU time",
        "use another host",
    )
    DIRTY_PAGES = (
        "{number:.0f} MiB that others had written were not on storage when it began",
        "they were written during its trials: leave time between jobs",
    )
    CPU_FREQUENCY = (
        "the CPU's frequency changes with its load (governor {governor})",
        "ask for the governor `performance`, where the site allows it",
    )
    OVERLAPPING_JOBS = (
        "it ran at the same time as {other} on the same target, for {number:.1f} s",
        "submit the study as one, so that its jobs wait for each other",
    )
    ROUND_EFFECT = (
        "the round changes durations by {number:.0%}, the closest two methods differ by {gap:.0%}",
        "the order of the medians is not sure: go by the ratios, which are taken within rounds",
    )
    JOB_EFFECT = (
        "the {factor} changes durations by {number:.0%}, the closest two methods differ by {gap:.0%}",
        "their order is not sure: add `rounds`, or compare within a round",
    )
    SLOW_ROUND = (
        "disturbed: the middle method took {number:.1f} times as long as in the other rounds",
        "ratios are taken within rounds and hardly change by it; medians may",
    )
    UNEVEN_ROUND = (
        "disturbed: it moved methods against each other by up to {number:.0%}",
        "it widens the intervals of their ratios: add `rounds`",
    )

    FEW_BLOCKS = (
        "only {number:.0f} blocks with checkpoints",
        "raise `blocks` or `rounds`: the fewer, the narrower are the intervals, and the less can the test tell",
    )
    UNSTABLE_REFERENCE = (
        "steps without checkpoints vary: 95 % of them lie in a band as wide as {number:.0%} of their median",
        "small losses can't be told from that: use another node or fewer `cores`, or more `blocks`",
    )
    SKEWED_REFERENCE = (
        "steps without checkpoints take {number:.1%} longer in the mean than in the median",
        "every step of a save counts that as lost: go by the verdicts, which hold both kinds of blocks to it",
    )
    SHORT_STEPS = (
        "recording a step takes {number:.1%} of it",
        "raise `step_s`",
    )
    WAITING_SAVES = (
        "{number:.0f} of {saves:.0f} saves waited for the one before: a save takes {latency:.2f} s of {interval:.2f} s",
        "save less often, or with a faster method: what it waits is part of its lost time",
    )
    CUT_TAILS = (
        (
            "{number:.0f} of {saves:.0f} saves: steps were not as long as without checkpoints again when the next save "
            "was called, or the block ended"
        ),
        "what they still lost is missing: save less often (`every`), or raise `settle_steps`",
    )
    UNSURE_CLOCKS = (
        "the clocks of its ranks are known to {number:.3f} s only, and a step takes {step:.3f} s",
        "what is interference and what is tail may be exchanged by that; lost time isn't touched",
    )

    def __init__(self, text: str, remedy: str) -> None:
        self.text = text
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Caveat:
    """Something that makes a number less reliable."""

    kind: Kind
    where: str
    """A method and operation, a job, or a round."""
    number: float = math.nan
    details: Mapping[str, str | float] = field(default_factory=dict)
    """The other values that the kind's text shows."""

    @property
    def what(self) -> str:
        """The observation in words."""
        return self.kind.text.format(number=self.number, **self.details)

    def __str__(self) -> str:
        """The caveat in one sentence, with its remedy."""
        return f"{self.where}: {self.what}; {self.kind.remedy}"


def in_short(caveats: Sequence[Caveat]) -> list[str]:
    """Write one line per kind of caveat: the first, and how many more there are."""
    by_kind: dict[Kind, list[Caveat]] = {}
    for caveat in caveats:
        by_kind.setdefault(caveat.kind, []).append(caveat)
    return [
        f"{first.where}: {first.what}" + (f" (and {len(more)} more like it)" if more else "") + f"; {kind.remedy}"
        for kind, (first, *more) in by_kind.items()
    ]
