"""Which checkpoints stay: the newest, every n-th, the best, and never none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import CheckpointError
from ckpt.series.keep import Keep

METRICS = st.dictionaries(
    st.integers(0, 50),
    st.fixed_dictionaries({}, optional={"loss": st.floats(), "score": st.integers(0, 3)}),
    max_size=12,
)


@given(METRICS, st.integers(1, 5), st.integers(0, 10), st.sampled_from(["", "loss"]), st.sampled_from(["", "score"]))
def test_every_reason_to_stay(
    metrics: dict[int, dict[str, float]], last: int, every: int, lowest: str, highest: str
) -> None:
    """A step goes only if there is no reason for it to stay."""
    gone = Keep(last, every, lowest, highest).surplus(metrics)
    kept = [step for step in sorted(metrics) if step not in gone]
    assert gone == sorted(set(metrics) - set(kept))
    assert kept[-last:] == sorted(metrics)[-last:]
    assert not any(every and step % every == 0 for step in gone)
    losses = [values["loss"] for values in metrics.values() if not math.isnan(values.get("loss", math.nan))]
    if lowest and losses:
        assert min(losses) in [metrics[step].get("loss") for step in kept]
    scores = [values["score"] for values in metrics.values() if "score" in values]
    if highest and scores:
        assert max(scores) in [metrics[step].get("score") for step in kept]
    assert len(kept) <= last + (len(metrics) if every else 0) + bool(lowest) + bool(highest)


def test_the_newest_of_the_best() -> None:
    """Of two with the same value the newer one stays; NaN is no value."""
    metrics = {1: {"loss": 2.0}, 2: {"loss": 1.0}, 3: {"loss": 1.0}, 4: {"loss": math.nan}, 5: {}}
    assert Keep(last=1, lowest="loss").surplus(metrics) == [1, 2, 4]
    assert Keep(last=1, highest="loss").surplus(metrics) == [2, 3, 4]


@pytest.mark.parametrize("arguments", [{"last": 0}, {"every": -1}])
def test_a_number_that_is_too_small(arguments: dict[str, int]) -> None:
    """It is refused: there is always one checkpoint to resume from."""
    with pytest.raises(CheckpointError, match="`last` is at least 1"):
        Keep(**arguments)
