"""The door of one process, short ways to tell it facts about jobs, and to see what came of them in Redis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, cast

import msgspec
from redis.asyncio import Redis

from service.jobs.connection import connect
from service.jobs.scripts import Ask
from service.jobs.store import Store
from service.jobs.tracker import Tracker
from service.model import Cost, Event, Job, JobError, Observation, Output, Problem, Source, Status, Stored, new_id
from service.settings import Settings
from tests.support.deployment import settings

#: The rhythm of the one vendor here that can be asked.
ASK: Final = Ask(grace=30_000, every=5_000, slowest=300_000)
VENDOR: Final = "kitta"
#: A vendor without credentials.
MUTE: Final = "chanjing"

VIDEO: Final = (Output(url="https://cdn.example/one.mp4"),)
OTHER_VIDEO: Final = (Output(url="https://cdn.example/two.mp4?signed=again"),)
REFUSED: Final = JobError(code="bad_face", message="no face found")


def copied(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """The outputs with our copy of each."""
    copy = Stored(url="http://127.0.0.1/0", key="kitta/0.mp4", bytes=3, sha256="ab" * 32, content_type="video/mp4")
    return tuple(msgspec.structs.replace(output, stored=copy) for output in outputs)


def fact(source: Source, status: Status | None = None, **facts: Any) -> Observation:
    return Observation(source=source, status=status, **facts)


told: Final = partial(fact, Source.CALLBACK)
polled: Final = partial(fact, Source.POLL)
ours: Final = partial(fact, Source.OPERATOR)
archived: Final = partial(fact, Source.ARCHIVE)
SUCCESS: Final = told(Status.SUCCEEDED, outputs=VIDEO)


class Desk:
    """The door of one process, and the short ways to tell it something and to see what came of it."""

    def __init__(self, redis: Redis, made: Settings) -> None:
        self.redis = redis
        self.settings = made
        self.store = Store(redis, made)
        self.tracker = Tracker(redis, made, {VENDOR: ASK})

    async def new_id(self) -> str:
        return new_id("job", await self.store.now_ms())

    async def track(self, vendor_job_id: str | None = "v-1", vendor: str = VENDOR, **facts: Any) -> str:
        """A new job; `queued` where the vendor's id is known, else `pending`."""
        status = Status.QUEUED if vendor_job_id else None
        seen = fact(Source.SUBMIT, status, vendor_job_id=vendor_job_id, **facts)
        recorded = await self.tracker.record(seen, vendor=vendor, job_id=await self.new_id(), create=True)
        assert recorded.outcome in ("apply", "note")
        return recorded.job_id

    async def tell(self, job_id: str | None, seen: Observation, vendor: str = VENDOR, **how: Any) -> str:
        """Record a fact about a job. Its outcome."""
        recorded = await self.tracker.record(seen, vendor=vendor, job_id=job_id, **how)
        assert recorded.job_id == (job_id or recorded.job_id) or recorded.outcome == "taken"
        return recorded.outcome

    async def hint(self, seen: Observation, vendor: str = VENDOR, **how: Any) -> str:
        """Record a fact that came by the vendor's shared URL. Its outcome."""
        return await self.tell(None, seen, vendor, weak_path=True, **how)

    async def job(self, job_id: str) -> Job:
        job = await self.store.job(job_id)
        assert job
        return job

    async def timeline(self, job_id: str) -> list[dict[str, Any]]:
        return [json.loads(entry) for entry in await self.store.timeline_json(job_id)]

    async def last(self, job_id: str) -> dict[str, Any]:
        """The latest entry of the timeline, without its times."""
        entry = (await self.timeline(job_id))[-1]
        return {name: value for name, value in entry.items() if name not in ("at", "received_at")}

    async def stream(self) -> list[bytes]:
        """Every event's JSON, oldest first."""
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", await self.redis.xrange(self.store.key("stream")))
        assert all(list(entry) == [b"event"] for _, entry in entries)
        return [entry[b"event"] for _, entry in entries]

    async def events(self, job_id: str) -> list[Event]:
        events = [msgspec.json.decode(event, type=Event) for event in await self.stream()]
        return [event for event in events if event.data.id == job_id]

    async def types(self, job_id: str) -> list[str]:
        return [event.type for event in await self.events(job_id)]

    async def due(self, job_id: str, what: str = f"polls:{VENDOR}") -> int | None:
        """Milliseconds from now until something is due; None where it never is."""
        score = await self.redis.zscore(self.store.key(what), job_id)
        return None if score is None else int(score) - await self.store.now_ms()

    async def row(self, job_id: str, **fields: str | int) -> None:
        """Overwrite fields of a job's row: what would otherwise take hours to come about."""
        await self.redis.hset(self.store.key("job", job_id), mapping=cast("dict[Any, Any]", fields))

    async def everything(self) -> dict[bytes, bytes | None]:
        """All that is in Redis."""
        return {key: await self.redis.dump(key) async for key in self.redis.scan_iter(count=1000)}

    async def indexes(self, job_id: str) -> list[str]:
        """Every index that the job stands in."""
        keys = [key async for key in self.redis.scan_iter(self.store.key("jobs", "*"))]
        found = [key.decode() for key in keys if await self.redis.zscore(key, job_id) is not None]
        return sorted(found)


