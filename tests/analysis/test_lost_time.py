"""Lost time of training loops: simulated loops whose lost time is known, and doctored ones that must not pass."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from analysis.measures.caveats import Kind
from analysis.measures.loop import Part
from analysis.measures.loop_differences import lost_differences
from analysis.measures.lost import BlockMeans, meeting_s
from analysis.measures.setting import Setting
from analysis.measures.statistics import Interval
from jobs.timing_log import TimingLog
from support.loops import Costs, LoopSimulation
from support.lost_time import BEHIND, SYNC, UPDATE_WAIT, cost_of, cost_of_one, holds, measure, only


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Setting]:
    """Write the logs of simulated jobs, doctored by a change, and return their setting."""
    return partial(measure, tmp_path / "tiny")


@pytest.mark.parametrize("costs", [SYNC, BEHIND, UPDATE_WAIT], ids=["sync", "behind", "update-wait"])
def test_intervals_hold_the_lost_time_that_was_built_in(costs: Costs) -> None:
    """Of 12 simulated jobs, nearly all have the true lost time in its 95 % interval, and most its parts.

    Five blocks make intervals rather too narrow, as few jobs do for saves.
    """
    hits = {"lost": 0, "interference": 0, "tail": 0}
    for seed in range(12):
        simulation = LoopSimulation(costs=costs, noise=0.01, seed=seed)
        at = only(cost_of_one(simulation))
        hits["lost"] += holds(at.lost.interval, statistics.median(simulation.truth.lost_s))
        interference = at.parts[Part.INTERFERENCE].interval
        hits["interference"] += holds(interference, statistics.median(simulation.truth.interference_s))
        hits["tail"] += holds(at.parts[Part.TAIL].interval, statistics.median(simulation.truth.tail_s))
        assert at.lost.verdict == "significant"
    assert hits["lost"] >= 10, hits
    assert min(hits.values()) >= 8, hits


@pytest.mark.parametrize("costs", [SYNC, BEHIND, UPDATE_WAIT], ids=["sync", "behind", "update-wait"])
@pytest.mark.parametrize("every", [3, 10])
def test_parts_add_up_to_what_a_save_lost(every: int, costs: Costs, measured: Callable[..., Setting]) -> None:
    """For every save, also one that waits: the parts' sum is the excess of the window's steps over the median step."""
    cost = cost_of(measured(LoopSimulation(costs=costs, seed=4, noise=0.03, spec={"every": [every]})))
    [job] = cost.jobs
    blocks = {block.number: block for block in job.blocks}
    assert len(job.saves) == 16
    for save in job.saves:
        steps = blocks[save.block].measured[save.step : save.end_step]
        excess_s = sum(step.duration_s for step in steps) - len(steps) * job.reference.median_s
        assert sum(save.parts.values()) == pytest.approx(save.lost_s) == pytest.approx(excess_s)
        assert save.blocked_s == pytest.approx(sum(step.blocked_s for step in steps))


def test_nothing_saved_is_not_significant() -> None:
    """Where on equals off, at most two of 20 jobs are called different."""
    wrong = 0
    for seed in range(20):
        at = only(cost_of_one(LoopSimulation(way="none", seed=seed, noise=0.02)))
        assert abs(at.lost.interval.estimate) < 0.2
        assert at.parts[Part.SNAPSHOT].verdict == ""
        wrong += at.lost.verdict != "not significant"
    assert wrong <= 2


def test_a_skewed_reference_is_no_lost_time(measured: Callable[..., Setting]) -> None:
    """Every seventh step hiccups, saves or not: the estimate counts it, the verdict doesn't, and a caveat warns."""

    def hiccup(log: TimingLog) -> None:
        log.steps[:] = [
            replace(step, duration_s=step.duration_s + 0.5 * (number % 7 == 3)) for number, step in enumerate(log.steps)
        ]

    setting = measured(LoopSimulation(way="none"), change=hiccup)
    at = only(cost_of(setting, "none"))
    assert at.lost.interval.low > 0.3
    assert at.lost.verdict == "not significant"
    assert Kind.SKEWED_REFERENCE in {caveat.kind for caveat in setting.caveats}


