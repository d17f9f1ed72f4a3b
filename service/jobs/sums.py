"""Sums: of what processes count, and of what jobs cost; and how things stand. The owner of their keys.

metrics, metrics:{hour} hashes, sample → sum · processes zset by ms of the last sign of life · counted:{process} string
costs:{day} hash, see `count_cost` of commit.lua · cost_days set
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.jobs.scripts import script_text
from service.jobs.store import Store
from service.settings import Settings


class CostSum(msgspec.Struct, frozen=True):
    """One sum of one day: `what` is `jobs`, `unknown`, `estimated`, `charged` or `difference`."""

    day: str
    vendor: str
    model: str | None
    unit: str
    what: str
    amount: float


class Sums:
    """Of one deployment."""

    def __init__(self, redis: Redis, store: Store, settings: Settings) -> None:
        self._redis = redis
        self._key = store.key
        self._counts: AsyncScript = redis.register_script(script_text("counts", settings))
        self._gauges: AsyncScript = redis.register_script(script_text("gauges", settings))
        self._vendors = tuple(settings.accounts)

    async def costs(self, since: str, until: str) -> list[CostSum]:
        """The sums of the days from `since` to `until` (ISO dates, both included)."""
        every = sorted(day.decode() for day in cast("set[bytes]", await self._redis.smembers(self._key("cost_days"))))
        days = [day for day in every if since <= day <= until]
        pipeline = self._redis.pipeline(transaction=False)
        for day in days:
            pipeline.hgetall(self._key("costs", day))
        return [
            CostSum(day, *msgspec.json.decode(field, type=tuple[str, str | None, str, str]), float(amount))
            for day, fields in zip(days, await pipeline.execute(), strict=True)
            for field, amount in fields.items()
        ]

    async def add(self, process: str, number: int, counts: Mapping[str, float]) -> None:
        """Add to the sums what a process has counted: sample → amount. The same number again adds nothing."""
        await self._counts(args=[process, number, *(part for count in counts.items() for part in count)])

    async def counts(self, hour: str | None = None) -> dict[str, float]:
        """The sums of all time, or of an hour (UTC, as 2026-07-01T08) of the last eight days."""
        found = cast("dict[bytes, bytes]", await self._redis.hgetall(self._key("metrics", *([hour] if hour else []))))
        return {sample.decode(): float(amount) for sample, amount in found.items()}

    async def counts_of(self, hours: list[str]) -> list[dict[str, float]]:
        """The sums of several hours, in their order."""
        pipeline = self._redis.pipeline(transaction=False)
        for hour in hours:
            pipeline.hgetall(self._key("metrics", hour))
        return [{name.decode(): float(n) for name, n in found.items()} for found in await pipeline.execute()]

    async def gauges(self) -> dict[str, float]:
        """How things stand now, by sample."""
        told: list[bytes] = await self._gauges(args=self._vendors)
        memory = await self._redis.info("memory")
        found = {name.decode(): float(value) for name, value in zip(told[::2], told[1::2], strict=True)}
        found["callsheet_redis_memory_bytes"] = memory["used_memory"]
        found["callsheet_redis_memory_limit_bytes"] = memory.get("maxmemory", 0)
        return found
