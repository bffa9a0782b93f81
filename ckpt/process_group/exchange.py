"""Small values that processes share: one serves them, and whoever connects proves first that it knows a secret.

Each side answers the other's random challenge, and every later message carries an HMAC-SHA256 over its direction, its
number and its content. A connection that hasn't proved itself within seconds is dropped, and it costs the server no
more than a file descriptor until then.
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
"""The key of the first failure: whoever waits for another key hears of it soon."""

GONE = "gone"
"""`gone/3` is there once rank 3's connection broke."""

SECRET_BYTES = 32

CHALLENGE_BYTES = 32
HELLO = struct.Struct("!32sI64s32s")
"""What a client answers to the challenge: its own, its number, its host's name, and the proof."""
HEAD = struct.Struct("!I32s")
"""Before each message: its length and its code."""

LONGEST_MESSAGE_BYTES = 2**28

PROOF_S = 3
"""How long a connection may take to prove itself."""


def code_of(key: bytes, *parts: bytes) -> bytes:
    """What only who knows the key can say of these bytes."""
    return hmac.digest(key, b"".join(parts), "sha256")


class Line:
    """One direction of a proven connection: messages with a code that no other place in the stream would have."""

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._key, self._direction = key, direction
        self._numbers = count()

    def seal(self, content: Any) -> bytes:
        """The next message, as it is sent.

        Raises:
            ValueError: if it is too long.
        """
        body = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(body) > LONGEST_MESSAGE_BYTES:
            raise ValueError(f"{len(body)} bytes are more than ranks exchange ({LONGEST_MESSAGE_BYTES})")
        return HEAD.pack(len(body), self._of(body)) + body

    def open(self, code: bytes, body: bytes) -> Any:
        """What the next message says.

        Raises:
            ConnectionError: if it is another than was sent, or comes out of turn.
            ValueError: if it is no JSON.
        """
        if not hmac.compare_digest(code, self._of(body)):
            raise ConnectionError("a message is not what was sent")
        return json.loads(body.decode("utf-8", "surrogatepass"))

    def _of(self, body: bytes) -> bytes:
        return code_of(self._key, self._direction, struct.pack("!Q", next(self._numbers)), body)


def lines(secret: bytes, challenge: bytes, hello: bytes) -> tuple[Line, Line]:
    """From the client to the server, and back."""
    key = code_of(secret, b"session", challenge, hello)
    return Line(key, b"up"), Line(key, b"down")


class Exchange:
    """One process's connection to a server, with the methods of torch.distributed's stores.

    Its sockets are read and written in threads of their own, so that a signal that ends a wait leaves them usable, and
    a broken connection ends every wait at once.

    Args:
        address: host and port of the server.
        secret: the server's.
        number: of this process.
        name: of this process's host.
        limit_s: how long any answer may take, beyond what it waits for.

    Attributes:
        broken: why the server can't be asked any more; empty while it can.

    Raises:
        OSError: if the server can't be reached, or doesn't know the secret.
    """

    def __init__(self, address: tuple[str, int], secret: bytes, number: int, name: str, limit_s: float) -> None:
        self._limit_s = limit_s
        self._socket = socket.create_connection(address, timeout=min(limit_s, 2 * PROOF_S))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            challenge = self._exactly(CHALLENGE_BYTES)
            hello = secrets.token_bytes(CHALLENGE_BYTES) + struct.pack("!I64s", number, name.encode()[:64])
            hello += code_of(secret, b"client", challenge, hello)
            self._socket.sendall(hello)
            proof = self._exactly(hashlib.sha256().digest_size)
            knows = hmac.compare_digest(proof, code_of(secret, b"server", challenge, hello))
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
        with suppress(OSError):  # the receiver notices, too
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
        """A request's answer.

        Raises:
            OSError: if the connection broke, or the server does not answer in time, or did not earlier.
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
        """Leave a value."""
        self._ask("set", key, _sent(value))

    def get(self, key: str) -> bytes:
        """A value that is there.

        Raises:
            KeyError: if it isn't.
        """
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Several values."""
        values = self._ask("get", list(keys))
        for key, value in zip(keys, values, strict=True):
            if value is None:
                raise KeyError(key)
        return [value.encode("latin-1") for value in values]

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all are there."""
        return None not in self._ask("get", list(keys))

    def wait(self, keys: Sequence[str], limit: timedelta) -> None:
        """Wait until all are there; not for long if there is a failure.

        Raises:
            RuntimeError: if they don't come in time.
        """
        limit_s = limit.total_seconds()
        if not self._ask("wait", list(keys), limit_s, more_s=limit_s):
            raise RuntimeError("timeout")

    def add(self, key: str, amount: int) -> int:
        """Add to a number, and return the sum."""
        return int(self._ask("add", key, amount))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Replace a value if it is the expected one, or none is expected; what is there then."""
        return str(self._ask("compare_set", key, _sent(expected), _sent(desired))).encode("latin-1")

    def delete_key(self, key: str) -> bool:
        """Remove a value; whether it was there."""
        return bool(self._ask("delete", key))

    def leave(self) -> None:
        """Go without being missed."""
        with suppress(OSError):
            self._ask("leave")


def _sent(value: str | bytes) -> str:
    """Bytes as JSON can hold them."""
    return (value.encode() if isinstance(value, str) else bytes(value)).decode("latin-1")
