"""Projects how long a bigger state on more nodes would take from what was measured: a range, never a number.

The model: every node writes and reads an equal share of the state, all at once, at the rate that a node was
measured to reach. No method is taken to be faster than the target by itself (its ceiling), except where it was measured
to be: then the highest measured rate takes the ceiling's place. Node-local targets are independent, so their
rates add up. A shared filesystem's add up to its limit; without a stated limit, all that is known is that
the nodes together get at least one node's rate and at most the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.advice.ranges import check_range
from analysis.errors import ResultsError
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting
from analysis.measures.trials import Trials

FAR = 10.0
"""From this factor on, in either direction, an extrapolation gets a separate warning."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The state and the machine that are asked about."""

    parameters: float
    bytes_per_parameter: float
    """14 for training in 16 bit with Adam: 2 for the weights, 12 for their 32-bit copy and its two moments."""
    nodes: int
    shared_limit_gbps: float | None = None
    """What the shared filesystem can do in all, in GB/s (1e9 bytes); None where it is not given."""

    @property
    def size_bytes(self) -> float:
        """The size of the whole state."""
        return self.parameters * self.bytes_per_parameter

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ResultsError: if a number is out of range.
        """
        check_range("--parameters", self.parameters, 1, 1e16)
        check_range("--bytes-per-parameter", self.bytes_per_parameter, 0.1, 1000)
        check_range("--nodes", self.nodes, 1, 1e6)
        if self.shared_limit_gbps is not None:
            check_range("--shared-limit-gbps", self.shared_limit_gbps, 1e-3, 1e6)


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds, from the best case to the worst; NaN where the measurements support no range."""

    least_s: float
    most_s: float
    bound_by: str
    """The quantity that limits the best case: `strategy`, `ceiling` or `limit`."""


@dataclass(frozen=True, slots=True)
class Projected:
    """What one method would take."""

    label: str
    save: Span
    load: Span
    load_kind: Operation | None
    """The measured loads that it is projected from; None without any."""


@dataclass(frozen=True, slots=True)
class Projection:
    """What the methods of one setting would take, as ranges."""

    setting: Setting
    wanted: Wanted
    size_factor: float
    """How many times as many bytes a node would write as one did."""
    node_factor: float
    methods: tuple[Projected, ...]
    ceiling: tuple[Span, Span]
    """The least times of a save and a load, if a node's ceiling, or what exceeded it, stays as measured."""


def project(setting: Setting, wanted: Wanted) -> Projection:
    """Project what the methods of a setting would take for the wanted state on the wanted nodes.

    Raises:
        ResultsError: if what is wanted makes no sense, or the setting is a training loop.
    """
    wanted.check()
    if setting.loop is not None:
        raise ResultsError(
            f"{setting}: a lost time is not projected, for it depends on the loop as much as on the bytes. Measure a "
            "loop with a state as large as the wanted share of a node, or project a study without a loop"
        )
    measured_bytes = max((method.state_bytes for method in setting.methods), default=0)
    share = wanted.size_bytes / wanted.nodes
    saves = [_rates_gbps(method[Operation.SAVE]) for method in setting.methods]
    loads = [_rates_gbps(method.load_trials()) for method in setting.methods]
    write, read = (_roof(setting.ceilings["write"].gbps, saves), _roof(setting.ceilings["read"].gbps, loads))
    methods = [
        Projected(
            method.label,
            _span(save, write, setting, wanted),
            _span(load, read, setting, wanted),
            method.cold_load(),
        )
        for method, save, load in zip(setting.methods, saves, loads, strict=True)
    ]
    return Projection(
        setting=setting,
        wanted=wanted,
        size_factor=share / measured_bytes * max(setting.nodes, 1) if measured_bytes else math.nan,
        node_factor=wanted.nodes / max(setting.nodes, 1),
        methods=tuple(methods),
        ceiling=(_span((write, write), write, setting, wanted), _span((read, read), read, setting, wanted)),
    )


def _rates_gbps(trials: Trials) -> tuple[float, float]:
    """Return the lowest and the highest rate that the trials' interval supports, of all measured nodes together."""
    rate = trials.gbps()
    return rate.low, rate.high


def _roof(ceiling_gbps: float, rates_gbps: Iterable[tuple[float, float]]) -> float:
    """Return the ceiling, or a higher rate that was measured; NaN without a ceiling."""
    return max([ceiling_gbps, *(high for _, high in rates_gbps if high > ceiling_gbps)])


def _span(rates_gbps: tuple[float, float], ceiling_gbps: float, setting: Setting, wanted: Wanted) -> Span:
    """Return the time at these rates of all measured nodes together; the ceiling, NaN where unknown, is theirs, too."""
    low, high, ceiling_gbps = (rate / max(setting.nodes, 1) for rate in (*rates_gbps, ceiling_gbps))
    if math.isnan(low) or math.isnan(high):
        return Span(math.nan, math.nan, "")
    bound_by = "ceiling" if high >= ceiling_gbps else "strategy"
    if not math.isnan(ceiling_gbps):
        low, high = min(low, ceiling_gbps), min(high, ceiling_gbps)
    worst, best = low * wanted.nodes, high * wanted.nodes
    if not setting.node_local:
        if wanted.shared_limit_gbps is None:
            worst = low
        else:
            bound_by = "limit" if best >= wanted.shared_limit_gbps else bound_by
            worst, best = min(worst, wanted.shared_limit_gbps), min(best, wanted.shared_limit_gbps)
    return Span(wanted.size_bytes / 1e9 / best, wanted.size_bytes / 1e9 / worst, bound_by)
