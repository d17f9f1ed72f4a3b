"""Answers that are not whole: never given, given slowly, or cut in the middle.

They end early when the client leaves or the sandbox stops, so that no open connection delays a stop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PIECES: Final = 20


class Hang(Response):
    """No answer at all."""

    def __init__(self, stopping: asyncio.Event) -> None:
        super().__init__(status_code=503)
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _end(receive, self._stopping) as end:
            await end.wait()
        await super().__call__(scope, receive, send)  # reaches nobody, but lets the server end in peace


class Transfer(Response):
    """A body with a full Content-Length that may come slowly and may be cut.

    `over` is the seconds it takes, `cut_at` the number of bytes after which the connection is closed.
    `done` is called when the last byte is sent.
    """

    def __init__(
        self,
        content: bytes,
        stopping: asyncio.Event,
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "application/json",
        over: float = 0.0,
        cut_at: int | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._stopping = stopping
        self._over = over
        self._sent = self.body[:cut_at]
        self._whole = cut_at is None
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces = _pieces(self._sent, _PIECES if self._over else 1)
        async with _end(receive, self._stopping) as end:
            for piece in pieces:
                if self._over and await _within(self._over / len(pieces), end):
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self._whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            self._done()


def _pieces(content: bytes | memoryview, most: int) -> list[bytes | memoryview]:
    size = max(1, -(-len(content) // most))
    return [content[start : start + size] for start in range(0, len(content), size)]


@contextlib.asynccontextmanager
async def _end(receive: Receive, stopping: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the client has left or the sandbox is stopping."""
    end = asyncio.Event()

    async def until_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        end.set()

    async def until_stop() -> None:
        await stopping.wait()
        end.set()

    watchers = [asyncio.create_task(until_disconnect()), asyncio.create_task(until_stop())]
    try:
        yield end
    finally:
        for watcher in watchers:
            watcher.cancel()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether the event comes within so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False
