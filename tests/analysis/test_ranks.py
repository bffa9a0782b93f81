"""Jobs of several ranks whose truths are known: what they did together, what each did, and who was last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from analysis.logs import columns
from analysis.logs.frames import frames
from analysis.logs.load import entries, load_results
from analysis.logs.merged import write_merged
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from jobs import timing_log
from support.studies import Ranked, Show, only

GIB, GB = 2**30, 10**9

# Rank 3 takes twice as long as the others, which differ a little; its host is node1.
OWN_S = [1.0, 1.25, 1.5, 3.0]


def test_a_save_of_many_ranks_is_one(ranked: Ranked) -> None:
    """It lasts until the last has committed, moves the whole state, and each phase lasts over all ranks."""
    [method] = only(ranked(nodes=2, tasks=2, save=[OWN_S] * 3, load=[OWN_S] * 3)).setting.methods

    assert (method[Operation.SAVE].median_s, len(method[Operation.SAVE])) == (3.25, 3)
    assert (method[Operation.LOAD_COLD].median_s, len(method[Operation.LOAD_COLD])) == (3.0, 3)
    # The last call ends after 1.5 s; the first sync begins after 0.5 s, the last ends after 3 s; so for commit.
    assert {name: trials.median_s for name, trials in method.phases.items()} == {
        "call": 1.5,
        "sync": 2.5,
        "commit": 2.25,
    }
    assert method[Operation.SAVE].moved_bytes == method[Operation.LOAD_COLD].moved_bytes == GIB
    assert method.usage[Operation.SAVE].gbps == pytest.approx(GIB / 3.25 / 1e9)


def test_costs_are_of_all_ranks_and_memory_is_the_largest_ones(ranked: Ranked) -> None:
    """CPU seconds add up; a rank has to fit by itself; files are counted once for all."""
    [method] = only(ranked(nodes=2, tasks=2, save=[OWN_S] * 3, disk=(12, 4))).setting.methods

    assert method.usage[Operation.SAVE].cpu_s == 4 * 3.25
    assert method.usage[Operation.SAVE].cores == 4
    assert method.usage[Operation.SAVE].extra_bytes == 4 * 2**20
    assert (method.files.count, method.files.directory_count, method.files.per_rank) == (12, 4, 3)
    assert method.files.created_per_s == pytest.approx(16 / 3.25)


def test_the_ceiling_is_what_all_ranks_do_at_once(ranked: Ranked) -> None:
    """A GiB by four ranks from the first start to the last end, 2.75 s; before and after are two measurements."""
    study = ranked(nodes=4, save=[[1.75] * 4], ceiling=[2.0] * 4)
    [method], [setting] = only(study).setting.methods, settings(load_results(study))

    assert method.ceilings["write"].gbps == pytest.approx(GIB / 2.75 / 1e9)
    assert method.usage[Operation.SAVE].of_ceiling == pytest.approx(2.75 / 2.0)
    assert [setting.ceilings["write"].gbps, setting.ceilings["read"].gbps] == pytest.approx([GIB / 2.75 / 1e9] * 2)


def test_a_ceiling_without_one_of_the_ranks_is_none(ranked: Ranked) -> None:
    """What three of four do is less than all of them can."""
    [method] = only(ranked(nodes=4, save=[[1.75] * 4], ceiling=[2.0] * 3)).setting.methods

    assert str(method.ceilings["write"].gbps) == "nan"


def test_both_ways_of_a_ceiling_are_what_all_ranks_do_at_once(ranked: Ranked) -> None:
    """Direct and buffered I/O are two measurements; buffered, 1.25 s a rank, is the faster by then."""
    study = ranked(nodes=4, save=[[1.75] * 4], ceiling=[2.0] * 4)
    [path] = (study / "logs").glob("*.h5")
    log = timing_log.read(path)
    log.ceiling += [replace(each, duration_s=1.25, direct=False, buffered=True) for each in log.ceiling]
    log.write(path)
    [method] = only(study).setting.methods

    assert method.ceilings["write"].gbps == pytest.approx(GIB / 2.0 / 1e9)
    assert (method.ceilings["write"].way, method.ceilings["read"].way) == ("buffered", "buffered")


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ([(1, "save", 2)], "1 invalid save sample(s): missing: rank 2"),
        ([(1, "save", 1), (1, "save", 3)], "1 invalid save sample(s): missing: ranks 1, 3"),
        ([(1, "load", 3)], "1 invalid load sample(s): missing: rank 3"),
    ],
)
def test_an_operation_that_a_rank_is_missing_in_is_invalid(lost: Any, told: str, ranked: Ranked) -> None:
    """The reason names it; the other trials count."""
    study = ranked(nodes=4, save=[OWN_S] * 3, load=[OWN_S] * 3, lost=lost)
    [method] = only(study).setting.methods
    kind = method[Operation.SAVE if lost[0][1] == "save" else Operation.LOAD_COLD]

    assert (len(kind), kind.invalid) == (2, 1)
    assert method.problems == (f"r01-torch_save-shared-4x1: {told}",)


def test_a_rank_that_never_reported_anything_is_missed(ranked: Ranked) -> None:
    """Even where only the first is there, as if the job had one rank."""
    study = ranked(nodes=2, save=[[1.0, 1.0]], lost=[(0, "save", 1)])

    assert only(study).setting.methods[0].problems == (
        "r01-torch_save-shared-2x1: 1 invalid save sample(s): missing: rank 1",
    )


def test_a_rank_that_was_lost_on_the_way_is_missed(ranked: Ranked) -> None:
    """It called and synced, and then there is nothing: the operation has not ended on all ranks."""
    study = ranked(nodes=2, save=[[1.0, 1.0]])
    [path] = study.glob("logs/*.h5")
    log = timing_log.read(path)
    log.samples = [each for each in log.samples if each.rank == 0 or each.phase in {"call", "sync"}]
    log.write(path)

    assert only(study).setting.methods[0].problems == (
        "r01-torch_save-shared-2x1: 1 invalid save sample(s): missing: rank 1",
    )
    assert only(study).setting.methods[0].phases == {}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("LostRankError: rank 3 (node1) did not answer", "LostRankError: rank 3 (node1) did not answer"),
        ("OSError: [Errno 3] x", "OSError: [Errno 3] x; missing: rank 3"),
    ],
)
def test_a_reason_that_names_the_rank_is_enough(own: str, told: str, ranked: Ranked) -> None:
    """What the samples say themselves is kept, and not said twice."""
    study = ranked(nodes=4, save=[OWN_S], lost=[(0, "save", 3)], reasons={(0, "save"): own})

    assert only(study).setting.methods[0].problems == (f"r01-torch_save-shared-4x1: 1 invalid save sample(s): {told}",)


def test_the_first_reason_counts(ranked: Ranked) -> None:
    """Where samples of one operation have several reasons, the earliest is the cause, whatever its first letter."""
    study = ranked(nodes=2, save=[OWN_S[:2]])
    [path] = (study / "logs").glob("*.h5")
    reasons = {"call": "a disk is full", "sync": "the rest is of no use"}
    log = timing_log.read(path)
    log.samples = [
        replace(each, valid=False, reason=reasons[each.phase]) if each.phase in reasons else each
        for each in log.samples
    ]
    log.write(path)

    assert only(study).setting.methods[0].problems == (
        "r01-torch_save-shared-2x1: 1 invalid save sample(s): a disk is full",
    )


def test_fewer_ranks_may_load_than_save(ranked: Ranked) -> None:
    """By the header's number; without it the others were missing."""
    load = [[1.0, 2.0]] * 2
    [method] = only(ranked(nodes=4, save=[OWN_S] * 2, load=load, load_ranks=2)).setting.methods

    assert (method[Operation.LOAD_COLD].median_s, len(method[Operation.LOAD_COLD]), method.problems) == (2.0, 2, ())


