"""Bare connections: what no client library would send, byte by byte, and what comes back."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

_BLOCK: Final = 2**16


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection to a loopback port. Nothing here raises because the other side has gone."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""
        self.taken = 0  #: bytes that were read
        self.refused = False  #: it takes no more; it may have said something before
        self.gone = False  #: the other side has closed or reset, and there is no more to read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes, *, timeout: float = 10) -> int:
        """How many of the bytes the other side took before it hung up, or stopped taking any for so long."""
        self._socket.settimeout(timeout)
        sent = 0
        while sent < len(data):
            try:
                sent += self._socket.send(data[sent : sent + _BLOCK])
            except TimeoutError:
                break
            except OSError:
                self.refused = True
                break
        return sent

    def listen(self, seconds: float) -> bool:
        """Wait so long for more; whether there was any, or an end."""
        self._socket.settimeout(max(seconds, 0.001))
        try:
            data = self._socket.recv(_BLOCK)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self.gone = not data
        self._heard += data
        self.taken += len(data)
        return True

    def answer(self, timeout: float = 10, *, bodiless: bool = False) -> Answer | None:
        """The next whole answer (`bodiless`: to a HEAD); None where none comes in time, or before the end."""
        deadline = time.monotonic() + timeout
        while (found := _first(self._heard, bodiless=bodiless)) is None:
            if self.gone or time.monotonic() > deadline:
                return None
            self.listen(deadline - time.monotonic())
        answer, self._heard = found
        return answer

    def answers(self, timeout: float = 10) -> Iterator[Answer]:
        """Whole answers until the end, or until none comes in time."""
        while answer := self.answer(timeout):
            yield answer

    def ended(self, timeout: float) -> bool:
        """Whether the other side hangs up in time."""
        deadline = time.monotonic() + timeout
        while not self.gone and time.monotonic() < deadline:
            self.listen(deadline - time.monotonic())
        return self.gone

    def reset(self, timeout: float) -> bool:
        """Whether the other side breaks the connection off in time, whatever there still is to read."""
        watch = select.poll()
        watch.register(self._socket, 0)
        return bool(watch.poll(timeout * 1000))

    def read_slowly(self, rate: float, seconds: float) -> None:
        """Read so many bytes a second for so long, or until the end."""
        began, before = time.monotonic(), self.taken
        while not self.gone and (passed := time.monotonic() - began) < seconds:
            early = (self.taken - before) / rate - passed
            if early > 0:
                select.select([], [], [], early)
            else:
                self.listen(seconds)


def _first(heard: bytes, *, bodiless: bool) -> tuple[Answer, bytes] | None:
    """The first whole answer in what was heard, and what follows it; interim answers are passed over."""
    head, end, rest = heard.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *lines = head.decode("latin-1").split("\r\n")
    status = int(line.split(" ")[1])
    if status < 200:
        return _first(rest, bodiless=bodiless)
    headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
    length = 0 if bodiless else int(headers.get("content-length", "0"))
    return (Answer(status, headers, rest[:length]), rest[length:]) if len(rest) >= length else None


def request(method: str, target: str, *headers: str, body: bytes | None = None) -> bytes:
    """A well-formed request, with its length where it has a body."""
    lines = [f"{method} {target} HTTP/1.1", "host: callsheet.example", *headers]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def ask(port: int, raw: bytes, timeout: float = 10) -> Answer | None:
    """One request on a connection of its own."""
    with contextlib.closing(Wire(port)) as wire:
        wire.send(raw)
        return wire.answer(timeout, bodiless=raw.startswith(b"HEAD "))
