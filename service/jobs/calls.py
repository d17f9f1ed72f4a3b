"""What all processes agree upon about calls to vendors: who is well, whose turn it is, which token is good.

The owner of these keys, together with `vendor.lua`:

    turns:{vendor} zset of job ids by turn · vendor:{vendor}[:submit] hash · calls:{vendor}:{kind} list
    token:{vendor} string

Nothing here makes a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import msgspec

from service.jobs.scripts import Line, script_text
from service.jobs.store import Store
from service.settings import Settings


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a vendor is doing, by kind of call."""

    unwell: dict[str, tuple[int, int]]  #: failures in a row, and until when it is left alone (ms)
    calls: dict[str, int]  #: made within the window of the limit
    in_line: int  #: jobs that wait for their turn to be sent


class Calls:
    """Health, turns and tokens of vendors."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._redis = store.redis
        self._key = store.key
        self._now_ms = store.now_ms
        self._vendor = store.redis.register_script(script_text("vendor", settings))
        self._held = store.redis.register_script(script_text("held", settings))
        self._askers: dict[tuple[str, str, Line], int] = {}
        self._asked: dict[tuple[str, str, Line], asyncio.Task[list[int]]] = {}

    async def well(self, vendor: str, kind: str = "read") -> None:
        await self._vendor(args=["well", vendor, kind])

    async def unwell(self, vendor: str, wait_ms: int = 0, kind: str = "read", age_ms: int = 0) -> float:
        """Leave a vendor alone for a while: at least `wait_ms`, longer with every failure in a row.

        `age_ms` is how long ago the call was made: calls that were under way together fail together, as one.

        Returns:
            Seconds until it is tried again.
        """
        return int(await self._vendor(args=["unwell", vendor, kind, wait_ms, age_ms])) / 1000

    async def health(self, windows: Mapping[str, Mapping[str, float]]) -> dict[str, Health]:
        """How vendors are doing, given the windows of their limits in seconds, by kind of call."""
        pipeline = self._redis.pipeline(transaction=False)
        for vendor, kinds in windows.items():
            pipeline.zcard(self._key("turns", vendor))
            for kind in ("read", "submit"):
                pipeline.hmget(self._health(vendor, kind), ("failures", "retry_at"))
            for kind in kinds:
                pipeline.lrange(self._key("calls", vendor, kind), 0, -1)
        told, now = iter(await pipeline.execute()), await self._now_ms()
        return {
            vendor: Health(
                in_line=next(told),
                unwell={kind: (int(n or 1), int(at)) for kind in ("read", "submit") for n, at in [next(told)] if at},
                calls={kind: sum(now - int(at) <= 1000 * kinds[kind] for at in next(told)) for kind in kinds},
            )
            for vendor, kinds in windows.items()
        }

    def _health(self, vendor: str, kind: str) -> str:
        return self._key("vendor", vendor) if kind == "read" else self._key("vendor", vendor, kind)

    async def take_turn(self, vendor: str, kind: str, line: Line) -> float:
        """Seconds to wait before a call may be made; 0 where the turn is taken by this very question.

        Who asks the same in the same turn of the event loop asks together.
        """
        wanted = (vendor, kind, line)
        self._askers[wanted] = number = self._askers.get(wanted, 0) + 1
        if number == 1:
            self._asked[wanted] = asyncio.create_task(self._take_turns(*wanted))
        taken, wait = await asyncio.shield(self._asked[wanted])
        return 0.0 if number <= taken else wait / 1000

    async def _take_turns(self, vendor: str, kind: str, line: Line) -> list[int]:
        number = self._askers.pop((vendor, kind, line))
        return cast("list[int]", await self._vendor(args=["take", vendor, kind, line.requests, line.window, number]))

    async def submit_turn(self, vendor: str, job_id: str, line: Line | None) -> float:
        """The same for a job that is to be sent: in the order of the line, and not while its vendor is left alone."""
        line = line or Line(0, 0)
        return int(await self._vendor(args=["turn", vendor, "submit", line.requests, line.window, job_id])) / 1000

    async def cached_token(self, vendor: str) -> str | None:
        found = cast("bytes | None", await self._redis.get(self._key("token", vendor)))
        return None if found is None else found.decode()

    async def cache_token(self, vendor: str, token: str, seconds: int) -> None:
        await self._redis.set(self._key("token", vendor), token, ex=max(1, seconds))

    async def drop_token(self, vendor: str, token: str) -> None:
        """Forget a token that the vendor refused, unless another process has replaced it already."""
        await self._held(args=["drop", self._key("token", vendor), token])
