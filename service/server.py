"""`python -m service.server`: the web process, or several that share a port; uvicorn with deadlines for those who send.

uvicorn waits without end for a request's head, its body, and for a reader of its answer, and a shutdown waits with it;
and it takes heads, trailers and pipelines of any length. Here whoever is too slow or too long is cut off: one timer a
connection, and nothing that an honest request would notice.
"""

from __future__ import annotations

import fcntl
import resource
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Any, Final

import click
import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.supervisors.multiprocess import Multiprocess

from service.pace import Paced, Sipping

#: Bytes of a request's line and headers; and of whatever else comes between two pieces of a body, or behind it.
MAX_HEAD: Final = 32 * 1024
#: Requests that wait behind the one being answered: nobody honest sends many ahead, and each takes 3 KB.
MAX_PIPELINED: Final = 16
#: Bytes of a body that are taken as fast as they come. What comes behind them is taken no faster than so many a second
#: from all connections together, or a few senders of much would keep all others waiting; what nobody wants, slower.
UNPACED_BYTES: Final = 64 * 1024
MAX_BYTES_PER_SECOND: Final = 32 * 2**20
MAX_IGNORED_PER_SECOND: Final = 8 * 2**20
#: Bytes of a body that are read for nothing once its answer is out; a sender that still goes on is cut off.
MAX_IGNORED: Final = 2**20
#: In all of these a piece counts for so many bytes more: a body of chunks of one byte takes the time of one so large.
PIECE_BYTES: Final = 1024
#: Seconds from a request's first byte (or the connection) to the end of its head, and to the end of its body.
HEAD_SECONDS: Final = 10.0
BODY_SECONDS: Final = 120.0
#: A body on the whole is at least this fast, once it has had time to begin.
MIN_BYTES_PER_SECOND: Final = 1024
MIN_RATE_AFTER: Final = 10.0
#: Seconds without a byte taken of an answer that waits to be read.
STALLED_SECONDS: Final = 30.0
#: Seconds that an idle connection is kept when the process stops: a router may have sent a request on it already. And
#: that of a sender who goes on and on behind his answer: he may be about to read it.
LINGER_SECONDS: Final = 1.0
#: Seconds that a request which is still being sent has left when the process stops.
STOP_SECONDS: Final = 3.0
#: How often a connection is looked at, in seconds.
LOOK_EVERY: Final = 2.5
#: Connections at once; more are answered with 503. Files and Redis need some descriptors beside them.
MAX_CONNECTIONS: Final = 4000
_OTHER_FILES: Final = 200

#: Seconds that a process has to begin which is to replace another one: on a busy machine that takes a while.
READY_SECONDS: Final = 30

_AT_ONCE: Final = struct.pack("ii", 1, 0)

