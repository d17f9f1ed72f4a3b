"""Subscribers on loopback: they take what is sent to them, and answer as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hook:
    """One request, names of headers in lower case."""

    headers: Mapping[str, str]
    body: bytes
    wall: float  #: when it came, in seconds since the epoch

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


#: What is answered to a request; nothing closes the connection.
Answer = Callable[[Hook], Awaitable[str]]


def always(status: int, body: str = "", *, seconds: float = 0.0, **headers: str) -> Answer:
    """The same answer to everything, after a while."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items())]
    answer = "\r\n".join([*lines, f"content-length: {len(body.encode())}", "", body])

    async def answered(_hook: Hook) -> str:
        if seconds:
            await asyncio.sleep(seconds)
        return answer

    return answered


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one repeats."""
    left = list(answers)
    return lambda hook: (left.pop(0) if len(left) > 1 else left[0])(hook)


def depending(on: Callable[[dict[str, Any]], bool], yes: Answer, no: Answer) -> Answer:
    """One answer to events of which something is true, another one to the others."""
    return lambda hook: (yes if on(hook.event) else no)(hook)


def gated(gate: asyncio.Event, answer: Answer) -> Answer:
    """An answer that is held back until the gate is open."""

    async def answered(hook: Hook) -> str:
        await gate.wait()
        return await answer(hook)

    return answered


class Hooks:
    """A running server; every path is another subscriber's."""

    def __init__(self) -> None:
        self.url = ""
        self.got: defaultdict[str, list[Hook]] = defaultdict(list)
        self.taken: defaultdict[str, list[Hook]] = defaultdict(list)  #: those of them that were answered with 2xx
        self._answers: dict[str, Answer] = {}

    def at(self, path: str, answer: Answer | None = None) -> str:
        """Answer so from now on at `path`. Returns the URL."""
        self._answers[path] = answer or always(204)
        return self.url + path

    def delivered(self, path: str) -> list[tuple[str, str]]:
        """Job and type of what was taken, in order, each once."""
        return list(dict.fromkeys((hook.event["data"]["id"], hook.event["type"]) for hook in self.taken[path]))

    def forget(self) -> None:
        self.got.clear()
        self.taken.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*over), contextlib.closing(writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().rstrip().split("\r\n")
                headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
                body, path = await reader.readexactly(int(headers.get("content-length", 0))), request.split()[1]
                self.got[path].append(hook := Hook(headers, body, time.time()))
                if not (answer := await self._answers[path](hook)):
                    return
                writer.write(answer.encode())
                if answer.startswith("HTTP/1.1 2"):
                    self.taken[path].append(hook)
                await writer.drain()


@contextlib.asynccontextmanager
async def hooks_server() -> AsyncIterator[Hooks]:
    """Run subscribers for the length of a block, in this event loop."""
    hooks = Hooks()
    server = await asyncio.start_server(hooks.serve, "127.0.0.1", 0, backlog=512)
    hooks.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield hooks
    finally:
        server.close()
