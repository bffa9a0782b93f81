"""What a job's log calls durable or cold, as the counters of the servers and the devices show it.

A trial saves and loads as in a job, and its clock reads the counters: they are those of the very moments that the log
is about. What a filesystem can prove by itself is in `test_proof_on_filesystems`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.node.groups import ProcessGroups
from jobs.node.proof import PROVEN, examine
from support import on_nfs
from support.bench import Bench
from support.filesystems import Mounts, do_without
from support.servers import (
    LITTLE_BYTES,
    STATE_BYTES,
    Counts,
    Observed,
    Witness,
    counts_of,
    load,
    on_another_node,
    save,
    watched_bench,
    witness_of,
)

pytestmark = pytest.mark.filesystems

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
        yield watched_bench(Path(directory), witness)


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
        here = watched_bench(Path(written), witness)
        save(here)
        there = on_another_node(here, second_client, witness)

        from_memory = load(there, cold=True)
        witness.forget()
        from_disks = load(there, cold=True)

    assert (from_memory.word, from_disks.word) == ("client-cold", "client-cold")
    assert from_memory.counts.read_bytes < LITTLE_BYTES
    assert from_disks.counts.read_bytes >= STATE_BYTES


def test_on_nfs_the_log_claims_no_more_than_its_server_does(mounts: Mounts) -> None:
    """A save is `committed-unproven`: an export with `sync` has it on the disk by then, one with `async` in memory.

    What the client has dropped from its page cache the server sends again, be it from its memory or from its disk: no
    load is called cold, and what another client wrote is `client-cold`. The client and the server are the kernel's own.
    """
    printed = mounts.on_nfs(sys.executable, on_nfs.__file__).splitlines()[-1]
    seen = {name: Observed(each["word"], Counts(**each["counts"])) for name, each in json.loads(printed).items()}

    assert {name: observed.word for name, observed in seen.items()} == {
        "save": "committed-unproven",
        "save, async": "committed-unproven",
        "warm load": "warm",
        "cold load": "cold-unproven",
        "cold load from disk": "cold-unproven",
        "second client's load": "client-cold",
        "second client's load from disk": "client-cold",
    }
    for name, unsynced in (("save", False), ("save, async", True)):
        assert seen[name].counts.written_bytes >= STATE_BYTES
        assert (seen[name].counts.unsynced_bytes >= STATE_BYTES) is unsynced
        assert (seen[name].counts.unsynced_bytes < LITTLE_BYTES) is not unsynced
    assert seen["warm load"].counts.sent_bytes < LITTLE_BYTES
    for name in ("cold load", "second client's load"):
        assert seen[name].counts.sent_bytes >= STATE_BYTES
        assert seen[name].counts.read_bytes < LITTLE_BYTES
        assert seen[f"{name} from disk"].counts.read_bytes >= STATE_BYTES
