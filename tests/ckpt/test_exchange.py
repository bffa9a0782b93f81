"""Ranks talk through a server that strangers can neither join, nor stop, nor fill."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest
import torch.distributed as dist

from ckpt.errors import LostRankError
from ckpt.process_group.exchange import CHALLENGE_BYTES, SECRET_BYTES, Exchange
from ckpt.process_group.exchange_server import Server
from ckpt.process_group.store_group import StoreGroup

SECRET = bytes(range(SECRET_BYTES))
WRONG_SECRET = bytes(SECRET_BYTES)
COUNT = 3
NEVER_S = 10**6


@pytest.fixture
def server() -> Server:
    """One that nobody uses yet."""
    return Server("127.0.0.1", SECRET, COUNT)


def join(server: Server, number: int, limit_s: float = 60) -> Exchange:
    """A rank's connection."""
    return Exchange(("127.0.0.1", server.port), SECRET, number, f"host-{number}", limit_s)


def ranks_at(server: Server) -> list[StoreGroup]:
    """All ranks, connected, who would wait for ever."""
    members = [(rank, f"host-{rank}") for rank in range(COUNT)]
    return [StoreGroup(join(server, rank), members, rank, NEVER_S, "all") for rank in range(COUNT)]


def assert_they_meet(server: Server) -> None:
    """All ranks connect, and exchange values."""
    with ThreadPoolExecutor(COUNT) as pool:
        ranks = ranks_at(server)
        assert [[0, 1, 2]] * COUNT == list(pool.map(lambda own: own.all_gather(own.rank), ranks))


def connected(server: Server) -> socket.socket:
    """A stranger."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def is_dropped(stranger: socket.socket) -> bool:
    """Whether the server ends the connection, after what it has sent; a stranger waits for 20 s."""
    with suppress(ConnectionResetError):
        while stranger.recv(1000):
            pass
    return True


def garbage(stranger: socket.socket) -> None:
    """A stranger's many bytes."""
    with suppress(OSError):  # it was dropped meanwhile
        stranger.sendall(b"\xff" * 2**20)


def old_protocol(stranger: socket.socket) -> None:
    """What a client of torch's TCPStore sends to set the key of a failure."""
    stranger.sendall(struct.pack("<BI", 0, 0x3C85F7CE) + b"\0" + struct.pack("<Q", 7) + b"failure")
    stranger.sendall(struct.pack("<Q", 10) + b'"I say so"' + bytes(200))


def nothing(_stranger: socket.socket) -> None:
    """A stranger's silence."""


@pytest.mark.parametrize("sends", [garbage, old_protocol, nothing])
def test_a_stranger_is_dropped(sends: Callable[[socket.socket], None], server: Server) -> None:
    """Whatever somebody sends who doesn't know the secret, or if nothing, its connection ends; the ranks go on."""
    with connected(server) as stranger:
        assert CHALLENGE_BYTES == len(stranger.recv(CHALLENGE_BYTES))
        sends(stranger)
        assert is_dropped(stranger)
    assert_they_meet(server)


def test_a_wrong_secret(server: Server) -> None:
    """Who only guesses the secret is refused, though it follows the protocol."""
    with pytest.raises(OSError, match=r"broke|reset"):
        Exchange(("127.0.0.1", server.port), WRONG_SECRET, 1, "host-1", 60)
    assert_they_meet(server)


def test_a_server_without_the_secret() -> None:
    """A rank doesn't talk to somebody who answers for the first one."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(bytes(CHALLENGE_BYTES))
                connection.recv(1000)
                connection.sendall(bytes(32))
                connection.recv(1)

        answered = pool.submit(answer)
        with pytest.raises(ConnectionError, match="does not know the secret"):
            Exchange(listener.getsockname(), SECRET, 1, "host-1", 60)
        answered.result(20)


def test_no_such_rank(server: Server) -> None:
    """A number beyond the job's is refused."""
    with pytest.raises(OSError, match=r"broke|reset"):
        join(server, COUNT)


def test_held_connections(server: Server) -> None:
    """Two hundred connections that say nothing keep nobody out, and end."""
    with ExitStack() as stack:
        held = [stack.enter_context(connected(server)) for _ in range(200)]
        assert_they_meet(server)
        assert {True} == set(map(is_dropped, held))


def test_an_injected_message(server: Server) -> None:
    """Bytes that get into a proven connection end it: a message counts with its code only, and only in its turn."""
    first, second, _ = ranks_at(server)
    store = second._store
    assert isinstance(store, Exchange)
    sealed = store._up.seal([10**6, "set", "all/1/1", "1"])
    store._socket.sendall(sealed + sealed)  # the second one is a replay
    with pytest.raises(LostRankError, match=r"^rank 1 \(host-1\) is gone: .*was changed on the way"):
        first.barrier()