def test_the_straggler_is_named(ranked: Ranked) -> None:
    """Rank 3 on node1 was last in every save; of loads every rank was once, and node0's twice of three."""
    loads = [[2.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1.0]]
    study = ranked(nodes=2, tasks=2, save=[OWN_S] * 3, load=loads)
    save, load = only(study).setting.methods[0].imbalances

    assert (save.fastest_s, save.median_s, save.slowest_s) == (1.0, 1.375, 3.0)
    assert save.slowest_over_median == pytest.approx(3.0 / 1.375)
    assert (save.last_rank.name, save.last_rank.trials, save.host_of_last) == ("3", 3, "node1")
    assert (save.last_host.name, save.last_host.trials, save.unsure) == ("node1", 3, 0)
    assert save.relative == pytest.approx([seconds / 1.375 for seconds in OWN_S])
    assert (load.last_rank.trials, load.last_host.name, load.last_host.trials) == (1, "node0", 2)
    assert settings(load_results(study))[0].methods[0].imbalances == (save, load)


def test_nobody_is_last_where_the_clocks_do_not_tell(ranked: Ranked) -> None:
    """Rank 3 ended 1.5 s after rank 2: their clocks, known to a second each, don't tell who was last."""
    [save] = only(ranked(nodes=4, save=[OWN_S] * 2, clock_s=1.0)).setting.methods[0].imbalances
    assert (save.last_rank.trials, save.unsure) == (0, 2)