_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Guarded(HttpToolsProtocol):
    """uvicorn's own protocol, which cuts off whoever does not get on."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._sipping = Sipping(self)
        transport.set_protocol(self._sipping)
        self.flow: Paced = Paced(transport, self.loop)
        self.access_log = False  # or each line is put together before it is thrown away
        self._begun = self.loop.time()
        self._received = self._chunk = 0
        self._beside = 0  #: bytes since the last piece of a body
        self._announced = 0  #: bytes of the body, by its request
        self._body = self._taken = self._ignored = 0  #: what bodies count for: in this read, of a request, for nothing
        self._in_head = self._receiving = True
        self._last = False
        self._unread, self._unread_since = 0, self._begun
        self._look_at = self.loop.call_later(LOOK_EVERY, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_at.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        self._received += self._chunk
        self._beside += self._chunk
        self._body = 0
        super().data_received(data)
        if self._receiving and self._beside > MAX_HEAD:
            self._cut(_TOO_LONG)
        elif self._body:
            self._pace()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = self.loop.time()
        self._received = self._taken = self._ignored = 0
        self._beside = self._chunk  # at most so much of it is this one's
        self._in_head = self._receiving = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what stands behind a body was never looked at when it could have been refused
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD or len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too long a head, or too many requests at once")  # a 400, and the end of the connection
        self._announced = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self._in_head = False
        super().on_headers_complete()
        if self._last:  # it is answered, with `connection: close`
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        self._body += len(body) + PIECE_BYTES
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._receiving and self._announced > MAX_IGNORED:
            self._turn_away()

    def _turn_away(self) -> None:
        """Show at once that nothing more is answered here, or the connection would be taken for a good one."""
        if not self.transport.is_closing():
            self.transport.write_eof()

    def _pace(self) -> None:
        """After each read that held some of a body."""
        unwanted = self._idle()
        self._taken += self._body
        if self._taken > UNPACED_BYTES:
            self._sipping.adapt(self._chunk, self._body)
            self.flow.hold(self._body, MAX_IGNORED_PER_SECOND if unwanted else MAX_BYTES_PER_SECOND)
        if not unwanted:
            return  # the application reads on
        self._ignored += self._body
        if self._ignored > MAX_IGNORED and self._receiving:  # a reset follows: a moment to read the answer before it
            self._turn_away()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        if stopping := self.app_state.get("stopping"):  # said once a connection, for want of another place
            stopping()
        self.loop.call_later(STOP_SECONDS, self._hurry)
        if self._idle():
            self._last = True
            self.loop.call_later(LINGER_SECONDS, self._let_go)
        else:
            super().shutdown()

    def _idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _let_go(self) -> None:
        """The process stops, and nothing has come on this connection since it said so."""
        if self._idle() and not (self._receiving and self._beside):
            self.transport.close()

    def _hurry(self) -> None:
        """The process stops: who does not get on is not waited for."""
        unread = self._not_taken()
        if self._receiving:
            self._cut(_TOO_SLOW)
        elif unread and unread == self._unread:  # as at the last look
            self._drop()
        elif self in self.connections:
            self.loop.call_later(STOP_SECONDS, self._hurry)

    def _look(self) -> None:
        """Once every while, for as long as the connection is there, closing or not."""
        now = self.loop.time()
        if self._is_late(now):
            self._cut(_TOO_SLOW)
        unread = self._not_taken()
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > STALLED_SECONDS:
            self._drop()
            return
        self._look_at = self.loop.call_later(LOOK_EVERY, self._look)

    def _drop(self) -> None:
        # Without lingering, or the system would go on offering what it has taken of the answer.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def _is_late(self, now: float) -> bool:
        if not self._receiving and self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # Line ends, which are no request, have ended uvicorn's patience with an idle connection.
            self._begun, self._in_head, self._receiving = now, True, True
        ignored = not self._in_head and self._idle()
        if not self._receiving or (self.flow.read_paused and not ignored):  # it is we who do not get on
            return False
        age = now - self._begun
        if self._in_head:
            return age > HEAD_SECONDS
        return age > BODY_SECONDS or (age > MIN_RATE_AFTER and self._received < MIN_BYTES_PER_SECOND * age)

    def _not_taken(self) -> int:
        """Bytes of answers that wait for their reader; by the system's share a slow reader is told from none."""
        waiting = self.transport.get_write_buffer_size()
        if waiting:
            with suppress(OSError):  # a system that does not tell
                told = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
                waiting += struct.unpack("i", told)[0]
        return waiting

    def _cut(self, answer: bytes) -> None:
        """Say why where nothing was said yet, and be gone; the application learns that the sender has gone away."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        answering = cycle is not None and (not cycle.response_complete if self._in_head else cycle.response_started)
        if not answering and not self.pipeline:
            self.transport.write(answer)
        self.transport.close()
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()


class Several(Multiprocess):
    """uvicorn's supervisor: processes that share a port. One that dies, or no longer answers, is replaced."""

    def terminate_all(self) -> None:
        for listener in self.sockets:  # or it would go on taking connections that nobody serves any more
            listener.close()
        super().terminate_all()

    def restart_all(self) -> None:
        usual = self.config.timeout_worker_healthcheck  # short, as the supervisor hears of nothing else meanwhile
        self.config.timeout_worker_healthcheck = READY_SECONDS
        super().restart_all()
        self.config.timeout_worker_healthcheck = usual

    @property
    def hopeless(self) -> bool:
        """Whether a process could not even begin, as no other could."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)


def application() -> ASGIApp:
    """The application of one process of several. Settings that are not usable are so for all of them."""
    from service.app import create_app  # here: the supervisor does without it, and its memory

    try:
        return create_app()
    except SystemExit as refusal:
        print(refusal, file=sys.stderr)
        raise SystemExit(STARTUP_FAILURE) from None


@click.command()
@click.option("--host", default="0.0.0.0", show_default=True)  # noqa: S104  the platform's router has to reach it
@click.option("--port", default=8000, show_default=True)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="That share the port.")
def main(host: str, port: int, processes: int) -> None:
    """Serve callbacks and the API until SIGTERM."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft < wanted:  # often 1024, which a thousand idle strangers would use up
        soft = min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    options: dict[str, Any] = {
        "factory": True,
        "host": host,
        "port": port,
        "workers": processes,
        "http": Guarded,
        "ws": "none",
        "lifespan": "on",
        "limit_concurrency": max(1, min(MAX_CONNECTIONS, soft - _OTHER_FILES)),
        "timeout_keep_alive": 95,
        "timeout_graceful_shutdown": 20,
        "access_log": False,
        "server_header": False,
        "log_level": "warning",
    }
    if processes == 1:
        uvicorn.run("service.app:create_app", **options)
        return
    config = uvicorn.Config("service.server:application", **options)
    several = Several(config, [config.bind_socket()])
    several.run()
    sys.exit(STARTUP_FAILURE if several.hopeless else 0)


if __name__ == "__main__":
    main()