def test_many_ranks() -> None:
    """Hundreds of ranks connect at once, and all get everybody's value."""
    count = 200
    server = Server("127.0.0.1", SECRET, count)
    members = [(rank, "host") for rank in range(count)]

    def work(rank: int) -> int:
        exchange = join(server, rank)
        total = sum(StoreGroup(exchange, members, rank, 60, "all").all_gather(rank))
        exchange.leave()
        return total

    with ThreadPoolExecutor(count) as pool:
        assert {count * (count - 1) // 2} == set(pool.map(work, range(count)))


def test_a_rank_is_gone(server: Server) -> None:
    """A broken connection ends the others' waits at once, and they hear whose it was, however long they would wait."""
    first, second, third = ranks_at(server)
    assert isinstance(third._store, Exchange)
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(ranks.barrier) for ranks in (first, second)]
        third._store._socket.shutdown(socket.SHUT_RDWR)
        for wait in waits:
            with pytest.raises(LostRankError, match=r"^rank 2 \(host-2\) is gone: its connection to rank 0 broke"):
                wait.result(60)
    assert {0: "a", 1: "b"} == (second.gather_survivors("end", "b", 0) or first.gather_survivors("end", "a", 60))


def test_a_rank_that_leaves(server: Server) -> None:
    """Who says that it goes is no loss."""
    first, second, third = ranks_at(server)
    third.leave()
    assert isinstance(third._store, Exchange)
    third._store._socket.shutdown(socket.SHUT_RDWR)
    second.send(0, "still here")
    assert "still here" == first.receive(1)
    assert isinstance(first._store, Exchange)
    assert not first._store.check(["failure"])


REQUESTS = {
    "no list": 7,
    "no such request": [1, "destroy"],
    "a key of another type": [1, "set", 7, "x"],
    "a key of another length": [1, "set", "k" * 10**5, "x"],
    "a value of another type": [1, "set", "k", {}],
    "an endless wait": [1, "wait", ["k"], float("nan")],
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_of_another_shape(request_: object, server: Server) -> None:
    """A rank that knows the secret and sends nonsense is the one that the others name."""
    first, _, third = ranks_at(server)
    assert isinstance(third._store, Exchange)
    third._store._requests.put(request_)  # type: ignore[arg-type]  # that's the point
    with pytest.raises(LostRankError, match=r"^rank 2 \(host-2\) is gone: it sent an invalid request"):
        first.barrier()


def no_number(value: object) -> int:
    """Reads a number."""
    if not isinstance(value, int):
        raise TypeError("no number")
    return value


def test_a_value_of_another_shape(server: Server) -> None:
    """The reader names the rank that sent it, and the others hear of it."""
    first, second, third = ranks_at(server)
    second.gather("evil")
    third.gather(2)
    told = r"rank 1 \(host-1\) sent an unexpected value: no number"
    with pytest.raises(LostRankError, match=told):
        first.read(first.gather(0), no_number)
    with pytest.raises(LostRankError, match=told):
        third.barrier()


def test_a_value_that_is_no_json(server: Server) -> None:
    """So does who gets bytes that are no JSON."""
    first, second, third = ranks_at(server)
    third.gather(2)
    assert isinstance(second._store, Exchange)
    second._store.set("all/1/1", b"\xff[")
    with pytest.raises(LostRankError, match=r"^rank 1 \(host-1\) sent invalid JSON"):
        first.gather(0)


def test_a_failure_that_is_no_text(server: Server) -> None:
    """What lies under the failure's key may be anything: whoever waits ends with one message."""
    first, second, _ = ranks_at(server)
    assert isinstance(second._store, Exchange)
    second._store.set("failure", b"{")
    with pytest.raises(LostRankError, match="left no readable reason"):
        first.barrier()


def test_the_server_keeps_no_value_that_all_have_read(server: Server) -> None:
    """A loop's ranks exchange values in every step: ten steps leave as little as one does."""
    ranks = ranks_at(server)

    def step(own: StoreGroup) -> None:
        own.gather("a value of every rank")
        own.all_gather("and for every rank")

    kept = []
    with ThreadPoolExecutor(COUNT) as pool:
        for _ in range(10):
            list(pool.map(step, ranks))
            kept.append(len(server._values))
    assert {1} == set(kept)


STORES: list[Callable[[Server], Exchange | dist.HashStore]] = [
    lambda server: join(server, 0),
    lambda _: dist.HashStore(),
]


@pytest.mark.parametrize("make", STORES, ids=["ours", "torch's"])
def test_methods(make: Callable[[Server], Exchange], server: Server) -> None:
    """The exchange does what torch's own store does."""
    store = make(server)
    store.set("a", b"\0\xff")
    store.set("b", "text")
    store.wait(["a", "b"], timedelta(seconds=20))
    assert [b"\0\xff", b"text"] == store.multi_get(["a", "b"])
    assert (True, False) == (store.check(["a", "b"]), store.check(["a", "c"]))
    assert (2, 5) == (store.add("n", 2), store.add("n", 3))
    assert b"text" == store.compare_set("b", "other", "new")
    assert b"new" == store.compare_set("b", "text", "new")
    assert (True, False) == (store.delete_key("a"), store.delete_key("a"))
    with pytest.raises(RuntimeError, match=r"(?i)timeout"):
        store.wait(["a"], timedelta(seconds=0.01))
