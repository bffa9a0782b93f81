"""Young's and Daly's intervals against the model that they approximate, and the model against simulated failures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, special

from analysis.advice.intervals import daly_interval_s, loss, young_interval_s
from analysis.errors import ResultsError

stalls = st.floats(0.01, 1e4)
mtbfs = st.floats(60, 1e6)
restarts = st.floats(0, 1e4)


def best_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Where the model loses least, found by numbers: the derivative's root, as Lambert's function gives it."""
    return float(mtbf_s * (1 + special.lambertw(-math.exp(-stall_s / mtbf_s - 1)).real))


@pytest.mark.parametrize(
    ("stall_s", "mtbf_s", "young_s", "daly_s"),
    [
        # sqrt(2 * 50 * 3600) = 600; 600 (1 + 1/3 sqrt(1/144) + 1/9 1/144) - 50 = 600 * 1.0285494 - 50
        (50, 3600, 600.0, 567.1296296),
        # at C = 2 M: sqrt(4) M = 2 M; from there on M
        (7200, 3600, 7200.0, 3600.0),
        (9000, 3600, 8049.8447190, 3600.0),
    ],
)
def test_intervals_by_hand(stall_s: float, mtbf_s: float, young_s: float, daly_s: float) -> None:
    """Values that can be computed on paper."""
    assert young_interval_s(stall_s, mtbf_s) == pytest.approx(young_s)
    assert daly_interval_s(stall_s, mtbf_s) == pytest.approx(daly_s)


@given(stalls, mtbfs, restarts)
def test_no_interval_loses_less_than_the_best_and_dalys_is_near_it(
    stall_s: float, mtbf_s: float, restart_s: float
) -> None:
    """Daly's interval costs at most a thousandth of the progress that the best interval makes, up to C = M / 2."""
    assume(stall_s <= mtbf_s / 2 and restart_s <= 10 * mtbf_s)
    best_s = best_interval_s(stall_s, mtbf_s)

    def progress(interval_s: float) -> float:
        return 1 - loss(interval_s, stall_s, restart_s, mtbf_s).total

    assert progress(daly_interval_s(stall_s, mtbf_s)) >= 0.999 * progress(best_s)
    for factor in (0.5, 0.9, 1.1, 2):
        assert progress(best_s) >= progress(factor * best_s)


@pytest.mark.parametrize("stall_s", [1, 30, 600, 3000])
@pytest.mark.parametrize("mtbf_s", [3600, 86400])
def test_dalys_interval_is_where_a_minimiser_finds_the_least_loss(stall_s: float, mtbf_s: float) -> None:
    """The minimum of the modelled loss, found without any formula for it, is Daly's interval to within 3 %."""
    found = optimize.minimize_scalar(
        lambda logarithm: loss(math.exp(logarithm), stall_s, 120, mtbf_s).total,
        bounds=(math.log(stall_s / 10), math.log(20 * mtbf_s)),
        method="bounded",
        options={"xatol": 1e-9},
    )

    assert math.exp(found.x) == pytest.approx(best_interval_s(stall_s, mtbf_s), rel=1e-3)
    assert daly_interval_s(stall_s, mtbf_s) == pytest.approx(math.exp(found.x), rel=0.03)


@given(mtbfs)
def test_young_and_daly_agree_where_the_stall_is_short(mtbf_s: float) -> None:
    """As C / M goes to nought, Daly's correction does too, and the loss goes as sqrt(2 C / M)."""
    stall_s = mtbf_s * 1e-8

    assert daly_interval_s(stall_s, mtbf_s) == pytest.approx(young_interval_s(stall_s, mtbf_s), rel=1e-3)
    lost = loss(young_interval_s(stall_s, mtbf_s), stall_s, 0, mtbf_s).total
    assert lost == pytest.approx(math.sqrt(2 * stall_s / mtbf_s), rel=1e-3)


