"""How ranks wait for each other and exchange values, and how they notice who is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from ckpt.errors import LostRankError
from ckpt.process_group.exchange import SECRET_BYTES, Exchange
from ckpt.process_group.exchange_server import Server
from ckpt.process_group.group import SingleProcess
from ckpt.process_group.store_group import StoreGroup

NEVER_S = 10**6
"""A rank that waited as long as that would be seen."""


def ranks_of(count: int, timeout_s: float = NEVER_S) -> list[StoreGroup]:
    """Each rank's view of a group, over one store in this process."""
    store = dist.HashStore()
    members = [(rank, f"host-{rank}") for rank in range(count)]
    return [StoreGroup(store, members, rank, timeout_s, "all") for rank in range(count)]


def at_once(ranks: list[StoreGroup], work: Callable[[StoreGroup], Any]) -> list[Any]:
    """What each rank's work returns, each in a thread of its own."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(work, ranks))


VALUES = [None, True, 7, 0.1, "ü\ud800\n", [1, [2]], {"a": {"b": None}}]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_gather(count: int) -> None:
    """Everybody gets everybody's value, by rank, as often as they ask."""

    def work(ranks: StoreGroup) -> list[list[Any]]:
        return [ranks.all_gather([ranks.rank, value]) for value in VALUES]

    expected = [[[rank, value] for rank in range(count)] for value in VALUES]
    assert [expected] * count == at_once(ranks_of(count), work)


def test_broadcast() -> None:
    """All get the first rank's value, whatever the others gave."""
    assert ["0"] * 3 == at_once(ranks_of(3), lambda ranks: ranks.broadcast(str(ranks.rank)))


def test_barrier() -> None:
    """Nobody goes on before everybody has come."""
    came: list[int] = []

    def work(ranks: StoreGroup) -> int:
        came.append(ranks.rank)
        ranks.barrier()
        return len(came)

    assert [4] * 4 == at_once(ranks_of(4), work)


def test_gather() -> None:
    """The first rank gets the values; the others leave theirs and don't wait."""
    first, second, third = ranks_of(3)
    for number in range(3):
        assert [] == third.gather(f"c{number}")
        assert [] == second.gather(f"b{number}")
        assert [f"a{number}", f"b{number}", f"c{number}"] == first.gather(f"a{number}")


def test_send() -> None:
    """A value goes to one rank, and the next one is another."""
    first, second = ranks_of(2)
    for value in ("once", "twice"):
        second.send(0, value)
        assert value == first.receive(1)


def test_subgroups() -> None:
    """Some of the ranks are a group of their own, in the same order, beside the others and beside all."""

    def work(ranks: StoreGroup) -> tuple[int, int, list[Any], list[Any], str]:
        places = (1, 3) if ranks.rank in {1, 3} else (0, 2, 4)
        group = ranks.subgroup(places, f"node of {places[0]}")
        own = group.all_gather(ranks.rank)
        return group.rank, group.size, own, ranks.all_gather(ranks.rank), group.describe(group.size - 1)

    everybody = [0, 1, 2, 3, 4]
    assert [
        (0, 3, [0, 2, 4], everybody, "rank 4 (host-4)"),
        (0, 2, [1, 3], everybody, "rank 3 (host-3)"),
        (1, 3, [0, 2, 4], everybody, "rank 4 (host-4)"),
        (1, 2, [1, 3], everybody, "rank 3 (host-3)"),
        (2, 3, [0, 2, 4], everybody, "rank 4 (host-4)"),
    ] == at_once(ranks_of(5), work)


def test_a_rank_that_does_not_come() -> None:
    """Who waits is told who is missing and how long it waited, and those that come later are told the same."""
    first, second, third, _ = ranks_of(4, timeout_s=0.2)
    third.gather("here")
    for ranks in (first, second, third):
        with pytest.raises(LostRankError) as caught:
            ranks.all_gather(None)
        assert "rank 1 (host-1), rank 3 (host-3) did not answer within 0 s" == str(caught.value)


def test_many_ranks_that_do_not_come() -> None:
    """A few are named, and the rest is counted."""
    first, *_ = ranks_of(9, timeout_s=0.2)
    with pytest.raises(LostRankError, match=r"rank 1 \(host-1\), .*, rank 5 \(host-5\) and 3 more did not answer"):
        first.barrier()


def test_a_value_that_does_not_come() -> None:
    """Who waits for one rank's value is told of that one."""
    first, _, _ = ranks_of(3, timeout_s=0.2)
    with pytest.raises(LostRankError, match=r"^rank 2 \(host-2\) did not answer"):
        first.receive(2)


