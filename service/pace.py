"""How fast the web process listens: a little at a time, and large bodies no faster than is good for everybody else.

Owns when a connection is read from, and how much at once. Knows nothing of HTTP, and never drops a byte.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from uvicorn.protocols.http.flow_control import FlowControl

#: Bytes that are taken at once, at most and at least: what is made of them is made before anybody else gets a turn.
SIP: Final = 16 * 1024
_LEAST: Final = 256


class Paced(FlowControl):
    """uvicorn's own flow control, which resumes reading no sooner than it may."""

    #: When all that was taken at a rate, from whichever connection, is paid for: they wait for one another.
    _paid_at: ClassVar[dict[int, float]] = {}

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop = loop
        self._may_at = 0.0
        self._waiting = False

    def hold(self, size: int, rate: int) -> None:
        """Read nothing until so many bytes are paid for, at so many a second, behind what others have sent before.

        These wait for two sips of it at most; what counts for more is paid by this connection alone.
        """
        shared = min(size, 2 * SIP)
        self._paid_at[rate] = max(self._paid_at.get(rate, 0.0), self._loop.time()) + shared / rate
        self._may_at = self._paid_at[rate] + (size - shared) / rate
        self.pause_reading()

    def resume_reading(self) -> None:
        wait = self._may_at - self._loop.time()
        if wait <= 0:
            super().resume_reading()
        elif not self._waiting:
            self._waiting = True
            self._loop.call_later(wait, self._resume)

    def _resume(self) -> None:
        self._waiting = False
        if not self._transport.is_closing():
            self.resume_reading()


class Sipping(asyncio.BufferedProtocol):
    """Reads for another protocol, which would get up to 256 KiB at once."""

    #: One for all: what is in it has been handed on before the next is read.
    _buffer: ClassVar = memoryview(bytearray(SIP))

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self._next = self._buffer

    def adapt(self, size: int, cost: int) -> None:
        """What was `size` bytes counted for `cost`: the next read is so large that it counts for about a whole one."""
        self._next = self._buffer[: max(_LEAST, size * SIP // cost)]

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._next

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
