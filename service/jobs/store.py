"""The owner of the keys about jobs, together with the scripts: every read, every claim, every lease.

Writes that change a job go through `commit.lua` alone, by way of tracker.py. All keys begin with the key prefix:

    job:{id} hash · timeline:{id} list · jobs:{vendor}:{status}:{archive} zset of ids · indexes set of those keys
    vendor_jobs:{vendor} hash, vendor's id → ours · parked:{vendor}:{vendor's id} list · idempotency:{…} string
    polls:{vendor}, deadlines zsets of ids by due time · tasks the same of RQ job ids · turns:{vendor} the same by turn
    vendor:{vendor}[:submit] hash · calls:{vendor}:{kind} list
    raw:{id} hash of payloads · quarantine zset and quarantine:{id} hashes · parked zset of vendor:vendor's id
    kept:quarantine, kept:parked hashes of their bytes · crowded_out hash · stream · lease:{…}, token:{vendor} strings
    channels events, events:{id}
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
from redis import Redis as SyncRedis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.commands.core import AsyncScript

from service.jobs.scripts import Line, script_text, unpack_body
from service.model import Job, Status, Submission, first_id
from service.settings import Settings

#: Live jobs that one look makes sure of: however many there are, a look costs the same.
WATCHED: Final = 1000


class Claim(msgspec.Struct, frozen=True):
    """A job that is due for a look, held by whoever claimed it until the lease is over."""

    job_id: str
    vendor_job_id: str
    trial: bool = False  #: the vendor was unwell, and this is how it is found out whether it still is


class Ordered(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks of its vendor, and how far that has come."""

    submission: Submission
    prepared: dict[str, object]  #: fields of `vendor_input` that were found or uploaded for it
    step_done: bool  #: the vendor's job that comes before has succeeded
    sent_at_ms: int  #: of the last sending; 0 where there was none
    attempts: int  #: in vain, of what is being tried at the moment

    @property
    def before_it(self) -> bool:
        """Whether another of the vendor's jobs still has to be done before."""
        return self.submission.step is not None and not self.step_done


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a vendor is doing, by kind of call."""

    unwell: dict[str, tuple[int, int]]  #: failures in a row, and until when it is left alone (ms)
    calls: dict[str, int]  #: made within the window of the limit
    in_line: int  #: jobs that wait for their turn to be sent


def connect(settings: Settings) -> Redis:
    """An asyncio client. Callers beyond the number of its connections wait for their turn."""
    again = Retry(ConstantBackoff(0.05), 1)  # a connection that died while idle; every write here may be repeated
    options = _options(settings) | {"max_connections": settings.redis_max_connections, "timeout": 10, "retry": again}
    pool = BlockingConnectionPool.from_url(settings.redis_url, **options)
    return Redis.from_pool(pool)


def connect_sync(settings: Settings) -> SyncRedis:
    """A client for callers without an event loop, and for RQ's own classes."""
    return SyncRedis.from_url(settings.redis_url, **_options(settings))


def _options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": 5, "health_check_interval": 30}
    if settings.redis_url.startswith("rediss://") and not settings.redis_tls_verify:
        options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    return options


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


#: The number of an entry's raw payload; strings end with a quotation mark.
_RAW: Final = re.compile(rb',"raw":(\d+)}$')


