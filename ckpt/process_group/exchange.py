"""The client of a key-value store that only processes that know a secret can use; `exchange_server` is its server.

Client and server answer each other's random challenge. Every later message carries an HMAC-SHA256 of its direction,
number and content. The server drops a connection that isn't authenticated within seconds; until then, a connection
costs it only a file descriptor.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from itertools import count
from queue import SimpleQueue
from typing import Any

FAILURE = "failure"
"""The key of the first failure. Once it is set, all waits for other keys end soon."""

GONE = "gone"
"""The prefix of keys such as `gone/3`, which is set once rank 3's connection broke."""

SECRET_BYTES = 32

CHALLENGE_BYTES = 32
HELLO = struct.Struct("!32sI64s32s")
"""A client's answer to the server's challenge: its own challenge, its number, its host's name, and its HMAC."""
HEAD = struct.Struct("!I32s")
"""What precedes each message: its length and its HMAC."""

LONGEST_MESSAGE_BYTES = 2**28

AUTHENTICATION_S = 3
"""How long a connection may take to authenticate."""


def hmac_of(key: bytes, *parts: bytes) -> bytes:
    """Compute the HMAC-SHA256 of the concatenated parts."""
    return hmac.digest(key, b"".join(parts), "sha256")


class Line:
    """One direction of an authenticated connection: each message's HMAC is valid only at its position in the stream."""

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._key, self._direction = key, direction
        self._numbers = count()

    def seal(self, content: Any) -> bytes:
        """Return the next message's bytes.

        Raises:
            ValueError: if the message is too long.
        """
        body = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(body) > LONGEST_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(body)} bytes is too long: the limit is {LONGEST_MESSAGE_BYTES}")
        return HEAD.pack(len(body), self._of(body)) + body

    def open(self, code: bytes, body: bytes) -> Any:
        """Return the next message's content.

        Raises:
            ConnectionError: if the message was changed, repeated or reordered.
            ValueError: if it is not JSON.
        """
        if not hmac.compare_digest(code, self._of(body)):
            raise ConnectionError("a message was changed on the way")
        return json.loads(body.decode("utf-8", "surrogatepass"))

    def _of(self, body: bytes) -> bytes:
        return hmac_of(self._key, self._direction, struct.pack("!Q", next(self._numbers)), body)


def lines(secret: bytes, challenge: bytes, hello: bytes) -> tuple[Line, Line]:
    """Return the lines of a connection: from the client to the server, and back."""
    key = hmac_of(secret, b"session", challenge, hello)
    return Line(key, b"up"), Line(key, b"down")


