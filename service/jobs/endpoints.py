"""Endpoints of subscribers, and what is on its way to them: the owner of these keys, together with deliver.lua.

endpoints hash, id → Endpoint · secrets:{id} hash, secret → ms until which it signs (0: for good)
routes hash, id → what `commit.lua` lets through
attempts:{id} stream of the latest tries at an endpoint · attempts_of:{job} list of those about a job
deliveries:{id}, lanes:{id}, tries:{id}, state:{id}: what waits, see deliver.lua
"""

from __future__ import annotations

import base64
import re
import secrets
from datetime import UTC, datetime
from itertools import compress
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.jobs import stream
from service.jobs.scripts import script_text
from service.jobs.store import Store
from service.jobs.stream import read_head, says
from service.model import ARCHIVE_EVENTS, STATUS_EVENTS, Attempt, Endpoint, new_id
from service.settings import Settings

#: The event of a try that somebody asked for; it reaches every endpoint, whatever its filter.
TEST: Final = "endpoint.test"
#: What the stream and pub/sub hear when an endpoint was disabled because nothing gets through to it.
DISABLED: Final = "endpoint.disabled"
EVENT_TYPES: Final = (*STATUS_EVENTS.values(), *ARCHIVE_EVENTS.values())
MAX_ENDPOINTS: Final = 200
#: A secret that was replaced signs beside the new one for so long.
OVERLAP_MS: Final = 86_400_000

_DELIVERY: Final = re.compile(r"dlv_([0-9a-v]{24})_((?:job|test)_[0-9a-v]{24})_(\d{13}-\d{9})_([a-z._]{1,40})")


class Waiting(msgspec.Struct, frozen=True):
    """An event that is due at an endpoint, held by whoever claimed it until the lease is over."""

    member: str  #: `<job> <entry of the stream> <type>`
    tries: int  #: so far
    lease: int
    event: bytes | None  #: as it was published, as long as the stream has it
    trace: str | None = None  #: what it was published in, as a traceparent


class Claim(msgspec.Struct, frozen=True):
    """What a run sends next, and where to."""

    endpoint: Endpoint
    secrets: list[str]  #: those that sign, the newest first
    waiting: list[Waiting]


def delivery_id(endpoint_id: str, member: str) -> str:
    return f"dlv_{endpoint_id.removeprefix('ep_')}_{member.replace(' ', '_')}"


def parse_delivery_id(text: str) -> tuple[str, str] | None:
    """The endpoint, and the member of its deliveries."""
    found = _DELIVERY.fullmatch(text)
    return (f"ep_{found[1]}", " ".join(found.groups()[1:])) if found else None


