"""The server of the key-value store that `ckpt.process_group.exchange` connects to."""

from __future__ import annotations

import hmac
import json
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ckpt.process_group.exchange import (
    AUTHENTICATION_S,
    CHALLENGE_BYTES,
    FAILURE,
    GONE,
    HEAD,
    HELLO,
    LONGEST_MESSAGE_BYTES,
    Line,
    hmac_of,
    lines,
)

_LONGEST_KEY = 1000
_LONGEST_WAIT_S = 10**7

_MOST_UNAUTHENTICATED = 128
"""If there are more unauthenticated connections, the oldest is dropped: authentication takes milliseconds."""

_TICK_S = 0.25
_LOOK_S = 0.5
"""How long waits continue after a failure: the key may be set at any moment."""


@dataclass(eq=False, slots=True)
class _Peer:
    """The server's side of a connection."""

    socket: socket.socket
    deadline: float
    challenge: bytes = field(default_factory=lambda: secrets.token_bytes(CHALLENGE_BYTES))
    description: str = ""
    number: int = -1
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    up: Line | None = None
    down: Line | None = None
    leaves: bool = False


@dataclass(eq=False, slots=True)
class _Wait:
    """A request that is answered when all keys are set, or after its time limit."""

    peer: _Peer
    request: int
    missing: set[str]
    end: float