class Store:
    """Reads, claims and leases. Nothing here changes a job."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self._prefix = settings.key_prefix
        self.commit = redis.register_script(script_text("commit", settings))
        self._read: AsyncScript = redis.register_script(script_text("read", settings))
        self._claim: AsyncScript = redis.register_script(script_text("claim", settings))
        self._vendor: AsyncScript = redis.register_script(script_text("vendor", settings))
        self._held: AsyncScript = redis.register_script(script_text("held", settings))
        self._sweep: AsyncScript = redis.register_script(script_text("sweep", settings))
        self._retire: AsyncScript = redis.register_script(script_text("retire", settings))
        self._unwatched: dict[str, str] = {}  #: index → where the rest of it begins
        self._askers: dict[tuple[str, str, Line], int] = {}
        self._asked: dict[tuple[str, str, Line], asyncio.Task[list[int]]] = {}

    def key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    async def now_ms(self) -> int:
        """Redis' clock, which is the one that decides."""
        seconds, micros = await self.redis.time()
        return seconds * 1000 + micros // 1000

    # -- jobs ------------------------------------------------------------------------------------

    async def job_json(self, job_id: str) -> bytes | None:
        """A job as the API answers it, or None."""
        found: list[bytes | None] = await self._read(args=["get", job_id])
        return found[0]

    async def job(self, job_id: str) -> Job | None:
        found = await self.job_json(job_id)
        return None if found is None else msgspec.json.decode(found, type=Job)

    async def jobs_json(
        self, limit: int, before: str = "", vendor: str = "", status: str = "", archive: str = ""
    ) -> list[bytes]:
        """Jobs newest first, older than the id `before`; one more than `limit` where there are more."""
        found: list[bytes | None] = await self._read(args=["page", limit, before, vendor, status, archive])
        return [job for job in found if job is not None]

    async def find(self, vendor: str, vendor_job_id: str) -> str | None:
        """Our id of a vendor's job, or None."""
        found = await self.redis.hget(self.key("vendor_jobs", vendor), vendor_job_id)
        return None if found is None else _text(found)

    async def timeline_json(self, job_id: str) -> list[bytes]:
        """A job's timeline, each entry with its raw payload as long as that is kept."""
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.lrange(self.key("timeline", job_id), 0, -1)
        pipeline.hgetall(self.key("raw", job_id))
        entries, raw = await pipeline.execute()
        return [_RAW.sub(lambda found: b',"raw":' + raw.get(found[1], b"null") + b"}", entry) for entry in entries]

    async def attempts(self, job_id: str) -> int:
        """How often the job's task was tried in vain since it was last asked for."""
        return int(await self.redis.hget(self.key("job", job_id), "_attempts") or 0)

    async def ordered(self, job_id: str) -> Ordered | None:
        """What a job asks of its vendor and how far that has come; None where others submit it."""
        names = ("_order", "_prepared", "_step_at", "_sent_at", "_attempts")
        order, prepared, step_at, sent_at, attempts = cast(
            "list[bytes | None]", await self.redis.hmget(self.key("job", job_id), names)
        )
        if order is None:
            return None
        return Ordered(
            submission=msgspec.json.decode(order, type=Submission),
            prepared=msgspec.json.decode(prepared or b"{}"),
            step_done=step_at == b"succeeded",
            sent_at_ms=int(sent_at or 0),
            attempts=int(attempts or 0),
        )

    async def unsettled(self, vendor: str) -> dict[str, int]:
        """The jobs that a vendor may have without our knowing its ids, and when they were sent (ms).

        Those that were not answered, and the latest of those that failed: an error may come after the job was made.
        """
        indexes = [self.key("jobs", vendor, status.value, "none") for status in (Status.UNCONFIRMED, Status.FAILED)]
        found = [await self.redis.zrange(indexes[0], 0, -1), await self.redis.zrange(indexes[1], -200, -1)]
        ids = [_text(id_) for rows in found for id_ in cast("list[bytes]", rows)]
        pipeline = self.redis.pipeline(transaction=False)
        for id_ in ids:
            pipeline.hmget(self.key("job", id_), ("_sent_at", "vendor_job_id", "error"))
        rows = zip(ids, await pipeline.execute(), strict=True)
        return {
            id_: int(at)
            for id_, (at, known, error) in rows
            if at and known is None and (error is None or b'"vendor_error"' in error)
        }

    async def unknown(self, vendor: str, vendor_job_ids: list[str]) -> set[str]:
        """Those of a vendor's ids that no job of ours has."""
        if not vendor_job_ids:
            return set()
        found = await self.redis.hmget(self.key("vendor_jobs", vendor), vendor_job_ids)
        return {id_ for id_, ours in zip(vendor_job_ids, found, strict=True) if ours is None}

    # -- quarantine --------------------------------------------------------------------------------

    async def quarantined(self, limit: int, cursor: str = "") -> tuple[list[dict[str, bytes]], str | None]:
        """Letters newest first, without their bodies, and where the next page begins (None: there is none)."""
        letters = self.key("quarantine")
        start = 0
        if cursor:  # the last letter of the page before, which may have been released since
            score, _, last = cursor.partition("-")
            rank = await self.redis.zrevrank(letters, last)
            start = await self._after(letters, int(score), last) if rank is None else cast("int", rank) + 1
        found = cast(
            "list[tuple[bytes, float]]",
            await self.redis.zrange(letters, start, start + limit, desc=True, withscores=True),
        )
        pipeline = self.redis.pipeline(transaction=False)
        names = ("id", "vendor", "job_id", "problem", "detail", "received_at", "last_received_at", "count")
        for letter_id, _ in found[:limit]:
            pipeline.hmget(self.key("quarantine", letter_id.decode()), names)
        rows = [dict(zip(names, row, strict=True)) for row in await pipeline.execute() if row[0] is not None]
        if len(found) <= limit:
            return rows, None
        last_id, last_score = found[limit - 1]
        return rows, f"{int(last_score)}-{last_id.decode()}"

    async def _after(self, letters: str, score: int, last: str) -> int:
        """Where a letter that is gone would stand, newest first: letters of one moment stand by their ids."""
        newer = await self.redis.zcount(letters, f"({score}", "+inf")
        same = cast("list[bytes]", await self.redis.zrange(letters, score, score, byscore=True))
        return newer + sum(letter_id.decode() > last for letter_id in same)

    async def letter(self, letter_id: str) -> dict[str, bytes] | None:
        """One letter with its body, or None."""
        found = cast("dict[bytes, bytes]", await self.redis.hgetall(self.key("quarantine", letter_id)))
        letter = {name.decode(): value for name, value in found.items()}
        return letter | {"body": unpack_body(letter["body"])} if letter else None

    async def release(self, letter_id: str) -> None:
        """Forget a letter that was understood at last."""
        await self._retire(args=["letter", letter_id])

    # -- what is due -------------------------------------------------------------------------------

    async def claim_polls(self, vendor: str, lease_ms: int, limit: int, early_ms: int = 0) -> list[Claim]:
        """Take what is due; and where anything is, what will be within `early_ms` too."""
        rows: list[tuple[bytes, bytes | None, int]] = await self._claim(
            args=["polls", vendor, lease_ms, limit, early_ms]
        )
        return [
            Claim(id_.decode(), msgspec.json.decode(known, type=str), bool(trial))
            for id_, known, trial in rows
            if known
        ]

    async def claim_deadlines(self, lease_ms: int, limit: int) -> list[str]:
        found: list[bytes] = await self._claim(args=["deadlines", lease_ms, limit])
        return [id_.decode() for id_ in found]

    async def poll_again(self, vendor: str, job_ids: list[str], at_ms: int) -> None:
        """Look again at that time, without anything having been learned."""
        if job_ids:
            await self.redis.zadd(self.key("polls", vendor), dict.fromkeys(job_ids, at_ms), xx=True)

    async def retire(self, job_ms: int, raw_ms: int, limit: int) -> int:
        """Forget what has ended and is older than the two moments; how many jobs and letters that were."""
        return int(await self._retire(args=[first_id("job", job_ms), raw_ms, limit]))

    async def crowded_out(self) -> dict[str, int]:
        """How much of what strangers sent was dropped since the last time, by kind, to make room for newer."""
        pipeline = self.redis.pipeline()
        pipeline.hgetall(self.key("crowded_out"))
        pipeline.delete(self.key("crowded_out"))
        found: dict[bytes, bytes] = (await pipeline.execute())[0]
        return {kind.decode(): int(count) for kind, count in found.items()}

    async def sweep(self, limit: int) -> int:
        """Enqueue again what should have moved and did not; how many that were."""
        return int(await self._sweep(args=[limit]))

    async def watch(self, vendor: str, now_ms: int) -> int:
        """Make sure that live jobs of a vendor are looked at some time, others with each call; how many were not.

        For jobs that were registered while the vendor had no credentials.
        """
        found = 0
        for status in (Status.QUEUED, Status.PROCESSING):
            index = self.key("jobs", vendor, status.value, "none")
            rest = self._unwatched.get(index, "-")
            ids = cast("list[bytes]", await self.redis.zrange(index, rest, "+", bylex=True, offset=0, num=WATCHED))
            self._unwatched[index] = f"({_text(ids[-1])}" if len(ids) == WATCHED else "-"
            if ids:
                due = dict.fromkeys(ids, now_ms)
                found += int(await self.redis.zadd(self.key("polls", vendor), due, nx=True) or 0)
        return found

    # -- vendors: health, rates, tokens ---------------------------------------------------------------

    async def vendor_well(self, vendor: str, kind: str = "read") -> None:
        await self._vendor(args=["well", vendor, kind])

    async def vendor_unwell(self, vendor: str, wait_ms: int = 0, kind: str = "read", age_ms: int = 0) -> float:
        """Leave a vendor alone for a while: at least `wait_ms`, longer with every failure in a row.

        `age_ms` is how long ago the call was made: calls that were under way together fail together, as one.

        Returns:
            Seconds until it is tried again.
        """
        return int(await self._vendor(args=["unwell", vendor, kind, wait_ms, age_ms])) / 1000

    async def vendor_health(self, windows: Mapping[str, Mapping[str, float]]) -> dict[str, Health]:
        """How vendors are doing, given the windows of their limits in seconds, by kind of call."""
        pipeline = self.redis.pipeline(transaction=False)
        for vendor, kinds in windows.items():
            pipeline.zcard(self.key("turns", vendor))
            for kind in ("read", "submit"):
                pipeline.hmget(self._health(vendor, kind), ("failures", "retry_at"))
            for kind in kinds:
                pipeline.lrange(self.key("calls", vendor, kind), 0, -1)
        told, now = iter(await pipeline.execute()), await self.now_ms()
        return {
            vendor: Health(
                in_line=next(told),
                unwell={kind: (int(n or 1), int(at)) for kind in ("read", "submit") for n, at in [next(told)] if at},
                calls={kind: sum(now - int(at) <= 1000 * kinds[kind] for at in next(told)) for kind in kinds},
            )
            for vendor, kinds in windows.items()
        }

    def _health(self, vendor: str, kind: str) -> str:
        return self.key("vendor", vendor) if kind == "read" else self.key("vendor", vendor, kind)

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
        found = await self.redis.get(self.key("token", vendor))
        return None if found is None else _text(found)

    async def cache_token(self, vendor: str, token: str, seconds: int) -> None:
        await self.redis.set(self.key("token", vendor), token, ex=max(1, seconds))

    async def drop_token(self, vendor: str, token: str) -> None:
        """Forget a token that the vendor refused, unless another process has replaced it already."""
        await self._held(args=["drop", self.key("token", vendor), token])

    # -- leases --------------------------------------------------------------------------------------

    async def lease(self, name: str, owner: str, ms: int) -> bool:
        """Take a lease that nobody else holds."""
        return bool(await self.redis.set(self.key("lease", name), owner, nx=True, px=ms))

    async def renew(self, name: str, owner: str, ms: int) -> bool:
        """Hold a lease for longer; False where it is no longer ours."""
        return bool(await self._held(args=["renew", self.key("lease", name), owner, ms]))

    async def give_up(self, name: str, owner: str) -> None:
        await self._held(args=["drop", self.key("lease", name), owner])

    async def alive(self, rq_id: str, seconds: float) -> None:
        """A running task's sign of life: the sweep leaves it alone for so long."""
        await self.redis.zadd(self.key("tasks"), {rq_id: await self.now_ms() + int(seconds * 1000)}, xx=True)
