"""Callers on raw sockets, with requests that were made beforehand.

`closed`: each connection sends its next request once the last is answered. `opened`: requests start at moments that
were fixed in advance, whatever became of those before, and a request's time runs from the moment that was fixed.
"""

from __future__ import annotations

import asyncio
import random
import re
import selectors
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar, cast

import uvloop

T = TypeVar("T")

_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)

#: What a caller does once an answer is whole: the next request, or None.
Next = Callable[["_Caller"], "bytes | None"]


class Refused(Exception):
    """An answer was not 200."""


class _Caller(asyncio.Protocol):
    def __init__(self, answered: Callable[[_Caller], None]) -> None:
        self._answered = answered
        self._received = b""
        self._transport: asyncio.Transport
        self.due = 0.0  #: when the request under way should have started

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._received, 0, head + 2)
        if length is None or len(self._received) < head + 4 + int(length[1]):
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            raise Refused(self._received[:500])
        self._received = b""
        self._answered(self)


def closed(port: int, requests: Sequence[bytes], connections: int) -> float:
    """Send all the requests, so many at a time. How many were answered in a second."""
    return _run(_closed(port, requests, connections), uvloop.new_event_loop())


async def _closed(port: int, requests: Sequence[bytes], connections: int) -> float:
    waiting, over = iter(requests), asyncio.get_running_loop().create_future()
    left = len(requests)

    def answered(caller: _Caller) -> None:
        nonlocal left
        left -= 1
        if request := next(waiting, None):
            caller.send(request)
        elif not left:
            over.set_result(None)

    callers = await _connected(port, connections, answered)
    began = time.perf_counter()
    for caller, request in zip(callers, waiting, strict=False):
        caller.send(request)
    await over
    for caller in callers:
        caller.close()
    return len(requests) / (time.perf_counter() - began)


def opened(port: int, requests: Sequence[bytes], connections: int, rate: float, seed: int) -> list[float]:
    """Send the requests at random moments, `rate` a second on the whole. Seconds that each took."""
    # By select, the one waiting call of Python's that is not rounded to milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    return _run(_opened(port, requests, connections, rate, seed), loop)


async def _opened(port: int, requests: Sequence[bytes], connections: int, rate: float, seed: int) -> list[float]:
    loop = asyncio.get_running_loop()
    chance, at = random.Random(seed), loop.time() + 0.2
    over, late, took = loop.create_future(), deque[tuple[float, bytes]](), list[float]()

    def answered(caller: _Caller) -> None:
        took.append(loop.time() - caller.due)
        if late:
            start(caller, *late.popleft())
        else:
            free.append(caller)
        if len(took) == len(requests):
            over.set_result(None)

    def start(caller: _Caller, due: float, request: bytes) -> None:
        caller.due = due
        caller.send(request)

    def arrive(due: float, request: bytes) -> None:
        if free:
            start(free.popleft(), due, request)
        else:
            late.append((due, request))

    callers = await _connected(port, connections, answered)
    free = deque(callers)
    for request in requests:
        at += chance.expovariate(rate)
        loop.call_at(at, arrive, at, request)
    await over
    for caller in callers:
        caller.close()
    return took


async def _connected(port: int, connections: int, answered: Callable[[_Caller], None]) -> list[_Caller]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: _Caller(answered), "127.0.0.1", port) for _ in range(connections)]
    return [caller for _, caller in made]


def _run(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run `work`; whatever a caller stumbles over ends it."""
    trouble: list[BaseException] = []

    def stop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        trouble.append(context.get("exception") or RuntimeError(context["message"]))
        task.cancel()

    loop.set_exception_handler(stop)
    task = loop.create_task(work)
    try:
        return loop.run_until_complete(asyncio.wait_for(task, 300))
    except asyncio.CancelledError:
        raise trouble[0] from None
    finally:
        loop.close()