class Server:
    """Serves the values in a thread of this process.

    Args:
        host: the address to listen on; empty for all addresses of this machine.
        secret: that clients must know.
        size: the number of clients, which are numbered from 0.
    """

    def __init__(self, host: str, secret: bytes, size: int) -> None:
        family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
        self._listener = socket.create_server(
            (host, 0), family=family, backlog=1024, dualstack_ipv6=not host and family == socket.AF_INET6
        )
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._secret, self._size = secret, size
        self._values: dict[str, str] = {}
        self._peers: dict[int, _Peer] = {}
        self._unauthenticated: dict[_Peer, None] = {}
        self._waits: dict[str, set[_Wait]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, daemon=True, name="exchange").start()

    def _serve(self) -> None:
        try:
            self._serve_all()
        finally:  # clients that wait notice it
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()

    def _serve_all(self) -> None:
        tick = 0.0
        while True:
            busy = self._waits or self._unauthenticated
            for key, events in self._selector.select(_TICK_S if busy else None):
                if key.data is None:
                    self._accept()
                else:
                    self._attend(key.data, events)
            if time.monotonic() >= tick:
                tick = time.monotonic() + _TICK_S
                self._end_what_is_over()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # too many open files, or the connection is closed already
            if self._unauthenticated:
                self._drop(next(iter(self._unauthenticated)), "")
            else:
                time.sleep(0.01)
            return
        if len(self._unauthenticated) >= _MOST_UNAUTHENTICATED:
            self._drop(next(iter(self._unauthenticated)), "")
        connection.setblocking(False)
        peer = _Peer(connection, time.monotonic() + AUTHENTICATION_S)
        self._unauthenticated[peer] = None
        self._selector.register(connection, selectors.EVENT_READ, peer)
        try:
            self._send(peer, peer.challenge)
        except OSError:
            self._drop(peer, "")

    def _attend(self, peer: _Peer, events: int) -> None:
        """Read from a peer and write what is left for it; an error of a peer ends only that peer's connection."""
        if peer.socket.fileno() < 0:
            return  # dropped already
        try:
            if events & selectors.EVENT_WRITE:
                self._send(peer, b"")
            if events & selectors.EVENT_READ:
                received = peer.socket.recv(2**20 if peer.up else HELLO.size - len(peer.incoming))
                if not received:
                    self._drop(peer, "its connection to rank 0 broke")
                    return
                peer.incoming += received
                self._read(peer)
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(peer, f"its connection to rank 0 broke: {error}")
        except Exception as error:  # noqa: BLE001  # no peer's message may end the server
            self._drop(peer, f"it sent an invalid request ({type(error).__name__}: {str(error)[:200]})")

    def _read(self, peer: _Peer) -> None:
        if peer.up is None:
            if len(peer.incoming) < HELLO.size:
                return
            self._prove(peer, bytes(peer.incoming[: HELLO.size]))
            del peer.incoming[: HELLO.size]
        while peer.up is not None and len(peer.incoming) >= HEAD.size:
            length, code = HEAD.unpack_from(peer.incoming)
            if length > LONGEST_MESSAGE_BYTES:
                raise ValueError(f"a message of {length} bytes")
            if len(peer.incoming) < HEAD.size + length:
                return
            content = peer.up.open(code, bytes(peer.incoming[HEAD.size : HEAD.size + length]))
            del peer.incoming[: HEAD.size + length]
            request, name, *arguments = content
            answer = getattr(self, f"_do_{name}")(peer, request, *arguments)
            if answer is not None:
                self._answer(peer, request, answer[0])

    def _prove(self, peer: _Peer, hello: bytes) -> None:
        _, number, name, proof = HELLO.unpack(hello)
        if not hmac.compare_digest(proof, hmac_of(self._secret, b"client", peer.challenge, hello[: -len(proof)])):
            raise ConnectionError("it doesn't know the secret")
        if number >= self._size:
            raise ConnectionError(f"there is no rank {number}")
        before = self._peers.pop(number, None)
        if before:  # the client gave up on that connection and tries again
            before.leaves = True
            self._drop(before, "")
        peer.number, peer.description = number, f"rank {number} ({name.rstrip(bytes(1)).decode(errors='replace')})"
        del self._unauthenticated[peer]
        self._peers[number] = peer
        self._send(peer, hmac_of(self._secret, b"server", peer.challenge, hello))
        peer.up, peer.down = lines(self._secret, peer.challenge, hello)

    def _answer(self, peer: _Peer, request: int, value: Any) -> None:
        assert peer.down is not None
        self._send(peer, peer.down.seal([request, value]))

    def _send(self, peer: _Peer, content: bytes) -> None:
        peer.outgoing += content
        with suppress(BlockingIOError):
            while peer.outgoing:
                del peer.outgoing[: peer.socket.send(peer.outgoing)]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        self._selector.modify(peer.socket, events, peer)

    def _drop(self, peer: _Peer, why: str) -> None:
        if peer.socket.fileno() < 0:
            return
        self._unauthenticated.pop(peer, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(peer.socket)
        peer.socket.close()
        for wait in {wait for waits in self._waits.values() for wait in waits if wait.peer is peer}:
            self._forget(wait)
        if self._peers.get(peer.number) is peer:
            del self._peers[peer.number]
        if peer.up is not None and not peer.leaves:
            self._put(f"{GONE}/{peer.number}", "")
            if FAILURE not in self._values:
                self._put(FAILURE, json.dumps(f"{peer.description} is gone: {why}"))

    def _put(self, key: str, value: str) -> None:
        self._values[key] = value
        for wait in self._waits.pop(key, ()):
            wait.missing.discard(key)
            if not wait.missing:
                self._conclude(wait, True)
        if key == FAILURE:
            soon = time.monotonic() + _LOOK_S
            for wait in {wait for waits in self._waits.values() for wait in waits}:
                wait.end = min(wait.end, soon)

    def _conclude(self, wait: _Wait, came: bool) -> None:
        self._forget(wait)
        if wait.peer.socket.fileno() < 0:
            return
        try:
            self._answer(wait.peer, wait.request, came)
        except OSError as error:
            self._drop(wait.peer, f"its connection to rank 0 broke: {error}")

    def _forget(self, wait: _Wait) -> None:
        for key in wait.missing:
            waits = self._waits.get(key, set())
            waits.discard(wait)
            if not waits:
                self._waits.pop(key, None)

    def _end_what_is_over(self) -> None:
        now = time.monotonic()
        for peer in [peer for peer in self._unauthenticated if peer.deadline < now]:
            self._drop(peer, "")
        for wait in {wait for waits in self._waits.values() for wait in waits if wait.end < now}:
            self._conclude(wait, False)

    # The clients' requests. An answer in a tuple is sent at once.

    def _do_set(self, _peer: _Peer, _request: int, key: Any, value: Any) -> tuple[Any]:
        self._put(_key(key), _text(value))
        return (None,)

    def _do_add(self, _peer: _Peer, _request: int, key: Any, amount: Any) -> tuple[Any]:
        total = int(self._values.get(_key(key), "0")) + int(amount)
        self._put(key, str(total))
        return (total,)

    def _do_compare_set(self, _peer: _Peer, _request: int, key: Any, expected: Any, desired: Any) -> tuple[Any]:
        if self._values.get(_key(key), _text(expected)) == expected and (key in self._values or not expected):
            self._put(key, _text(desired))
        return (self._values.get(key, expected),)

    def _do_get(self, _peer: _Peer, _request: int, keys: Any) -> tuple[Any]:
        return ([self._values.get(_key(key)) for key in keys],)

    def _do_delete(self, _peer: _Peer, _request: int, keys: Any) -> tuple[Any]:
        return (sum(self._values.pop(_key(key), None) is not None for key in keys),)

    def _do_wait(self, peer: _Peer, request: int, keys: Any, limit_s: Any) -> tuple[Any] | None:
        missing = {_key(key) for key in keys if key not in self._values}
        if not missing:
            return (True,)
        if not 0 <= limit_s <= _LONGEST_WAIT_S:
            raise ValueError(f"a wait of {limit_s} s")
        if FAILURE in self._values:
            limit_s = min(limit_s, _LOOK_S)
        wait = _Wait(peer, request, missing, time.monotonic() + limit_s)
        for key in missing:
            self._waits.setdefault(key, set()).add(wait)
        return None

    def _do_leave(self, peer: _Peer, _request: int) -> tuple[Any]:
        peer.leaves = True
        return (None,)


def _key(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_KEY:
        raise TypeError(f"a key must be a text of at most {_LONGEST_KEY} characters")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a value must be a text")
    return value