def test_a_reference_of_another_job_fails(measured: Callable[..., Setting]) -> None:
    """Steps without checkpoints of a node that is 2 % faster: the true lost time is outside of the interval."""
    simulation = LoopSimulation(costs=BEHIND)
    honest = only(cost_of(measured(simulation))).lost.interval
    truth_s = statistics.median(simulation.truth.lost_s)

    def other_reference(log: TimingLog) -> None:
        off = {block.block for block in log.blocks if not block.every}
        log.steps[:] = [
            replace(step, duration_s=step.duration_s * 0.98) if step.block in off else step for step in log.steps
        ]

    doctored = only(cost_of(measured(simulation, change=other_reference))).lost.interval
    assert holds(honest, truth_s)
    assert not holds(doctored, truth_s)


def test_averaged_steps_fail(measured: Callable[..., Setting]) -> None:
    """Step times that are averages over ten steps, as logs of frameworks have them, give other parts and lost times."""
    simulation = LoopSimulation(costs=SYNC)
    honest = only(cost_of(measured(simulation)))

    def averaged(log: TimingLog) -> None:
        for start in range(0, len(log.steps), 10):
            of_ten = log.steps[start : start + 10]
            mean_s = statistics.mean(step.duration_s for step in of_ten)
            log.steps[start : start + 10] = [replace(step, duration_s=mean_s) for step in of_ten]

    doctored = only(cost_of(measured(simulation, change=averaged)))
    assert holds(honest.lost.interval, 3.0)
    assert holds(honest.parts[Part.INTERFERENCE].interval, 0.0)
    assert not holds(doctored.lost.interval, 3.0)
    assert not holds(doctored.parts[Part.INTERFERENCE].interval, 0.0)


def test_a_clock_that_starts_after_the_wait_hides_nothing(measured: Callable[..., Setting]) -> None:
    """A wait that its part leaves out is in the steps all the same: lost time stays, and shows as interference."""
    simulation = LoopSimulation(costs=Costs(snapshot_s=0.5, latency_s=7), spec={"every": [4]})
    honest = only(cost_of(measured(simulation)))

    def after_the_wait(log: TimingLog) -> None:
        log.saves[:] = [
            replace(save, start_s=save.start_s + save.wait_s, commit_s=save.commit_s - save.wait_s, wait_s=0.0)
            for save in log.saves
        ]

    doctored = only(cost_of(measured(simulation, change=after_the_wait)))
    assert holds(honest.lost.interval, statistics.median(simulation.truth.lost_s))
    assert honest.parts[Part.WAIT].interval.estimate > 2
    assert doctored.lost.interval == honest.lost.interval
    assert doctored.parts[Part.WAIT].interval.estimate == 0
    assert doctored.parts[Part.INTERFERENCE].interval.low > 2


def test_saves_that_wait_are_counted_and_not_hidden(measured: Callable[..., Setting]) -> None:
    """A save of 7 s every 4 s waits in two of three saves; what one costs by itself leaves the wait out."""
    costs = Costs(snapshot_s=0.5, latency_s=7)
    setting = measured(LoopSimulation(costs=costs, spec={"every": [4]}, noise=0.001))
    cost = cost_of(setting)
    at = only(cost)
    assert (at.saves, at.waited) == (15, 10)
    assert at.cut <= 1  # by chance: what isn't committed at the next call has no tail that it could cut
    assert at.parts[Part.WAIT].verdict == "significant"
    assert cost.unhurried.lost.estimate == pytest.approx(0.5, abs=0.02)
    assert cost.shortest_s == pytest.approx(7.0)
    assert cost.lost_at(100).estimate == cost.unhurried.lost.estimate
    assert cost.lost_at(4).estimate == pytest.approx(3.0)
    assert cost.share_at(4).estimate == pytest.approx(0.75)
    assert at.exposure_s == pytest.approx(4 + 3.0 + 9.5, abs=0.02)  # calls are 7 s apart; both have the wait of 2.5 s
    [waiting] = [caveat for caveat in setting.caveats if caveat.kind is Kind.WAITING_SAVES]
    assert waiting.what == "10 of 15 saves waited for the one before: a save takes 7.00 s of 4.00 s"