@asynccontextmanager
async def opened_desk(redis_url: str, **overrides: Any) -> AsyncIterator[Desk]:
    made = settings(redis_url, **overrides)
    async with connect(made) as redis:
        yield Desk(redis, made)


def about(due: int | None, expected: int) -> bool:
    """Whether something is due in `expected` ms, give or take the moment that has passed since it was written."""
    return due is not None and expected - 2_000 <= due <= expected


ESTIMATE: Final = Cost(estimated=5.5, unit="credits")
CHARGE: Final = Cost(charged=4, unit="credits")


PROBLEM: Final = told(problem=Problem.UNKNOWN_STATUS, detail="unknown status 'paused'")


class Ears:
    """Subscribed to an events channel of all jobs, and to those of single jobs."""

    def __init__(self, desk: Desk, pubsub: Any) -> None:
        self._desk = desk
        self._pubsub = pubsub

    async def heard(self) -> tuple[list[bytes], dict[str, list[bytes]]]:
        """What was published since the last question: to all, and by the job's channel."""
        await self._desk.redis.publish("callsheet:events", b"end")
        everybody: list[bytes] = []
        single: dict[str, list[bytes]] = {}
        async for message in self._pubsub.listen():
            if message["type"] == "pmessage":
                single.setdefault(message["channel"].decode().removeprefix("callsheet:events:"), []).append(
                    message["data"]
                )
            elif message["type"] == "message":
                if message["data"] == b"end":
                    break
                everybody.append(message["data"])
        return everybody, single


@asynccontextmanager
async def listening(desk: Desk) -> AsyncIterator[Ears]:
    async with desk.redis.pubsub() as pubsub:
        await pubsub.subscribe("callsheet:events")
        await pubsub.psubscribe("callsheet:events:*")
        ears = Ears(desk, pubsub)
        await ears.heard()
        yield ears


#: The order in which the statuses of a job are announced.
ANNOUNCED: Final = {
    "job.submitted": 0,
    "job.processing": 1,
    "job.expired": 2,
    "job.succeeded": 3,
    "job.failed": 3,
    "job.cancelled": 3,
}


def check_events(job_id: str, events: list[Event]) -> None:
    types = [event.type for event in events]
    assert len(set(types)) == len(types), "each type once"
    statuses = [type_ for type_ in types if type_ in ANNOUNCED]
    assert [ANNOUNCED[type_] for type_ in statuses] == sorted(ANNOUNCED[type_] for type_ in statuses)
    for copy in ("job.stored", "job.store_failed"):
        assert copy not in types or "job.succeeded" in types[: types.index(copy)]
    assert all(event.data.id == job_id for event in events)
    assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)
