"""A file server on loopback that misbehaves as told, and a clock that makes its victims' patience short.

Each connection is served by a thread that writes to the bare socket, so nothing between a test and the wire tidies up
what the test wants to be wrong. Nothing here sleeps for longer than the client stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

T = TypeVar("T")

_BLOCK: Final = 2**16


@dataclass(frozen=True)
class Request:
    """One request as it came, names of headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float  #: monotonic seconds

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One answer's way to the client."""

    def __init__(self, connection: socket.socket, request: Request, stopping: threading.Event) -> None:
        self.request = request
        self._connection = connection
        self._stopping = stopping

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def head(self, status: int = 200, **headers: str) -> None:
        """The status line and headers, `content_length` written for `Content-Length`."""
        lines = [
            f"HTTP/1.1 {status} Whatever",
            *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items()),
        ]
        self.send(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def pause(self, seconds: float) -> bool:
        """Whether the client and the server are still there so many seconds later."""
        self._connection.settimeout(seconds)
        try:
            return bool(self._connection.recv(1)) and not self._stopping.is_set()
        except TimeoutError:
            return not self._stopping.is_set()
        finally:
            self._connection.settimeout(None)

    def hold(self) -> None:
        """Say nothing until the client leaves or the server stops."""
        while self.pause(0.1):
            pass


Answer = Callable[[Wire], None]


@dataclass
class _Route:
    answers: list[Answer]
    requests: list[Request] = field(default_factory=list)


class Files:
    """A running server. A path answers with what it was given for it, in order; the last answer repeats.

    Paths that were given nothing answer with 404, or `otherwise`.
    """

    def __init__(self, otherwise: Answer | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.connections = 0  #: accepted since the start
        self._routes: defaultdict[str, _Route] = defaultdict(lambda: _Route([otherwise or status(404)]))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def serve(self, path: str, *answers: Answer) -> str:
        """Answer so from now on at `path`, and count its requests anew. Returns the URL."""
        with self._lock:
            self._routes[path] = _Route(list(answers))
        return self.url + path

    def requests(self, path: str) -> list[Request]:
        """The requests for `path` so far."""
        with self._lock:
            return list(self._routes[path].requests)

    def stop(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        with self._lock:
            left = list(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            with self._lock:
                self._open.add(connection)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if request := _read(connection):
                with self._lock:
                    route = self._routes[request.path]
                    route.requests.append(request)
                    answer = route.answers[min(len(route.requests), len(route.answers)) - 1]
                answer(Wire(connection, request, self._stopping))
        with self._lock:
            self._open.discard(connection)


def _read(connection: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        if not (data := connection.recv(_BLOCK)):
            return None
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(_BLOCK)
    return Request(method, target, headers, body, time.monotonic())


@contextlib.contextmanager
def file_server() -> Iterator[Files]:
    """A `Files` for the length of a block."""
    server = Files()
    try:
        yield server
    finally:
        server.stop()


# -- answers ------------------------------------------------------------------------------------------------


def whole(body: bytes, *, status: int = 200, media_type: str = "video/mp4", **headers: str) -> Answer:
    """All of it, as it should be."""

    def answer(wire: Wire) -> None:
        wire.head(status, content_type=media_type, content_length=str(len(body)), **headers)
        wire.send(body)

    return answer


def status(number: int, **headers: str) -> Answer:
    """A status with a few words."""
    return whole(b"a few words\n", status=number, media_type="text/plain", **headers)


def redirect(location: str, number: int = 302) -> Answer:
    return status(number, location=location)


def chunked(body: bytes, *, ended: bool = True) -> Answer:
    """The body in chunks, without any length; unless `ended`, cut off between two of them."""

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", transfer_encoding="chunked")
        for start in range(0, len(body), _BLOCK):
            wire.send(_chunk(body[start : start + _BLOCK]))
        if ended:
            wire.send(b"0\r\n\r\n")

    return answer


def endless() -> Answer:
    """Chunk after chunk for as long as somebody takes them."""

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", transfer_encoding="chunked")
        while True:
            wire.send(_chunk(b"\0" * _BLOCK))

    return answer


def large(size: int, *, announced: int | None = None) -> Answer:
    """So many zero bytes. `announced` is a Content-Length that lies."""

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", content_length=str(size if announced is None else announced))
        block = b"\0" * 2**20
        for start in range(0, size, len(block)):
            wire.send(block[: size - start])

    return answer


def cut(body: bytes, after: int, *, by_reset: bool = False) -> Answer:
    """A full Content-Length, and a connection that ends after so many bytes."""

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", content_length=str(len(body)))
        wire.send(body[:after])
        if by_reset:
            wire.pause(0.05)  # or the RST would overtake the bytes
            wire.reset()

    return answer


def stall(body: bytes, after: int) -> Answer:
    """Silence after so many bytes."""

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", content_length=str(len(body)))
        wire.send(body[:after])
        wire.hold()

    return answer


def drip(body: bytes, *, size: int = 1, every: float = 0.02, media_type: str = "video/mp4") -> Answer:
    """A few bytes at a time, never so slow that a single read would time out."""

    def answer(wire: Wire) -> None:
        wire.head(content_type=media_type, content_length=str(len(body)))
        for start in range(0, len(body), size):
            wire.send(body[start : start + size])
            if not wire.pause(every):
                return

    return answer


def drip_head(*, every: float = 0.02) -> Answer:
    """Headers that never end, one at a time."""

    def answer(wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\n")
        while wire.pause(every):
            wire.send(b"X: y\r\n")

    return answer


def slow(body: bytes, seconds: float) -> Answer:
    """All of it within so many seconds, a piece in each: nobody gives it up as silent."""
    pieces = max(2, int(seconds))
    size = -(-len(body) // pieces)

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", content_length=str(len(body)))
        wire.send(body[:size])
        for start in range(size, len(body), size):
            if not wire.pause(seconds / (pieces - 1)):
                return
            wire.send(body[start : start + size])

    return answer


def gated(body: bytes, after: int, gate: threading.Event) -> Answer:
    """The rest after so many bytes only when the gate is open."""

    def answer(wire: Wire) -> None:
        wire.head(content_type="video/mp4", content_length=str(len(body)))
        wire.send(body[:after])
        while not gate.is_set():
            if not wire.pause(0.02):
                return
        wire.send(body[after:])

    return answer


def raw(data: bytes) -> Answer:
    """Bytes that need not be HTTP."""
    return lambda wire: wire.send(data)


def hang(wire: Wire) -> None:
    """No answer at all."""
    wire.hold()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# -- how real media begin -----------------------------------------------------------------------------------

MP4: Final = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"
MOV: Final = b"\0\0\0\x14ftypqt  \0\0\2\0qt  "
WEBM: Final = bytes.fromhex("1a45dfa3 01000000 0000001f 42868101 42f78101 42f28104 42f38108 428284") + b"webm"
PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


# -- a clock ------------------------------------------------------------------------------------------------


class _FastSelector(selectors.DefaultSelector):
    times: float = 1.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self.times)


class _FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs faster than the others': timeouts of a minute are over in a second or two."""

    def __init__(self, times: float) -> None:
        selector = _FastSelector()
        selector.times = times
        self._times = times
        super().__init__(selector)

    def time(self) -> float:
        return super().time() * self._times


def run_fast(main: Coroutine[Any, Any, T], *, times: float) -> T:
    """`asyncio.run` in a loop for which time passes so many times faster."""
    with asyncio.Runner(loop_factory=lambda: _FastLoop(times)) as runner:
        return runner.run(main)