class Exchange:
    """A process's connection to a server, with the methods of torch.distributed's stores.

    Background threads read and write the socket, so that a signal that interrupts a wait leaves the connection usable,
    and a broken connection ends all waits at once.

    Args:
        address: host and port of the server.
        secret: the secret that the server knows.
        number: this process's number.
        name: this process's host.
        limit_s: how long an answer may take, in addition to the time that the request waits.

    Attributes:
        broken: why the connection can't be used any more; empty while it can.

    Raises:
        OSError: if the server can't be reached, or doesn't know the secret.
    """

    def __init__(self, address: tuple[str, int], secret: bytes, number: int, name: str, limit_s: float) -> None:
        self._limit_s = limit_s
        self._socket = socket.create_connection(address, timeout=min(limit_s, 2 * AUTHENTICATION_S))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            challenge = self._exactly(CHALLENGE_BYTES)
            hello = secrets.token_bytes(CHALLENGE_BYTES) + struct.pack("!I64s", number, name.encode()[:64])
            hello += hmac_of(secret, b"client", challenge, hello)
            self._socket.sendall(hello)
            proof = self._exactly(hashlib.sha256().digest_size)
            knows = hmac.compare_digest(proof, hmac_of(secret, b"server", challenge, hello))
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise
        if not knows:
            self._socket.close()
            raise ConnectionError("the server does not know the secret")
        self._up, self._down = lines(secret, challenge, hello)
        self._numbers = count()
        self._pending: dict[int, Future[Any]] = {}
        self._requests: SimpleQueue[list[Any]] = SimpleQueue()
        self.broken = ""
        for work in (self._send, self._receive):
            threading.Thread(target=work, daemon=True).start()

    def _exactly(self, size_bytes: int) -> bytes:
        received = bytearray()
        while len(received) < size_bytes:
            part = self._socket.recv(min(size_bytes - len(received), 2**20))
            if not part:
                raise ConnectionResetError("the connection broke")
            received += part
        return bytes(received)

    def _send(self) -> None:
        with suppress(OSError):  # the receiving thread notices, too
            while True:
                self._socket.sendall(self._up.seal(self._requests.get()))

    def _receive(self) -> None:
        try:
            while True:
                length, code = HEAD.unpack(self._exactly(HEAD.size))
                if length > LONGEST_MESSAGE_BYTES:
                    raise ConnectionError(f"a message of {length} bytes")
                request, value = self._down.open(code, self._exactly(length))
                answer = self._pending.pop(request, None)
                if answer:
                    answer.set_result(value)
        except (OSError, ValueError, TypeError) as error:
            self.broken = str(error) or type(error).__name__
            for number in list(self._pending):
                answer = self._pending.pop(number, None)
                if answer:
                    answer.set_exception(ConnectionResetError(self.broken))

    def _ask(self, name: str, *arguments: Any, more_s: float = 0) -> Any:
        """Send a request and return the answer.

        Raises:
            OSError: if the connection broke, or the server didn't answer this or an earlier request in time.
        """
        number, answer = next(self._numbers), Future[Any]()
        self._pending[number] = answer
        if self.broken:
            raise ConnectionResetError(self.broken)
        self._requests.put([number, name, *arguments])
        limit_s = self._limit_s + more_s
        try:
            return answer.result(limit_s)
        except TimeoutError:
            self.broken = "it does not answer"
            raise TimeoutError(f"it did not answer within {limit_s:.0f} s") from None

    def set(self, key: str, value: str | bytes) -> None:
        """Set a value."""
        self._ask("set", key, _sent(value))

    def get(self, key: str) -> bytes:
        """Return a value.

        Raises:
            KeyError: if the key isn't set.
        """
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Return several values.

        Raises:
            KeyError: if a key isn't set.
        """
        values = self._ask("get", list(keys))
        for key, value in zip(keys, values, strict=True):
            if value is None:
                raise KeyError(key)
        return [value.encode("latin-1") for value in values]

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all keys are set."""
        return None not in self._ask("get", list(keys))

    def wait(self, keys: Sequence[str], limit: timedelta) -> None:
        """Wait until all keys are set; if a failure is reported, only for a moment.

        Raises:
            RuntimeError: if a key is not set in time.
        """
        limit_s = limit.total_seconds()
        if not self._ask("wait", list(keys), limit_s, more_s=limit_s):
            raise RuntimeError("timeout")

    def add(self, key: str, amount: int) -> int:
        """Add to a number and return the sum."""
        return int(self._ask("add", key, amount))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set a value if the current one is as expected, or none is expected and set; return the current value."""
        return str(self._ask("compare_set", key, _sent(expected), _sent(desired))).encode("latin-1")

    def delete_key(self, key: str) -> bool:
        """Remove a value; return whether it was set."""
        return bool(self._ask("delete", [key]))

    def delete_soon(self, keys: Sequence[str]) -> None:
        """Remove values, without waiting for that: whatever this process asks for later comes after it."""
        self._requests.put([next(self._numbers), "delete", list(keys)])

    def leave(self) -> None:
        """Tell the server that this process ends in order."""
        with suppress(OSError):
            self._ask("leave")


def _sent(value: str | bytes) -> str:
    """Encode bytes as text for JSON."""
    return (value.encode() if isinstance(value, str) else bytes(value)).decode("latin-1")
