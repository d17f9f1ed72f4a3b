"""Runs first in every process of the suite whose `CHAOS` says so: it dies at named points, has a wrong clock, or lacks
one of its safeguards.

Python imports this module by its name before anything else, so the Procfile's own lines are what runs.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

_chance: Final = random.Random(int(os.environ.get("CHAOS_SEED", "0")))


def _die(probability: float) -> None:
    if _chance.random() < probability:
        os.kill(os.getpid(), signal.SIGKILL)


def _mortal(owner: type, name: str, probability: float, *, before: bool = False) -> None:
    """A method behind (or before) which the process may die."""
    method: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(method)
    async def mortal(*args: Any, **how: Any) -> Any:
        if before:
            _die(probability)
        answer = await method(*args, **how)
        _die(0.0 if before else probability)
        return answer

    setattr(owner, name, mortal)


def _die_at(point: str, probability: float) -> None:
    """Points between two steps that have to be one: what was done, and what remembers it."""
    from service.jobs.tracker import Tracker
    from service.storage import Storage
    from workers.vendor_client import VendorClient

    match point:
        case "stored":  # the file is at home, and nobody knows
            _mortal(Storage, "put", probability)
        case "recorded":  # it is known, and nobody was told so: the callback's sender, RQ, the lease
            _mortal(Tracker, "record", probability)
        case "marked":  # nobody may send it any more, and nobody has
            _mortal(VendorClient, "submit", probability, before=True)
        case "sent":  # the vendor has been paid, and nobody knows
            _mortal(VendorClient, "submit", probability)
        case "asked":  # the vendor has told, and nobody knows
            _mortal(VendorClient, "ask", probability)
        case _:
            raise LookupError(point)


def _wrong_clock(seconds: float) -> None:
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)


def _without_sweeper(_: float = 0.0) -> None:
    from service.jobs.store import Store

    async def sweep(self: Store, limit: int) -> tuple[int, bool]:
        return 0, False

    Store.sweep = sweep  # type: ignore[method-assign]


def _without_lease(_: float = 0.0) -> None:
    from service.jobs.store import Store

    async def lease(self: Store, name: str, owner: str, ms: int) -> bool:
        return True

    Store.lease = lease  # type: ignore[method-assign]


def _without_atomic(probability: float = 0.01) -> None:
    """The commit tells the world in a second step, and dies before it now and then."""
    from redis.asyncio import ConnectionPool

    from service.jobs import scripts
    from service.jobs.wire import Wire

    whole, second = scripts.script_text, list[str]()

    def split(name: str, settings: Any) -> str:
        text = whole(name, settings)
        if name != "commit":
            return text
        begin, end = text.index("  local fields = {'event', event"), text.index("end\n\nlocal function is_verdict")
        prelude, _, rest = text[:begin].partition("\nlocal commit --")
        second[:] = [prelude + _TELL.format(told=text[begin:end])]
        first = f"{prelude}\nlocal UNTOLD = {{}}\nlocal commit --{rest}{_UNTOLD}{text[end:]}"
        head, _, tail = first.rpartition("return answers")
        return f"{head}return {{answers, UNTOLD}}{tail}"

    scripts.script_text = split

    from service.jobs import tracker

    class InTwoSteps(Wire):
        def __init__(self, pool: ConnectionPool, script: str) -> None:
            super().__init__(pool, script)
            self._second = Wire(pool, second[0])

        async def call(self, args: list[bytes]) -> Any:
            answers, untold = await super().call(args)
            if untold:
                _die(probability)
                await self._second.call(untold)
            return answers

    vars(tracker)["Wire"] = InTwoSteps


_UNTOLD: Final = "  UNTOLD[#UNTOLD + 1] = cjson.encode({event, id, type, job.vendor, trace})\n"
_TELL: Final = """
for _, packed in ipairs(ARGV) do
  local event, id, type, vendor, trace = unpack(cjson.decode(packed))
  local job = {{vendor = vendor}}
{told}end
"""
_WITHOUT: Final = {"sweeper": _without_sweeper, "lease": _without_lease, "atomic": _without_atomic}


def _obey(words: str) -> None:
    for word in words.split():
        what, *rest = word.split(":")
        match what:
            case "die":
                _die_at(rest[0], float(rest[1]))
            case "clock":
                _wrong_clock(float(rest[0]))
            case "without":
                _WITHOUT[rest[0]](*map(float, rest[1:]))


_obey(os.environ.get("CHAOS", ""))
