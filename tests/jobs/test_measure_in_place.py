"""Loads into memory that exists: what the clock encloses, and that a load which reads nothing doesn't pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.disk import page_cache
from ckpt.state.layout import State
from ckpt.strategies.safetensors_tuned import SafetensorsTuned
from ckpt.strategy import Capabilities
from jobs import timing_log
from jobs.node.run import run_job
from jobs.node.trial import TrialError
from jobs.plan import plan
from support.bench import Bench, FakeStrategy
from support.one_job import Planned


class Filling(FakeStrategy):
    """Fills memory that exists, as `outcome` has it; takes 7 s."""

    capabilities = Capabilities(loads_in_place=True)
    outcome = "whole"

    def fill(self, directory: Path, into: State, *_: Any) -> None:
        """Fill."""
        self._events.append("fill")
        self._clock.now_s += 7
        if self.outcome == "error":
            raise OSError("the disk is gone")
        for name, target in into.items():
            assert not torch.equal(target, torch.zeros_like(target))
            if self.outcome == "whole":
                target.copy_(torch.frombuffer(bytearray((directory / name).read_bytes()), dtype=torch.float32))


@pytest.fixture
def filling(bench: Bench) -> Bench:
    """A bench whose strategy can load in place."""
    bench.strategy = Filling(bench.clock, bench.events)
    return bench


def test_it_comes_last_and_cold(filling: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages are evicted again before the load in place, whose duration is that of the filling alone."""
    real = page_cache.evict

    def evict(*arguments: Any) -> None:
        filling.events.append("evict")
        filling.clock.now_s += 1000
        real(*arguments)

    monkeypatch.setattr(page_cache, "evict", evict)
    filling.run(load_into=True)
    assert filling.events[-5:] == ["evict", "clock", "fill", "clock", "log"]
    cold, warm, into = [sample for sample in filling.log.samples if sample.operation != "save"]
    assert (into.operation, into.phase, into.load_number, into.duration_s) == ("load into", "total", 2, 7)
    assert (into.valid, into.state_bytes, into.cache) == (True, cold.state_bytes, cold.cache)
    assert into.resident_fraction == cold.resident_fraction
    assert (warm.operation, warm.cache) == ("load", "warm")
    assert into.peak_extra_bytes >= 0


def test_a_load_that_reads_nothing_is_noticed(filling: Bench) -> None:
    """The memory holds something else before, so that what isn't read differs."""
    filling.strategy.outcome = "nothing"
    filling.run(load_into=True)
    (into,) = filling.samples("load into")
    assert not into.valid
    assert into.reason.startswith("loaded state differs: a: ")


def test_a_load_that_fails(filling: Bench) -> None:
    """The error is in the log, as that of any other load."""
    filling.strategy.outcome = "error"
    with pytest.raises(TrialError, match="the disk is gone"):
        filling.run(load_into=True)
    assert [s.reason for s in filling.samples("load into")] == ["OSError: the disk is gone"]


def test_only_where_it_is_asked_for_and_possible(bench: Bench) -> None:
    """No load in place without `load_into`, nor of a strategy that can't: its other loads are measured."""
    bench.run(load_into=True)
    assert [sample.operation for sample in bench.log.samples if sample.phase == "total"] == ["save", "load", "load"]
    bench.strategy = Filling(bench.clock, bench.events)
    bench.run(repeats=2, load_into=False)
    assert not bench.samples("load into")


def test_of_a_real_strategy(bench: Bench) -> None:
    """It takes less memory beside the state than a plain load, which holds a second one."""
    bench.state = {"a": torch.randn(2**24), "b": torch.randn(2**23)}
    half_bytes = 48 * 2**20
    bench.strategy = SafetensorsTuned()
    bench.run(load_into=True, warmups=1)
    plain = next(sample for sample in bench.samples("load") if not sample.warmup)
    into = next(sample for sample in bench.samples("load into") if not sample.warmup)
    assert (plain.valid, into.valid) == (True, True), into.reason
    assert plain.peak_extra_bytes > half_bytes > into.peak_extra_bytes >= 0


def test_in_a_study(tiny: dict[str, Any], planned: Planned) -> None:
    """A strategy that can is measured with it, tied tensors included; another one without it, and its log says no."""
    tiny["strategies"] = ["safetensors_tuned", "torch_save"]
    tiny["trials"] = tiny["trials"] | {"load_into": True}
    paths = planned(tiny)
    for job in plan.from_json(paths.plan_json.read_text(), "plan.json").jobs:
        assert run_job(str(paths.root), job.id) == "complete"
        log = timing_log.read(paths.log(job.id))
        into = [sample for sample in log.samples if sample.operation == timing_log.LOAD_INTO]
        assert json.loads(log.header.strategy_facts)["in_place"] == ("yes" if into else "no")
        assert bool(into) == (job.strategy == "safetensors_tuned")
        assert all(sample.valid for sample in into), into
