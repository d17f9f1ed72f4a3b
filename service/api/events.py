"""`GET /v1/events`: the stream as Server-Sent Events, for any number of listeners over one reader of Redis.

`Last-Event-ID` (or `?after=`) resumes; without it, what happens from now on. A position that the stream has let go of,
or has never come to, is answered with 410, and not skipped in silence.
"""

from __future__ import annotations

import asyncio
import re
import resource
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
from redis import RedisError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from service import logs
from service.api.problems import ApiError, read_query
from service.deployment import Deployment
from service.jobs import stream
from service.jobs.endpoints import DISABLED, EVENT_TYPES
from service.jobs.stream import Position, position, read_head
from service.vendors import VENDORS

#: Seconds between signs of life, so that no router takes the connection for dead.
HEARTBEAT: Final = 15.0
#: The latest entries are kept here for everybody; who lags further behind reads pages of the stream.
KEPT: Final = 1000
PAGE: Final = 500
#: Of those, so many are made one piece for a listener: thousands who read slowly would hold thousands of pages.
AT_ONCE: Final = 20
#: Fewer where the system allows fewer connections: vendors' callbacks need some too.
LISTENERS: Final = 3000

_POSITION: Final = re.compile(r"\d{1,16}-\d{1,10}|0")
QUERY: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {
    "after": _POSITION,
    "type": frozenset({*EVENT_TYPES, DISABLED}),
    "vendor": frozenset(VENDORS),
    "job_id": re.compile(r"job_[0-9a-v]{24}"),
}
#: What may be said more than once; each of the words is let through.
FILTERS: Final = frozenset({"type", "vendor", "job_id"})

_log = logs.get("events")


class Entry(msgspec.Struct, frozen=True):
    at: Position
    type: str
    vendor: str
    job_id: str
    text: bytes  #: as SSE writes it


def _entry(at: bytes, event: bytes) -> Entry:
    head = read_head(event)
    text = b"id: %b\nevent: %b\ndata: %b\n\n" % (at, head.type.encode(), event)
    return Entry(position(at), head.type, head.data.vendor, head.data.id, text)


def _written(at: Position) -> str:
    return f"{at[0]}-{at[1]}"


class Feed:
    """The one reader of the stream in this process, which reads while somebody listens."""

    def __init__(self, deployment: Deployment) -> None:
        self._redis = deployment.redis
        self._key = deployment.store.key("stream")
        self._room = min(LISTENERS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4)
        self._listeners = 0
        self._reader: asyncio.Task[None] | None = None
        self._latest: list[Entry] = []
        self._before: Position = (0, 0)  #: all that came after it is in `_latest`
        self._news = asyncio.Event()
        self.ended = False

    def end(self) -> None:
        """Tell the listeners to go, and to come back elsewhere: this process stops."""
        self.ended = True
        self._tell()

    async def close(self) -> None:
        self.end()
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the reader reading."""
        if self._listeners >= self._room or self.ended:
            raise ApiError(503, "no more listeners here; try again", headers={"Retry-After": "5"})
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1

    async def ends(self) -> tuple[Position, Position]:
        return await stream.ends(self._redis, self._key)

    async def now(self) -> Position:
        """How far has been read, by a reader that goes on from there."""
        if self._reader is None or self._reader.done():
            _, last = await self.ends()
            if self._reader is None or self._reader.done():  # nobody else was faster
                self._before, self._latest = last, []
                self._reader = asyncio.create_task(self._read(last))
        return self._latest[-1].at if self._latest else self._before

    async def since(self, last: Position, seconds: float = HEARTBEAT) -> list[Entry] | None:
        """What comes after a position, waited for so long; None where some of it is gone."""
        await self.now()
        if last < self._before:
            rows: Any = await self._redis.xrange(self._key, f"({_written(last)}", "+", count=PAGE)
            begins, _ = await self.ends()  # asked afterwards: the page was whole
            if last < begins:
                return None
            if rows:
                return [_entry(at, fields[b"event"]) for at, fields in rows]
        if not (found := self._after(last)) and not self.ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            found = self._after(last)
        return found

    def _after(self, last: Position) -> list[Entry]:
        return self._latest[bisect_right(self._latest, last, key=lambda entry: entry.at) :]

    async def _read(self, last: Position) -> None:
        while self._listeners:
            try:
                found: Any = await self._redis.xread({self._key: _written(last)}, count=PAGE, block=1000)
            except (RedisError, OSError) as error:
                _log.warning("the stream does not answer", error=type(error).__name__)
                await asyncio.sleep(1)
                continue
            for _, rows in found or ():
                self._latest += [_entry(at, fields[b"event"]) for at, fields in rows]
                last = self._latest[-1].at
                if len(self._latest) > 2 * KEPT:
                    self._before = self._latest[-KEPT - 1].at
                    del self._latest[:-KEPT]
                self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def routes(feed: Feed) -> list[Route]:
    async def events(request: Request) -> Response:
        query = read_query(request, QUERY, several=FILTERS)
        after = request.headers.get("last-event-id") or query.get("after")  # who comes again asks for the same URL
        if after and not _POSITION.fullmatch(after):
            raise ApiError(400, "Last-Event-ID is not a position of the stream")
        with feed.listening():
            last = position(after) if after else await feed.now()
            begins, ends = await feed.ends()
        if after and not begins <= last <= ends:
            words = "no longer goes back so far, only to" if last < begins else "has not come so far: it goes on from"
            oldest = _written(begins)
            raise ApiError(410, f"the stream {words} {oldest}", oldest=oldest)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        wanted = {name: frozenset(request.query_params.getlist(name)) for name in FILTERS & query.keys()}
        return StreamingResponse(_told(feed, last, wanted), headers=_UNBUFFERED, media_type="text/event-stream")

    return [Route("/events", events, methods=["GET"])]


#: nginx holds back what it is not told to pass on at once.
_UNBUFFERED: Final = {"X-Accel-Buffering": "no"}


async def _told(feed: Feed, last: Position, wanted: dict[str, frozenset[str]]) -> AsyncIterator[bytes]:
    """What comes after `last`. A sign of life tells the position too: there are filters that let little through."""
    clock = asyncio.get_running_loop().time
    with feed.listening():
        yield b"retry: 1000\nid: %b\n\n" % _written(last).encode()
        said = clock()
        while not feed.ended:
            entries = await feed.since(last, said + HEARTBEAT - clock())
            if entries is None:  # it reads more slowly than the stream forgets: it comes again, and is told so
                return
            last = entries[-1].at if entries else last
            texts = [entry.text for entry in entries if _fits(entry, wanted)]
            for start in range(0, len(texts), AT_ONCE):
                yield b"".join(texts[start : start + AT_ONCE])
                said = clock()
            if clock() >= said + HEARTBEAT:
                yield b": alive\nid: %b\n\n" % _written(last).encode()
                said = clock()


def _fits(entry: Entry, wanted: dict[str, frozenset[str]]) -> bool:
    return all(getattr(entry, name) in words for name, words in wanted.items())