def test_an_invalid_operation_says_nothing_about_its_ranks(ranked: Ranked) -> None:
    """The killed rank's trial is not among those that are compared."""
    study = ranked(nodes=4, save=[OWN_S, [9.0] * 4], lost=[(1, "save", 3)])

    assert [each.trials for each in only(study).setting.methods[0].imbalances] == [1]


def test_many_rounds_count_all_their_trials(ranked: Ranked) -> None:
    """A rank is the same one in every round, whatever the job."""
    for number in (1, 2):
        study = ranked(nodes=4, save=[OWN_S] * 2, number=number)

    [save] = only(study).setting.methods[0].imbalances
    assert (save.trials, save.last_rank.trials) == (4, 4)


def test_every_rank_of_a_replicated_state_loads_all_of_it(ranked: Ranked, show: Show) -> None:
    """Four GiB are moved to load one; the tables say so, and the rate is that of what was moved."""
    study = ranked(
        nodes=4, save=[[1.75] * 4] * 2, load=[[2.0] * 4] * 2, ceiling=[2.0] * 4, state={"sharding": "replicated"}
    )
    [method], [setting] = only(study).setting.methods, settings(load_results(study))

    assert (method[Operation.SAVE].moved_bytes, method[Operation.LOAD_COLD].moved_bytes) == (GIB, 4 * GIB)
    assert method.usage[Operation.LOAD_COLD].gbps == pytest.approx(4 * GIB / 2.0 / 1e9)
    assert setting.methods[0][Operation.LOAD_COLD].gbps().estimate == pytest.approx(4 * GIB / 2.0 / 1e9)
    assert "a load moves 4 times the bytes of a save" in show(study, "text")


def test_older_logs_have_the_defaults(ranked: Ranked) -> None:
    """A log that says nothing about sharding shares a table with one that says what it was."""
    ranked(nodes=1, save=[[1.0]], number=1)
    study = ranked(nodes=1, save=[[1.0]], number=2)
    path = next(study.glob("logs/r02*"))
    log = timing_log.read(path)
    del log.state["sharding"], log.state["contents"]
    log.write(path)

    assert only(study).setting.agreed["state_sharding"] == "dim0"


def test_merged_logs_say_the_same(ranked: Ranked, tmp_path: Path) -> None:
    """Ranks go through a merged file; one of before them is read as having none."""
    found = entries(ranked(nodes=4, save=[OWN_S] * 2, ceiling=[2.0] * 4))
    write_merged(found, tmp_path / "merged.h5")
    with h5py.File(tmp_path / "merged.h5") as merged, h5py.File(tmp_path / "older.h5", "w") as older:
        older.attrs.update(merged.attrs)
        for name in merged.keys() - {"ranks"}:
            merged.copy(name, older)

    assert repr(entries(tmp_path / "merged.h5")) == repr(found)
    assert [len(frames(entries(tmp_path / name)).ranks) for name in ("merged.h5", "older.h5")] == [4, 0]
    assert frames(entries(tmp_path / "older.h5")).samples.equals(frames(found).samples)


def test_a_log_written_before_the_header_had_loads_and_the_file_ranks(ranked: Ranked, tmp_path: Path) -> None:
    """Attributes that are missing in old logs get their defaults, and a missing table has no rows."""
    path = next(ranked(nodes=1, save=[[1.0]]).glob("logs/*.h5"))
    with h5py.File(path) as log, h5py.File(tmp_path / "older.h5", "w") as older:
        older.attrs.update({key: value for key, value in log.attrs.items() if key not in {"load_ranks", "read_shift"}})
        for name in log.keys() - {"ranks"}:
            log.copy(name, older)

    older_log = columns.read(tmp_path / "older.h5")
    assert (older_log.header.load_ranks, older_log.header.read_shift, len(older_log.tables["ranks"])) == (0, 0, 0)
    assert timing_log.read(tmp_path / "older.h5").ranks == []


@pytest.mark.parametrize("style", ["text", "csv"])
def test_tables_of_several_scales(
    style: str, ranked: Ranked, show: Show, file_regression: FileRegressionFixture
) -> None:
    """All tables of one scale, then the scaling table; the numbers are asserted above."""
    for nodes in (1, 2):
        study = ranked(nodes=nodes, save=[[2.0, 3.0][:nodes]] * 2, load=[[1.0, 1.5][:nodes]] * 2, ceiling=[1.0] * nodes)

    file_regression.check(show(study, style), extension={"text": ".txt", "csv": ".csv"}[style])  # type: ignore[arg-type]