@given(stalls, mtbfs, restarts, st.floats(1.01, 10))
def test_worse_inputs_lose_more(stall_s: float, mtbf_s: float, restart_s: float, factor: float) -> None:
    """A longer stall, a longer restart, a later commit and more failures never make the loss smaller."""
    interval_s = daly_interval_s(stall_s, mtbf_s)
    lost = loss(interval_s, stall_s, restart_s, mtbf_s)

    assert 0 <= lost.checkpoints <= 1
    assert 0 <= lost.failures <= 1
    assert lost.total <= 1 + 1e-12
    slack = 1e-12
    assert loss(interval_s, stall_s * factor, restart_s, mtbf_s).total >= lost.total - slack
    assert loss(interval_s, stall_s, restart_s * factor, mtbf_s).total >= lost.total - slack
    assert loss(interval_s, stall_s, restart_s, mtbf_s, latency_s=stall_s * factor).total >= lost.total - slack
    assert loss(interval_s, stall_s, restart_s, mtbf_s / factor).total >= lost.total - slack


def simulated_progress(
    interval_s: float, stall_s: float, restart_s: float, mtbf_s: float, *, behind_s: float, segments: int
) -> float:
    """The share of the time that is progress, when failures are drawn and every second is followed.

    A checkpoint becomes safe `behind_s` after its stall; until then a failure goes back to the one before.
    """
    generator = np.random.default_rng(20061)
    time_s = safe = done = 0.0  # safe and done count segments; a segment is computing and a stall
    age_s = 0.0  # since the current segment began
    segment_s = interval_s + stall_s
    while safe < segments:
        failure_s = generator.exponential(mtbf_s)
        gained = int((age_s + failure_s) // segment_s)
        time_s += failure_s
        done += gained
        age_s = (age_s + failure_s) % segment_s
        # the newest checkpoint is safe only if its commit had the time
        safe = max(safe, done if age_s >= behind_s else done - 1)
        done = safe
        while (up_s := generator.exponential(mtbf_s)) < restart_s:  # it fails while it restarts
            time_s += up_s
        time_s += restart_s
        age_s = 0.0
    return safe * interval_s / time_s


@pytest.mark.parametrize(
    ("stall_s", "restart_s", "behind_s", "tolerance"),
    [(30, 120, 0, 0.005), (300, 600, 0, 0.005), (5, 120, 200, 0.005)],
)
def test_the_model_is_what_happens_when_failures_are_drawn(
    stall_s: float, restart_s: float, behind_s: float, tolerance: float
) -> None:
    """A hundred thousand checkpoints with random failures make the progress that the model says they make."""
    mtbf_s = 4 * 3600
    interval_s = daly_interval_s(stall_s, mtbf_s)

    progress = simulated_progress(interval_s, stall_s, restart_s, mtbf_s, behind_s=behind_s, segments=100_000)

    assert 1 - loss(interval_s, stall_s, restart_s, mtbf_s, latency_s=stall_s + behind_s).total == pytest.approx(
        progress, rel=tolerance
    )


def test_a_machine_that_always_fails_makes_no_progress() -> None:
    """Where a restart takes a thousand MTBFs, everything is lost, without an overflow."""
    assert loss(60, 60, 60_000, 60).total == 1


def test_unknown_times_give_unknown_results() -> None:
    """NaN is not an error: a method without a valid save has no interval."""
    assert math.isnan(young_interval_s(math.nan, 3600))
    assert math.isnan(daly_interval_s(math.nan, 3600))
    assert math.isnan(loss(600, math.nan, 0, 3600).total)
    assert math.isnan(loss(600, 1, math.nan, 3600).total)


@pytest.mark.parametrize(("stall_s", "mtbf_s"), [(-1, 3600), (1, 0), (1, math.inf)])
def test_nonsense_is_refused(stall_s: float, mtbf_s: float) -> None:
    """A time that makes no sense is a mistake, and the message names it."""
    with pytest.raises(ResultsError, match=r"(lost|mtbf)_s is"):
        daly_interval_s(stall_s, mtbf_s)
    with pytest.raises(ResultsError, match="latency_s is -1"):
        loss(1, 1, 1, 3600, latency_s=-1)
    with pytest.raises(ResultsError, match="restart_s is -1"):
        loss(1, 1, -1, 3600)