def test_where_the_asynchronous_line_meets_the_synchronous_one(measured: Callable[..., Setting]) -> None:
    """A save of 7 s that blocks 0.5 s loses as much as one that holds the loop for 3 s where it waits 3 s."""
    setting = measured(
        LoopSimulation(way="sync", costs=SYNC, noise=0.0001),
        LoopSimulation(costs=Costs(snapshot_s=0.5, latency_s=7), noise=0.0001),
    )
    sync, behind = cost_of(setting, "sync"), cost_of(setting)
    met = meeting_s(sync, behind)
    assert met.estimate == pytest.approx(4.0, abs=0.01)
    assert met.low < met.estimate < met.high < met.low + 0.01
    assert behind.lost_at(met.estimate).estimate == pytest.approx(sync.lost_at(met.estimate).estimate)
    assert math.isnan(meeting_s(behind, sync).estimate)


def test_slow_saves_count_where_the_next_call_comes_before_their_commit(measured: Callable[..., Setting]) -> None:
    """Every second save takes 12 s instead of 8 s, and one is called every 10 s: those that are committed in time are
    the fast ones, so that the last saves of the blocks tell how long a save takes.
    """
    costs = Costs(snapshot_s=0.5, latency_s=8, later_s=4)
    cost = cost_of(measured(LoopSimulation(costs=costs, spec={"blocks": 6}, noise=0.001)))
    assert cost.unhurried.saves == 6
    assert cost.shortest_s == pytest.approx(10)
    assert (cost.unhurried.latency.low, cost.unhurried.latency.high) == pytest.approx((8, 12))


def test_the_first_save_is_apart(measured: Callable[..., Setting]) -> None:
    """A first save of 40 s changes nothing but its own number."""
    first = Costs(call_s=40.0, latency_s=40.0)
    cost = cost_of(measured(LoopSimulation(way="sync", costs=SYNC, first=first)), "sync")
    assert cost.first.saves == 1
    assert cost.first.lost_s == pytest.approx(40, abs=0.2)
    assert holds(only(cost).lost.interval, 3.0)
    assert only(cost).saves == 15


def test_memory_threads_and_cpu_above_the_reference(measured: Callable[..., Setting]) -> None:
    """Blocks with checkpoints peak 2 GiB higher, with one more thread, two descriptors, 0.5 s of a helper per save."""
    above = cost_of(measured(LoopSimulation(costs=SYNC))).above
    assert (above.reference_bytes, above.peak_bytes, above.lasting_bytes) == (2**30, 2**31, 0)
    assert (above.threads, above.descriptors) == (1, 2)
    assert above.helper_cpu_s == pytest.approx(0.5)
    assert above.own_cpu_s == 0.25


@pytest.mark.parametrize("seed", range(6))
def test_memory_grows_within_a_kind_of_block(seed: int, measured: Callable[..., Setting]) -> None:
    """Blocks with checkpoints end with 1 GiB more than those without, and both with 1 MiB more each time: they grow by
    4 MiB, whatever kinds happen to be first and last.
    """

    def grow(log: TimingLog) -> None:
        before = Counter[tuple[int, bool]]()
        for number, row in enumerate(log.blocks):
            kind = row.every, row.opening
            end_bytes = 2**30 * (1 + bool(row.every)) + 2**20 * before[kind]
            log.blocks[number] = replace(row, end_memory_bytes=end_bytes)
            before[kind] += 1

    above = cost_of(measured(LoopSimulation(costs=SYNC, seed=seed), change=grow)).above
    assert (above.lasting_bytes, above.grown_bytes) == (2**30, 4 * 2**20)