def test_a_rank_that_fails() -> None:
    """Whoever waits for anything is told at once what happened to the first that failed, however long it would wait."""
    ranks = ranks_of(4)

    def work(own: StoreGroup) -> str:
        if own.rank == 1:
            own.fail("the disk is full")
            own.fail("and more")
            return ""
        try:
            own.subgroup((0, 2, 3), "others").all_gather(None)  # which goes well
            own.all_gather(None)
        except LostRankError as error:
            return str(error)
        return "nothing was told"

    told = "rank 1 (host-1): the disk is full"
    assert [told, "", told, told] == [answer or "" for answer in at_once(ranks, work)]


def test_those_left() -> None:
    """At the end the first rank gets what those can tell that are left, and nobody is waited for longer than said."""
    first, second, _, fourth = ranks_of(4)
    second.fail("the disk is full")
    assert {} == second.gather_survivors("last words", "b", NEVER_S)
    assert {} == fourth.gather_survivors("last words", "d", NEVER_S)
    assert {0: "a", 1: "b", 3: "d"} == first.gather_survivors("last words", "a", 0.1)


SECRET = bytes(SECRET_BYTES)

SERVER = """
import sys
from ckpt.process_group.exchange_server import Server
print(Server("127.0.0.1", bytes(32), 3).port, flush=True)
sys.stdin.read()
"""


def test_the_first_rank_is_lost() -> None:
    """Whose process holds the store: the others say so instead of what torch says, and don't hang."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        store = Exchange(("127.0.0.1", int(server.stdout.readline())), SECRET, 2, "host-2", 1)
        members = [(rank, f"host-{rank}") for rank in range(3)]
        ranks = StoreGroup(store, members, 2, NEVER_S, "all")
        ranks.gather("here")
        server.kill()
        server.wait()
    with pytest.raises(LostRankError, match=r"^rank 0 \(host-0\) is gone or hangs, and it relays the ranks"):
        ranks.all_gather(None)
    ranks.fail("nobody hears it")


def test_the_first_rank_hangs() -> None:
    """Nobody waits for it for ever: the first call is given up, and later ones at once."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        store = Exchange(("127.0.0.1", int(server.stdout.readline())), SECRET, 2, "host-2", 1)
        members = [(rank, f"host-{rank}") for rank in range(3)]
        ranks = StoreGroup(store, members, 2, 1, "all")
        ranks.gather("here")
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(LostRankError, match=r"^rank 0 \(host-0\) is gone or hangs.*did not answer within 1 s"):
            ranks.all_gather(None)
        with pytest.raises(LostRankError, match="does not answer"):
            ranks.send(0, "nobody reads it")
        ranks.fail("nobody hears it")
        assert {} == ranks.gather_survivors("last words", None, NEVER_S)
        server.kill()


MEMBER = """
import sys, torch, torch.distributed as dist
from ckpt.process_group.exchange import Exchange
from ckpt.process_group.store_group import StoreGroup
rank, port = map(int, sys.argv[1:])
store = Exchange(("127.0.0.1", port), bytes(32), rank, f"host-{rank}", 60)
for name, order in (("a", [0, 1]), ("a", [0, 1]), ("b", [1, 0])):
    ranks = StoreGroup(store, [(place, f"host-{place}") for place in order], rank, 60, name)
    ranks.init_torch_distributed()
    total = torch.tensor([10 ** ranks.rank])
    dist.all_reduce(total)
    print(dist.get_rank(), dist.get_world_size(), int(total))
    ranks.barrier()
dist.destroy_process_group()
"""


def test_process_groups() -> None:
    """The ranks become torch.distributed's default process group; the same ones once, others instead of them."""
    server = Server("127.0.0.1", SECRET, 2)
    command = [sys.executable, "-c", MEMBER]
    started = [
        subprocess.Popen([*command, str(rank), str(server.port)], stdout=subprocess.PIPE, text=True, env=os.environ)
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=600)[0].splitlines() for process in started]
    assert [["0 2 11", "0 2 11", "1 2 11"], ["1 2 11", "1 2 11", "0 2 11"]] == printed


def test_alone() -> None:
    """One process is the first and only rank, and waits for nobody."""
    ranks = SingleProcess()
    ranks.init_torch_distributed()
    ranks.barrier()
    ranks.fail("nobody waits")
    assert (0, 1, ["a"], "b") == (ranks.rank, ranks.size, ranks.all_gather("a"), ranks.broadcast("b"))
