"""What a job's log calls durable or cold, as the counters of the servers and the devices show it.

A trial saves and loads as in a job, and its clock reads the counters: they are those of the very moments that the log
is about. What a filesystem can prove by itself is in `test_proof_on_filesystems`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.node import proof
from jobs.node.groups import ProcessGroups
from jobs.node.proof import PROVEN, examine
from jobs.node.trial import Trial
from support.bench import Bench, new_bench
from support.filesystems import Mounts, do_without
from support.servers import Counts, WatchingClock, Witness, witness_of
from support.two_nodes import TwoNodes

pytestmark = pytest.mark.filesystems

MIB = 2**20
STATE_BYTES = 32 * MIB
LITTLE_BYTES = 4 * MIB
"""More than a filesystem's own journal and metadata, and much less than the state."""

WORDS = {
    "xfs": ("committed", "cold"),
    "btrfs-zstd": ("committed", "cold"),
    "ext4-buffered": ("committed", "cold-unproven"),
    "gluster": ("committed-unproven", "cold-unproven"),
    "cephfs": ("committed-unproven", "cold-unproven"),
}
"""What the log calls a save, and a load after the page cache was emptied."""


@pytest.fixture(params=WORDS)
def name(request: pytest.FixtureRequest, mounts: Mounts) -> str:
    """A filesystem that is installed here; CephFS need not be."""
    chosen: str = request.param
    mounts.start(chosen, required=chosen != "cephfs")
    below = examine(mounts.root, ProcessGroups.alone(), shifted=False)
    if below.cold != PROVEN:
        do_without(f"nothing can be proven where the images lie: {below.cold}")
    return chosen


@pytest.fixture
def witness(name: str, mounts: Mounts) -> Witness:
    """Who stores its files."""
    return witness_of(name, mounts)


@pytest.fixture
def watched(name: str, witness: Witness, mounts: Mounts) -> Iterator[Bench]:
    """A trial loop there whose state no filesystem compresses, and whose clock reads the counters."""
    with tempfile.TemporaryDirectory(dir=mounts.start(name)) as directory:
        yield bench_in(Path(directory), witness)


def bench_in(directory: Path, witness: Witness) -> Bench:
    """A trial loop in a directory, with what can be proven there."""
    bench = new_bench(directory)
    content = bytearray(os.urandom(STATE_BYTES))
    bench.state = dict(zip("ab", torch.frombuffer(content, dtype=torch.float32).chunk(2), strict=True))
    bench.proof = examine(directory, ProcessGroups.alone(), shifted=False)
    bench.clock = WatchingClock(witness)
    return bench


def counts_of(bench: Bench) -> list[Counts]:
    """What the clock noted."""
    assert isinstance(bench.clock, WatchingClock)
    return bench.clock.counts


def test_what_is_called_durable_is_on_the_disk(name: str, watched: Bench) -> None:
    """When the log says that a checkpoint is committed, the device, or the servers, have all of it, and on their disks.

    This holds for GlusterFS too, whose log says `committed-unproven`: the servers do more than this node can prove.
    CephFS' client writes a file to the OSDs as soon as it is closed, and they past their page caches: there this test
    doesn't notice a save without a sync.
    """
    watched.run(warm_load=False)

    (total,) = [sample for sample in watched.samples("save") if sample.phase == "total"]
    assert (total.valid, total.durability) == (True, WORDS[name][0]), total.reason
    before, *_, committed = counts_of(watched)[:4]
    since = committed - before
    assert since.written_bytes >= STATE_BYTES
    assert since.unsynced_bytes < LITTLE_BYTES


def test_where_a_load_comes_from(name: str, watched: Bench) -> None:
    """Only what the device itself delivered is called cold; what a server's memory may have delivered is unproven."""
    watched.run()

    cold, warm = watched.samples("load")
    assert (cold.valid, cold.cache, warm.cache) == (True, WORDS[name][1], "warm"), cold.reason
    begun, ended, warm_begun, warm_ended = counts_of(watched)[4:]
    if cold.cache == "cold":
        assert (ended - begun).read_bytes >= STATE_BYTES
    if name == "gluster":
        assert (ended - begun).read_bytes < LITTLE_BYTES
    assert (warm_ended - warm_begun).read_bytes < LITTLE_BYTES


def test_what_another_client_wrote_is_cold_for_this_node_only(mounts: Mounts, second_client: Path) -> None:
    """It is called `client-cold`, whether the bricks read their disks or serve it from memory."""
    directory, witness = mounts.start("gluster"), witness_of("gluster", mounts)
    with tempfile.TemporaryDirectory(dir=directory) as written:
        here = bench_in(Path(written), witness)
        Trial(0, here.subject(), here.context(), warmup=False).save(here.scratch / "trial-0")
        there = replace_target(here, second_client / here.scratch.relative_to(directory), witness)
        other = replace(ProcessGroups.alone(), world=TwoNodes(("1", proof._client(directory))))
        there.proof = examine(there.scratch, other, shifted=True)

        from_memory = loaded(there)
        witness.forget()
        from_disks = loaded(there)

    assert from_memory.read_bytes < LITTLE_BYTES
    assert from_disks.read_bytes >= STATE_BYTES


def replace_target(bench: Bench, scratch: Path, witness: Witness) -> Bench:
    """The same trial loop on another node's mount."""
    other = replace(bench, target=scratch.parent, scratch=scratch, log=bench.log)
    other.clock = WatchingClock(witness)
    return other


def loaded(bench: Bench) -> Counts:
    """What the servers read during a cold load, which is called cold for this node only."""
    trial = Trial(0, bench.subject(), bench.context(), warmup=False)
    trial.load(bench.scratch / "trial-0", cold=True)
    (sample,) = trial.samples
    assert (sample.valid, sample.cache) == (True, "client-cold"), sample.reason
    begun, ended = counts_of(bench)[-2:]
    return ended - begun