class Endpoints:
    """Endpoints and deliveries of one deployment."""

    def __init__(self, redis: Redis, store: Store, settings: Settings) -> None:
        self._redis = redis
        self._store = store
        self._key = store.key
        self._deliver: AsyncScript = redis.register_script(script_text("deliver", settings))

    # -- endpoints ---------------------------------------------------------------------------------

    async def all(self) -> list[Endpoint]:
        found = cast("dict[bytes, bytes]", await self._redis.hgetall(self._key("endpoints")))
        return sorted((msgspec.json.decode(row, type=Endpoint) for row in found.values()), key=lambda one: one.id)

    async def get(self, endpoint_id: str) -> Endpoint | None:
        row = await self._redis.hget(self._key("endpoints"), endpoint_id)
        return None if row is None else msgspec.json.decode(row, type=Endpoint)

    async def add(self, endpoint: Endpoint) -> str:
        """A new endpoint, which hears of everything from now on. Returns its secret."""
        secret = await self.new_secret(endpoint.id)
        await self._put(endpoint, b"")
        return secret

    async def change(self, endpoint_id: str, **changes: Any) -> Endpoint | None:
        """Change an endpoint, whoever else does so at the same time; None where there is none.

        What waits for an endpoint is dropped when it is disabled: once it is enabled again, that can be replayed.
        """
        while row := cast("bytes | None", await self._redis.hget(self._key("endpoints"), endpoint_id)):
            changed = replace(msgspec.json.decode(row, type=Endpoint), **changes)
            if await self._put(changed, row):
                return changed
        return None

    async def disable(self, endpoint: Endpoint, reason: str) -> bool:
        """Disable an endpoint, unless it has been changed since it was read, and publish that."""
        row = cast("bytes | None", await self._redis.hget(self._key("endpoints"), endpoint.id))
        if row is None or msgspec.json.decode(row, type=Endpoint) != endpoint:
            return False
        disabled, now = replace(endpoint, enabled=False, disabled_reason=reason), await self._store.now_ms()
        event = _event(f"evt_{endpoint.id.removeprefix('ep_')}_{now}", DISABLED, now, msgspec.json.encode(disabled))
        return await self._put(disabled, row, event)

    async def _put(self, endpoint: Endpoint, before: bytes, event: bytes = b"") -> bool:
        filters = (f" {' '.join(words)} " if words else "" for words in (endpoint.types, endpoint.vendors))
        route = "|".join(filters) if endpoint.enabled else ""
        return bool(await self._deliver(args=["put", endpoint.id, msgspec.json.encode(endpoint), before, route, event]))

    async def delete(self, endpoint_id: str) -> None:
        await self._deliver(args=["delete", endpoint_id])

    async def new_secret(self, endpoint_id: str) -> str:
        """A fresh secret; the ones before sign beside it for a day."""
        key, now = self._key("secrets", endpoint_id), await self._store.now_ms()
        made = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        known = cast("dict[bytes, bytes]", await self._redis.hgetall(key))
        pipeline = self._redis.pipeline()
        for secret, until in known.items():
            if not int(until):
                pipeline.hset(key, secret, now + OVERLAP_MS)
            elif int(until) < now:
                pipeline.hdel(key, secret)
        pipeline.hset(key, made, 0)
        await pipeline.execute()
        return made

    # -- deliveries --------------------------------------------------------------------------------

    async def claim(self, endpoint_id: str, run: str, lease_ms: int, limit: int, *, hold: bool) -> Claim | None:
        """What a run sends next; None where it is over: another one has the endpoint, or nothing is due there.

        With `hold` it goes on all the same: what it has sent is not answered yet.
        """
        found: list[Any] | None = await self._deliver(args=["claim", endpoint_id, run, lease_ms, limit, int(hold)])
        if found is None:
            return None
        lease, row, known, *members = found
        ends = {secret.decode(): int(until) for secret, until in zip(known[::2], known[1::2], strict=True)}
        living = [secret for secret, until in ends.items() if until == 0 or until > lease - lease_ms]
        return Claim(
            endpoint=msgspec.json.decode(row, type=Endpoint),
            secrets=sorted(living, key=lambda secret: (ends[secret] != 0, -ends[secret])),
            waiting=[
                Waiting(member.decode(), tries, lease, event, trace.decode() if trace else None)
                for member, tries, event, trace in members
            ],
        )

    async def release(self, endpoint_id: str, run: str) -> None:
        """End a run that has not come to its end: another may have the endpoint at once."""
        await self._deliver(args=["release", endpoint_id, run])

    async def drop(self, endpoint_id: str, waiting: Waiting) -> None:
        """Not send an event after all."""
        await self._deliver(args=["drop", endpoint_id, waiting.member, waiting.lease])

    async def sent(self, endpoint_id: str, waiting: Waiting, attempt: Attempt) -> None:
        await self._deliver(args=["sent", endpoint_id, waiting.member, waiting.lease, msgspec.json.encode(attempt)])

    async def failed(
        self, endpoint_id: str, waiting: Waiting, attempt: Attempt, again_ms: int | None, wait_ms: int
    ) -> int:
        """Try again after `again_ms` (None: never), and leave the endpoint alone for `wait_ms`.

        Returns:
            Milliseconds since the first of the failures in a row.
        """
        again = "" if again_ms is None else again_ms
        args: list[str | bytes | int] = [
            waiting.member,
            waiting.lease,
            msgspec.json.encode(attempt),
            again,
            wait_ms,
            attempt.ms,
        ]
        return int(await self._deliver(args=["failed", endpoint_id, *args]))

    async def send(self, endpoint_id: str, *members: str) -> None:
        """Send these events, again or for the first time."""
        await self._deliver(args=["add", endpoint_id, *members])

    async def test(self, endpoint_id: str) -> str:
        """Send an event that says nothing. Returns the delivery's id."""
        member = f"{new_id('test', await self._store.now_ms())} {0:013}-{0:09} {TEST}"
        await self.send(endpoint_id, member)
        return delivery_id(endpoint_id, member)

    async def waiting(self, *endpoint_ids: str) -> list[int]:
        """How many events wait for each of these endpoints."""
        pipeline = self._redis.pipeline(transaction=False)
        for endpoint_id in endpoint_ids:
            pipeline.zcard(self._key("lanes", endpoint_id))
        return [int(number) for number in await pipeline.execute()]

    async def failing_since(self, *endpoint_ids: str) -> list[datetime | None]:
        """Since when nothing has got through to each of these endpoints; None where the last try was fine."""
        pipeline = self._redis.pipeline(transaction=False)
        for endpoint_id in endpoint_ids:
            pipeline.hget(self._key("state", endpoint_id), "since")
        return [datetime.fromtimestamp(int(ms) / 1000, UTC) if ms else None for ms in await pipeline.execute()]

    async def event(self, member: str) -> bytes | None:
        """The event as it was published; where the stream has let go of it, with the job as it is now."""
        job_id, position, type_ = member.split()
        ms, number = map(int, position.split("-"))
        if type_ == TEST:
            made_at = base64.b32hexdecode(job_id.removeprefix("test_").upper())[:6]
            return _event(f"evt_{job_id}", TEST, int.from_bytes(made_at), b"{}")
        found: Any = await self._redis.xrange(self._key("stream"), f"{ms}-{number}", f"{ms}-{number}")
        if found:
            event: bytes = found[0][1][b"event"]
            head = read_head(event)
            return event if (head.data.id, head.type) == (job_id, type_) else None
        types = cast("bytes | None", await self._redis.hget(self._key("job", job_id), "_events"))
        job = await self._store.job_json(job_id)
        if job is None or type_ not in (types or b"").decode().split():
            return None
        return _event(f"evt_{job_id.removeprefix('job_')}_{type_.removeprefix('job.')}", type_, ms, job)

    async def replay(self, endpoint: Endpoint, since_ms: int) -> tuple[int, bool]:
        """Send every event of the stream since a moment again that the endpoint's filters let through.

        Returns:
            How many they are, and whether the stream goes back so far.
        """
        found, start = 0, f"{since_ms}-0"
        (begins, _), _ = await stream.ends(self._redis, self._key("stream"))
        while rows := cast("Any", await self._redis.xrange(self._key("stream"), start, "+", count=500)):
            members = []
            for position, fields in rows:
                event = read_head(fields[b"event"])
                wanted = event.type in (endpoint.types or EVENT_TYPES)
                wanted = wanted and event.data.vendor in (endpoint.vendors or (event.data.vendor,))
                if wanted and says(event.data.metadata, endpoint.metadata):
                    ms, _, number = position.decode().partition("-")
                    members.append(f"{event.data.id} {ms}-{int(number):09} {event.type}")
            if members:
                await self.send(endpoint.id, *members)
            found += len(members)
            start = f"({rows[-1][0].decode()}"
        return found, begins == 0 or begins < since_ms

    async def due_at(self, endpoint_id: str, member: str) -> tuple[bool, datetime | None]:
        """Whether a delivery waits, and about when it is tried next (None: after an earlier event of its job)."""
        waits = await self._redis.zscore(self._key("lanes", endpoint_id), member) is not None
        due = await self._redis.zscore(self._key("deliveries", endpoint_id), member)
        return waits, None if due is None else datetime.fromtimestamp(due / 1000, UTC)

    async def attempts_json(
        self, endpoint_id: str, limit: int, cursor: str = "", **wanted: str
    ) -> tuple[list[bytes], str | None]:
        """The latest tries of which all that is wanted is true, newest first, and where the next page begins."""
        key, last = self._key("attempts", endpoint_id), f"({cursor}" if cursor else "+"
        rows: Any = await self._redis.xrevrange(key, last, "-", count=None if wanted else limit + 1)
        if wanted:
            tries = [msgspec.json.decode(fields[b"attempt"], type=Attempt) for _, fields in rows]
            fitting = (all(getattr(each, name) == value for name, value in wanted.items()) for each in tries)
            rows = list(compress(rows, fitting))
        more = rows[limit - 1][0].decode() if len(rows) > limit else None
        return [fields[b"attempt"] for _, fields in rows[:limit]], more

    async def attempts_of_json(self, job_id: str) -> list[bytes]:
        """The latest tries to tell of a job, newest first."""
        return cast("list[bytes]", await self._redis.lrange(self._key("attempts_of", job_id), 0, -1))


def _event(id_: str, type_: str, ms: int, data: bytes) -> bytes:
    at = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = msgspec.json.encode({"id": id_, "type": type_, "timestamp": at})
    return head[:-1] + b',"data":' + data + b"}"
