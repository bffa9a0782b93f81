"""What a trial's log says of caches and durability: proven, or not, and how much of it is unknown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ckpt.disk import page_cache
from support.bench import Bench


@pytest.mark.usefixtures("on_disk")
def test_cold_by_proof(bench: Bench) -> None:
    """After eviction a load is cold, with the proof; the next one is warm, with all pages in the cache."""
    bench.run(repeats=3)

    cold, warm = bench.samples("load")[::2], bench.samples("load")[1::2]
    assert [s.cache for s in cold] == ["cold"] * 3
    assert all(0 <= s.resident_fraction < 0.01 for s in cold)
    assert [s.cache for s in warm] == ["warm"] * 3
    assert [s.resident_fraction for s in warm] == [1.0] * 3
    assert [s.load_number for s in cold + warm] == [0] * 3 + [1] * 3
    assert {s.load_number for s in bench.samples("save")} == {-1}
    assert all(math.isnan(s.resident_fraction) for s in bench.samples("save"))


@pytest.mark.parametrize("fraction", [0.01, 1.0, math.nan])
def test_not_proven_cold(fraction: float, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages stay in the cache, or nobody knows, the sample says that it isn't proven to be cold."""
    monkeypatch.setattr(page_cache, "residency", lambda *_: (1, fraction))
    bench.run()

    assert [s.cache for s in bench.samples("load")] == ["cold-unproven", "warm"]


def test_without_eviction_nothing_is_cold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction that has no effect is noticed by what is resident, not assumed."""
    monkeypatch.setattr(page_cache, "evict", lambda *_: None)
    bench.run(warm_load=False)

    (load,) = bench.samples("load")
    assert (load.cache, load.resident_fraction, load.valid) == ("cold-unproven", 1.0, True)


def test_a_cache_that_nobody_can_look_into_proves_nothing(bench: Bench) -> None:
    """On Lustre and its like no load is called proven cold."""
    bench.proof = replace(bench.proof, cold="servers have caches")
    bench.run()

    assert bench.samples("load")[0].cache == "cold-unproven"


def test_what_another_client_wrote_is_not_in_this_nodes_cache(bench: Bench) -> None:
    """A load of what another node wrote is cold as far as this node goes, and only that far."""
    bench.proof = replace(bench.proof, cold="servers have caches", beyond=True)
    bench.run()

    assert bench.samples("load")[0].cache == "client-cold"


def test_another_clients_data_that_are_in_this_nodes_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page cache that holds the checkpoint all the same makes the load unproven."""
    bench.proof = replace(bench.proof, cold="servers have caches", beyond=True)
    monkeypatch.setattr(page_cache, "evict", lambda *_: None)
    bench.run()

    assert bench.samples("load")[0].cache == "cold-unproven"


def test_durability_that_nobody_can_see(bench: Bench) -> None:
    """Where the kernel counts no dirty pages a save is committed, but not called durable; nor are 0 pages logged."""
    bench.proof = replace(bench.proof, dirty_seen=False, durability="the kernel counts no dirty pages")
    bench.run()

    assert [s.durability for s in bench.samples("save")] == [
        "returned", "synced", "committed-unproven", "committed-unproven",
    ]  # fmt: skip
    assert {-1} == {s.dirty_pages for s in bench.samples("save")}
    assert {True} == {s.valid for s in bench.samples("save")}


def test_servers_may_hold_what_this_kernel_has_sent(bench: Bench) -> None:
    """Where this kernel's dirty pages are seen, but not the servers', they are counted, and prove nothing."""
    bench.proof = replace(bench.proof, durability="servers have memory")
    bench.run()

    (total,) = bench.samples("save", "total")
    dirty_pages = 0 if bench.proof.dirty_seen else -1
    assert (total.durability, total.dirty_pages, total.valid) == ("committed-unproven", dirty_pages, True)


def test_residency_that_nobody_can_see_is_unknown(bench: Bench) -> None:
    """Where the kernel counts no cached pages, none counted is not none cached."""
    bench.proof = replace(bench.proof, resident_seen="")
    bench.run()

    cold, warm = bench.samples("load")
    assert (cold.cache, warm.cache) == ("cold-unproven", "warm")
    assert math.isnan(cold.resident_fraction)
    assert math.isnan(warm.resident_fraction)


@pytest.mark.parametrize("counted", [True, False])
def test_bytes_that_the_kernel_does_not_count_are_unknown(bench: Bench, *, counted: bool) -> None:
    """On FUSE a process fetches nothing from storage by its counter: its number is not known, rather than 0."""
    bench.proof = replace(bench.proof, reads_counted=counted)
    bench.run()

    assert (bench.samples("load")[0].device_read_bytes >= 0) is counted
