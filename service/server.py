"""`python -m service.server`: the web process, uvicorn with deadlines for those who send.

uvicorn waits without end for a request's head, its body, and for a reader of its answer, and a shutdown waits with it.
Here whoever is too slow or too long is cut off: one timer a connection, and nothing that an honest request would notice.
"""

from __future__ import annotations

from typing import Any, Final

import click
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Bytes of a request's line and headers.
MAX_HEAD: Final = 32 * 1024
#: Seconds from a request's first byte (or the connection) to the end of its head, and to the end of its body.
HEAD_SECONDS: Final = 10.0
BODY_SECONDS: Final = 120.0
#: A body on the whole is at least this fast, once it has had time to begin.
MIN_BYTES_PER_SECOND: Final = 1024
MIN_RATE_AFTER: Final = 10.0
#: Seconds without a byte taken of an answer that waits to be read.
STALLED_SECONDS: Final = 30.0
#: Seconds that a request which is still being sent has left when the process stops.
STOP_SECONDS: Final = 3.0
#: How often a connection is looked at, in seconds.
LOOK_EVERY: Final = 2.5
#: Connections at once; more are answered with 503.
MAX_CONNECTIONS: Final = 4000

_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Guarded(HttpToolsProtocol):
    """uvicorn's own protocol, which cuts off whoever does not get on."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begun = self.loop.time()
        self._received = self._chunk = 0
        self._in_head = self._receiving = True
        self._unread, self._unread_since = 0, self._begun
        self._look_at = self.loop.call_later(LOOK_EVERY, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_at.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        self._received += self._chunk
        super().data_received(data)
        if self._in_head and self._received > MAX_HEAD:
            self._cut(_TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun, self._received = self.loop.time(), 0
        self._in_head = self._receiving = True

    def on_headers_complete(self) -> None:
        if self._chunk > MAX_HEAD and sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            raise ValueError("the head is too long")  # a 400, and the end of the connection
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._receiving = False
        super().on_message_complete()

    def shutdown(self) -> None:
        super().shutdown()
        if self._receiving and not self.transport.is_closing():
            self.loop.call_later(STOP_SECONDS, self._cut, _TOO_SLOW)

    def _look(self) -> None:
        """Once every while, for as long as the connection is there."""
        if self.transport.is_closing():
            return
        now = self.loop.time()
        age = now - self._begun
        if self._receiving and not self.flow.read_paused:
            slow = age > MIN_RATE_AFTER and self._received < MIN_BYTES_PER_SECOND * age
            if age > (HEAD_SECONDS if self._in_head else BODY_SECONDS) or (slow and not self._in_head):
                self._cut(_TOO_SLOW)
                return
        unread = self.transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > STALLED_SECONDS:
            self.transport.abort()
            return
        self._look_at = self.loop.call_later(LOOK_EVERY, self._look)

    def _cut(self, answer: bytes) -> None:
        """Say why where nothing was said yet, and be gone; the application learns that the sender has gone away."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(answer)
        self.transport.close()
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()


@click.command()
@click.option("--host", default="0.0.0.0", show_default=True)  # noqa: S104  the platform's router has to reach it
@click.option("--port", default=8000, show_default=True)
def main(host: str, port: int) -> None:
    """Serve callbacks and the API until SIGTERM."""
    uvicorn.run(
        "service.app:create_app",
        factory=True,
        host=host,
        port=port,
        http=Guarded,
        ws="none",
        lifespan="on",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=95,
        timeout_graceful_shutdown=20,
        access_log=False,
        server_header=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
