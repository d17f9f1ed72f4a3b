"""A deployment's sending side, and a look at what waits for subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec

from service.deployment import Deployment, opened
from service.jobs.endpoints import Endpoints
from service.model import Archive, Attempt, Endpoint, Observation, Output, Source, Status, new_id
from service.settings import Settings
from tests.support.hooks import Answer, Hooks
from tests.support.processes import eventually_async
from workers import main, poller

DAY: Final = 86_400_000
DONE: Final = ["job.submitted", "job.processing", "job.succeeded", "job.stored"]


class Post:
    """A deployment's sending side, and a look at what waits."""

    def __init__(self, deployment: Deployment, hooks: Hooks) -> None:
        self.deployment = deployment
        self.redis = deployment.redis
        self.key = deployment.store.key
        self.endpoints = Endpoints(deployment.redis, deployment.store, deployment.settings)
        self.hooks = hooks

    async def endpoint(self, path: str = "/a", answer: Answer | None = None, **more: Any) -> Endpoint:
        now = await self.deployment.store.now_ms()
        url = self.hooks.at(path, answer)
        made = Endpoint(id=new_id("ep", now), url=url, created_at=datetime.now(UTC), **more)
        await self.endpoints.add(made)
        return made

    async def job(self, *types: str, vendor: str = "kitta", metadata: dict[str, object] | None = None) -> str:
        """A job of which these events are published, all of them without."""
        job_id = new_id("job", await self.deployment.store.now_ms())
        seen = Observation(source=Source.SUBMIT, status=Status.QUEUED, metadata=metadata or {})
        await self.deployment.tracker.record(seen, vendor=vendor, job_id=job_id, create=True)
        for type_ in (types or DONE)[1:]:
            await self.goes_on(job_id, type_, vendor)
        return job_id

    async def goes_on(self, job_id: str, type_: str, vendor: str = "kitta") -> None:
        if type_ == "job.stored":
            seen = Observation(source=Source.ARCHIVE, archive=Archive.STORED)
        else:
            outputs = (Output(url="http://127.0.0.1:9/a.mp4"),) if type_ == "job.succeeded" else None
            seen = Observation(source=Source.CALLBACK, status=Status(type_.removeprefix("job.")), outputs=outputs)
        await self.deployment.tracker.record(seen, vendor=vendor, job_id=job_id)

    async def attempts(self, endpoint: Endpoint) -> list[Attempt]:
        """The oldest first."""
        rows, _ = await self.endpoints.attempts_json(endpoint.id, 1000)
        return [msgspec.json.decode(row, type=Attempt) for row in reversed(rows)]

    async def waiting(self, endpoint: Endpoint) -> int:
        [number] = await self.endpoints.waiting(endpoint.id)
        return number

    async def nothing_waits(self, *endpoints: Endpoint) -> None:
        async def none() -> bool:
            return not any(await self.endpoints.waiting(*(endpoint.id for endpoint in endpoints)))

        await eventually_async(none, "nothing that waits", timeout=20)

    async def idle(self, endpoint: Endpoint) -> None:
        """Wait until no run has the endpoint."""

        async def over() -> bool:
            return not await self.redis.hexists(self.key("state", endpoint.id), "busy")

        await eventually_async(over, "the end of the run", timeout=20)

    async def time_passes(self, endpoint: Endpoint, ms: int) -> None:
        """Let all that has to do with time be so much longer ago."""
        for key in (self.key("deliveries", endpoint.id), self.key("tasks")):
            for member in cast("list[bytes]", await self.redis.zrange(key, 0, -1)):
                await self.redis.zincrby(key, -ms, member)
        state, fields = self.key("state", endpoint.id), {"since", "retry_at", "paused", "until"}
        for field in fields & {name.decode() for name in cast("list[bytes]", await self.redis.hkeys(state))}:
            await self.redis.hincrby(state, field, -ms)

    async def stream(self) -> list[bytes]:
        rows: Any = await self.redis.xrange(self.key("stream"))
        return [fields[b"event"] for _, fields in rows]


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[asyncio.Event]:
    """A worker and a poller for the length of a block."""
    stop = asyncio.Event()
    async with opened(settings) as deployment, asyncio.TaskGroup() as group:
        group.create_task(main.run(deployment, stop))
        group.create_task(poller.run(deployment, stop))
        yield stop
        stop.set()


async def tried(post: Post, endpoint: Endpoint, times: int) -> bool:
    return len(await post.attempts(endpoint)) >= times


async def came(post: Post, number: int) -> bool:
    return len(post.hooks.got["/a"]) >= number
