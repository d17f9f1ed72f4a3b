"""The owner of the keys about jobs, together with the scripts: every read, every claim, every lease.

Writes that change a job go through `commit.lua` alone, by way of tracker.py. All keys begin with the key prefix:

    job:{id} hash · timeline:{id} list · jobs:{vendor}:{status}:{archive} zset of ids · indexes set of those keys
    vendor_jobs:{vendor} hash, vendor's id → ours · parked:{vendor}:{vendor's id} list · idempotency:{…} string
    polls:{vendor}, deadlines zsets of ids by due time · tasks the same of RQ job ids · and those of calls.py
    raw:{id} hash of payloads · quarantine zset and quarantine:{id} hashes · parked zset of vendor:vendor's id
    kept:quarantine, kept:parked hashes of their bytes · crowded_out hash · stream · lease:{…} strings
    channels events, events:{id}
"""

from __future__ import annotations

import re
from typing import Final, cast

import msgspec
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.jobs.scripts import script_text, unpack_body
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
        self._held: AsyncScript = redis.register_script(script_text("held", settings))
        self._sweep: AsyncScript = redis.register_script(script_text("sweep", settings))
        self._retire: AsyncScript = redis.register_script(script_text("retire", settings))
        self._unwatched: dict[str, str] = {}  #: index → where the rest of it begins

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

    async def sweep(self, limit: int) -> tuple[int, bool]:
        """Enqueue again what should have moved and did not; how many that were, and whether there may be more."""
        pushed, seen = cast("list[int]", await self._sweep(args=[limit]))
        return pushed, seen == limit

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
