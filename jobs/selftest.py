"""Does this pipeline tell the truth here? Strategies of known cost and known dishonesty go all the way through it.

`python -m jobs selftest --target DIR` plans, submits and runs them as any others, and compares the tables with what
is known: twice as slow must be shown as twice as slow, and every liar must be caught.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.strategy import SELFTEST

if TYPE_CHECKING:
    import pandas as pd

    from analysis.logs.load import Results

_TOLERANCE = 0.05
"""What scheduling and the disk's own noise may add to a sleep of half a second."""

LIARS = {
    "wrong_data": ("load", "loaded state differs"),
    "lazy": ("load", "not in memory of its own"),
    "unsynced": ("save", "not durable"),
}
"""Each dishonest behaviour, the operation that must be invalid, and how its reason begins."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One known truth, and whether the pipeline found it."""

    passed: bool
    what: str


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What is asked of the strategies of known cost, and so what the tables must say."""

    sleep_s: float = 0.5
    bytes_per_s: float = 100e6
    repeats: int = 5

    def study(self, target: Path) -> str:
        """The study, on one target."""
        options: list[dict[str, object]] = [{}, {"sleep_s": self.sleep_s}, {"sleep_s": 2 * self.sleep_s}]
        options += [{"bytes_per_s": self.bytes_per_s}]
        options += [{"behaviour": behaviour} for behaviour in LIARS]
        inline = [
            ", ".join(f"{k} = {json.dumps(v)}" for k, v in ({"name": SELFTEST} | each).items()) for each in options
        ]
        tables = ", ".join("{ " + each + " }" for each in inline)
        return (
            f'name = "selftest-{datetime.now(UTC):%Y%m%dT%H%M%S}"\nstrategies = [{tables}]\n'
            f'[state]\nmodel = "llama-15m"\n[targets.here]\npath = {json.dumps(str(target))}\n'
            f"[trials]\nrepeats = {self.repeats}\nwarmups = 1\n[slurm]\ntimeout_min = 15\n"
        )

    def verdicts(self, results: Results, cache_caveat: str) -> Iterator[Verdict]:
        """Compare what the pipeline measured with what is known."""
        totals = results.samples[(results.samples["phase"] == "total") & ~results.samples["warmup"]]
        honest = totals[~totals["label"].str.contains("behaviour")]
        states = sorted(set(results.jobs["status"]))
        yield Verdict(states == ["complete"], f"every job completes: {', '.join(states)}")
        yield Verdict(bool(len(honest)) and bool(honest["valid"].all()), "nothing honest is called invalid")
        yield _phases(results)
        yield _cold(honest[honest["operation"] == "load"]["cache"].tolist(), cache_caveat)
        for operation in ("save", "load"):
            yield from self._known_costs(operation, totals[totals["valid"] & (totals["operation"] == operation)])
        dirty_pages_known = bool((results.samples["dirty_pages"] >= 0).any())
        for behaviour, (operation, reason) in LIARS.items():
            if behaviour == "unsynced" and not dirty_pages_known:
                yield Verdict(passed=True, what="unsynced: can't be known here, the kernel is older than Linux 6.5")
                continue
            chosen = totals[totals["label"].str.endswith(f"behaviour={behaviour}") & (totals["operation"] == operation)]
            caught = [bool(text.startswith(reason)) for text in chosen["reason"]]
            what = f"{behaviour}: {sum(caught)} of {len(caught)} {operation}s caught"
            yield Verdict(bool(caught) and all(caught), what)

    def _known_costs(self, operation: str, valid: pd.DataFrame) -> Iterator[Verdict]:
        from analysis.measures.statistics import ratio_interval

        def durations(option: str) -> list[float]:
            label = f"{SELFTEST}+{option}" if option else SELFTEST
            return sorted(float(value) for value in valid[valid["label"] == label]["duration_s"])

        base, rate = durations(""), durations(f"bytes_per_s={self.bytes_per_s}")
        slow, twice = durations(f"sleep_s={self.sleep_s}"), durations(f"sleep_s={2 * self.sleep_s}")
        if not (base and rate and slow and twice):
            yield Verdict(passed=False, what=f"{operation}: a strategy of known cost has no valid sample")
            return
        own = base[len(base) // 2]  # what saving or loading takes without the sleep
        truth = (2 * self.sleep_s + own) / (self.sleep_s + own)
        found = ratio_interval(twice, ["twice"] * len(twice), slow, ["slow"] * len(slow))  # one job each
        yield Verdict(
            found.low * (1 - _TOLERANCE) <= truth <= found.high * (1 + _TOLERANCE),
            f"{operation}: {2 * self.sleep_s} s against {self.sleep_s} s of sleep is a factor of {truth:.2f}, measured "
            f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]",
        )
        expected = float(valid["state_bytes"].iloc[0]) / self.bytes_per_s + own
        measured = rate[len(rate) // 2]
        yield Verdict(
            abs(measured - expected) <= _TOLERANCE * expected + own,
            f"{operation}: {self.bytes_per_s / 1e6:.0f} MB/s takes {expected:.2f} s, measured {measured:.2f} s",
        )


def _phases(results: Results) -> Verdict:
    """A save lasts as long as its call, its sync and its commit together: no part lies outside the clock."""
    saves = results.samples[(results.samples["operation"] == "save") & results.samples["valid"]]
    sums = saves.pivot_table(index=["job_id", "trial"], columns="phase", values="duration_s", aggfunc="sum")
    if not {"call", "sync", "commit", "total"} <= set(sums.columns):
        return Verdict(passed=False, what=f"a save's total has its parts: found only {', '.join(sums.columns)}")
    gap = (sums["total"] - sums["call"] - sums["sync"] - sums["commit"]).abs().max()
    return Verdict(bool(gap < 0.001), f"a save's total is call + sync + commit: off by at most {gap * 1e6:.0f} µs")


def _cold(caches: Sequence[str], cache_caveat: str) -> Verdict:
    if cache_caveat:
        return Verdict(passed="cold" not in caches, what=f"no cold load is called proven: {cache_caveat}")
    unproven = sum(cache == "cold-unproven" for cache in caches)
    proven = sum(cache == "cold" for cache in caches)
    return Verdict(proven > 0 and not unproven, f"cold loads are proven cold: {proven}, and {unproven} are not")
