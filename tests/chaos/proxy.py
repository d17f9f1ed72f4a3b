"""A TCP proxy on loopback that loses, holds and cuts what passes through it, as a bad network does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final

_PIECE: Final = 2**16


class Proxy:
    """Carries connections to a port. What is to go wrong may be changed at any time, and concerns open ones too."""

    def __init__(self, target: int, chance: random.Random) -> None:
        self.port = 0
        self.cut_replies = 0.0  #: how likely an answer is lost, with its connection, once the request has arrived
        self.cut_after: int | None = None  #: bytes of requests after which a connection breaks off
        self.cuts = 0  #: so far
        self._target = target
        self._chance = chance
        self._open: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.port = self._await(self._listen())

    def stop(self) -> None:
        self._await(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """Nothing passes, and nobody is told: as behind a firewall that drops."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def refuse(self) -> None:
        """Open connections are cut, new ones die at once."""
        self._await(self._refuse())

    def mend(self) -> None:
        """Everything passes again."""
        self.cut_replies, self.cut_after, self._refusing = 0.0, None, False
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _await(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0, backlog=512)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _refuse(self) -> None:
        self._refusing = True
        for writer in list(self._open):
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        await self._refuse()
        self._flowing.set()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=5)  # each ends by itself, now that its connection has

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._refusing:
                return
            with contextlib.suppress(OSError):
                await self._flowing.wait()
                there = await asyncio.open_connection("127.0.0.1", self._target)
                self._open.add(there[1])
                ways = [self._pump(reader, there[1], up=True), self._pump(there[0], writer, up=False)]
                try:
                    await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._open.discard(there[1])
                    there[1].transport.abort()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await source.read(_PIECE):
                await self._flowing.wait()
                passed += len(data)
                if (not up and self._chance.random() < self.cut_replies) or (
                    up and self.cut_after is not None and passed > self.cut_after
                ):
                    self.cuts += 1
                    sink.transport.abort()
                    return
                sink.write(data)
                await sink.drain()


@contextlib.contextmanager
def proxy_to(port: int, chance: random.Random) -> Iterator[Proxy]:
    """A `Proxy` for the length of a block."""
    proxy = Proxy(port, chance)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
