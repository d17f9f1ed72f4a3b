"""Callbacks that are all news: jobs that are tracked beforehand, a request for each, and a look at what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from redis import Redis

from service.deployment import opened
from service.jobs.tokens import Tokens
from service.model import Observation, Source, Status, new_id
from service.settings import Settings

#: The pages' own examples of a success: vendor → fixture, and the place of the vendor's job id in it.
_EXAMPLES: Final = {
    "lipsync_studio": ("callback-completed", ("id",), ("output",)),
    "chanjing": ("callback-success", ("data", "id"), ("data", "video_url")),
    "apimodels": ("callback-completed", ("data", "taskId"), ()),
}
_FIXTURES: Final = Path(__file__).parents[1] / "vendors"
#: Facts that are committed together while jobs are made.
_TOGETHER: Final = 128


@dataclass(frozen=True)
class Callback:
    job_id: str
    path: str
    body: bytes

    def request(self, path: str | None = None) -> bytes:
        """The whole HTTP request, to our own path or to another."""
        head = f"POST {path or self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: vendor/1.0\r\nAccept: */*\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n".encode() + self.body


def bodies(vendor: str, vendor_job_id: str) -> bytes:
    """The success of one of a vendor's jobs, as its page shows it."""
    name, id_path, url_path = _EXAMPLES[vendor]
    body = json.loads((_FIXTURES / vendor / f"{name}.json").read_text())["body"]
    _put(body, id_path, vendor_job_id)
    if url_path:
        _put(body, url_path, f"https://cdn.example.com/results/{vendor_job_id}.mp4")
    else:
        body["data"]["resultJson"] = json.dumps(
            {"resultUrls": [f"https://cdn.example.com/results/{vendor_job_id}.mp4"], "videoDuration": 8}
        )
    return json.dumps(body).encode()


def _put(body: Any, path: Sequence[str], value: str) -> None:
    *way, last = path
    for name in way:
        body = body[name]
    body[last] = value


def tracked(settings: Settings, count: int) -> list[Callback]:
    """So many new jobs in the store, one vendor after the other, and each one's callback."""
    return asyncio.run(_tracked(settings, count))


async def _tracked(settings: Settings, count: int) -> list[Callback]:
    tokens, made = Tokens(settings.secret_keys, ""), list[Callback]()
    vendors, now = sorted(_EXAMPLES), time.time_ns() // 10**6
    async with opened(settings) as deployment:
        while len(made) < count:
            facts = []
            for number in range(len(made), min(count, len(made) + _TOGETHER)):
                vendor, job_id = vendors[number % len(vendors)], new_id("job", now)
                vendor_job_id = f"bench-{job_id[4:]}"
                made.append(Callback(job_id, tokens.url(vendor, job_id), bodies(vendor, vendor_job_id)))
                seen = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id=vendor_job_id)
                facts.append(deployment.tracker.record(seen, vendor=vendor, job_id=job_id, create=True))
            await asyncio.gather(*facts)
    return made


def unaccounted(redis: Redis, prefix: str, sent: Sequence[Callback]) -> list[str]:
    """What is missing of the callbacks that were all answered by 200: a job, its event, its RQ task."""
    queue = f"rq:queue:{prefix}-archive"
    queued = {id_.decode() for id_ in cast("list[bytes]", redis.lrange(queue, 0, -1))}
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", redis.xrange(f"{prefix}:stream"))
    events = {fields[b"event"][7:45] for _, fields in entries}  # their ids, with which each begins
    pipeline = redis.pipeline(transaction=False)
    for callback in sent:
        pipeline.hmget(f"{prefix}:job:{callback.job_id}", "status", "archive")
        pipeline.hget(f"rq:job:archive-{callback.job_id}", "status")
    rows = pipeline.execute()
    missing = []
    for callback, job, task in zip(sent, rows[::2], rows[1::2], strict=True):
        if job != [b'"succeeded"', b'"waiting"']:
            missing.append(f"{callback.job_id} is {job}")
        if task != b"queued" or f"archive-{callback.job_id}" not in queued:
            missing.append(f"{callback.job_id} has no task")
        if f"evt_{callback.job_id[4:]}_succeeded".encode() not in events:
            missing.append(f"{callback.job_id} has no event")
    return missing