def test_intervals_of_several_rounds_know_their_jobs(measured: Callable[..., Setting]) -> None:
    """Three jobs that lose 1, 2 and 3 s: the interval is as wide as they differ, though a job alone is sure."""
    setting = measured(
        *(LoopSimulation(costs=Costs(snapshot_s=seconds, latency_s=seconds), number=seconds, seed=seconds)
          for seconds in (1, 2, 3))
    )  # fmt: skip
    interval = only(cost_of(setting)).lost.interval
    assert interval.low < 1.3
    assert interval.high > 2.7


def rounds_of(lost_s: Sequence[float]) -> BlockMeans:
    """Lost times of as many rounds, a block each."""
    names = tuple(map(str, range(len(lost_s))))
    return BlockMeans(tuple(lost_s), names, names)


def test_methods_are_compared_within_rounds() -> None:
    """Rounds that disturb both alike hide no difference; a method that loses nothing can be compared too."""
    disturbed = rounds_of([1.0, 5.0, 2.0, 9.0])
    more = rounds_of([1.5, 5.4, 2.6, 9.5])
    [difference, equal] = lost_differences([(more, disturbed), (disturbed, disturbed)])
    assert difference.verdict == "more"
    assert difference.interval.estimate == pytest.approx(0.5)
    assert equal.verdict == "not significant"
    [nothing] = lost_differences([(rounds_of([0.0, -0.1, 0.1]), rounds_of([3.0, 3.1, 2.9]))])
    assert nothing.verdict == "less"


def test_differences_between_studies_and_of_few_rounds() -> None:
    """Unrelated rounds are two samples; two rounds are too few; one job a side exchanges its blocks."""
    [difference] = lost_differences([(rounds_of([5.0, 5.1, 4.9]), rounds_of([3.0, 3.1, 2.9]))], shared_rounds=False)
    assert difference.verdict == "more"
    [few] = lost_differences([(rounds_of([5.0, 5.1]), rounds_of([3.0, 3.1]))])
    assert few.verdict == "too few rounds to tell"
    one_job = BlockMeans((3.0, 3.1, 2.9, 3.05, 2.95), ("a",) * 5, ("1",) * 5, Interval(3.0, 2.9, 3.1))
    other = BlockMeans((4.0, 4.1, 3.9, 4.05, 3.95), ("b",) * 5, ("1",) * 5, Interval(4.0, 3.9, 4.1))
    assert [one.verdict for one in lost_differences([(one_job, other)])] == ["less"]
    assert [one.verdict for one in lost_differences([(BlockMeans(), other)])] == [""]


def test_two_jobs_differ_only_by_more_than_their_references_leave_unsure() -> None:
    """Blocks of a job agree on what their common reference has wrong: where that may be 1 s, 1 s is no difference."""
    one_job = BlockMeans((3.0, 3.1, 2.9, 3.05, 2.95), ("a",) * 5, ("1",) * 5, Interval(3.0, 2.0, 4.0))
    other = BlockMeans((4.0, 4.1, 3.9, 4.05, 3.95), ("b",) * 5, ("1",) * 5, Interval(4.0, 3.9, 4.1))
    [difference] = lost_differences([(one_job, other)])
    assert difference.verdict == "not significant"
    assert difference.interval.estimate == pytest.approx(-1)
    assert difference.interval.high == pytest.approx(-1 + math.hypot(1, 0.1))


def test_equal_jobs_are_seldom_called_different() -> None:
    """Of 40 pairs of jobs that lose the same, one a side, at most four are called different."""
    costs = Costs(snapshot_s=0.5, latency_s=28, interference_s=0.1)
    means = [
        only(cost_of_one(LoopSimulation(costs=costs, noise=0.02, seed=seed, spec={"every": [30]}))).means
        for seed in range(200, 280)
    ]
    verdicts = [lost_differences([pair])[0].verdict for pair in zip(means[::2], means[1::2], strict=True)]
    assert verdicts.count("not significant") >= 36, Counter(verdicts)
