"""Jobs that the API is asked about, and what is to be seen in its answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import httpx
import msgspec

from service.model import Archive, Observation, Output, Source, Status, Stored
from service.storage import UNKNOWN_TYPE, Storage, object_key
from tests.support import state
from tests.support.files import MP4
from tests.support.web import API_KEY, Web

NO_SUCH_JOB: Final = "job_000000000000000000000000"
PROBLEM: Final = "application/problem+json"

FILM: Final = MP4 + bytes(range(256)) * 40
PICTURE: Final = b"<svg onload=alert(1)>"

#: What a vendor says of a job, and what is asked of vendors.
READABLE: Final = b'{"code": 200, "data": {"taskId": "task-1", "state": "processing"}}'
VIDEO: Final = {"video_url": "https://example.com/video.mp4"}
IMAGE: Final = {"image_url": "https://example.com/person.png"}
AUDIO: Final = {"audio_url": "https://example.com/voice.mp3"}
TEXT: Final = {"text": "你好", "voice": "C-1"}
TWO: Final = {"left_audio_url": "https://example.com/left.mp3", "right_audio_url": "https://example.com/right.mp3"}
FACE: Final = {"session_id": "session_abc123", "face_id": "face_001"}
FILES: Final = {"video_file_id": "file-v", "audio_file_id": "file-a"}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem in an answer, which has to be a whole one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = dict(answer.json())
    assert body["status"] == status
    assert all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail"))
    return body


def bad_fields(answer: httpx.Response) -> list[str]:
    """The fields that a 422 names, each of which says what would be right."""
    errors = problem(answer, 422)["errors"]
    assert all(error["detail"] for error in errors)
    return sorted(error["field"] for error in errors)


def stored_job(web: Web, *, keep: bool = True, content_type: str | None = None) -> dict[str, Any]:
    """A job with two outputs that the archive says it has stored, and which are in `storage` unless `keep` is False.

    The record calls them what the storage does, or else `content_type`.
    """
    job = web.track("apimodels", vendor_job_id="task-1")
    outputs = (Output(url="https://cdn.example.com/film.mp4"), Output(url="https://cdn.example.com/picture.svg"))
    web.record(
        Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=outputs), vendor="apimodels", job_id=job["id"]
    )
    storage, copies = Storage(web.settings.storage_url), []
    for number, (output, content) in enumerate(zip(outputs, (FILM, PICTURE), strict=True)):
        key = object_key("apimodels", job["id"], number, output)
        sniffed = asyncio.run(storage.put(key, one(content))) if keep else UNKNOWN_TYPE
        stored = Stored(
            url=f"{web.url}/v1/jobs/{job['id']}/outputs/{number}",
            key=key,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            content_type=content_type or sniffed,
        )
        copies.append(msgspec.structs.replace(output, stored=stored))
    web.record(
        Observation(source=Source.ARCHIVE, archive=Archive.STORED, outputs=tuple(copies)),
        vendor="apimodels",
        job_id=job["id"],
    )
    return job


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


def letter_for(web: Web, job: dict[str, Any], body: bytes = b"nope") -> dict[str, Any]:
    """The letter that an unreadable callback becomes."""
    assert web.callback(job["callback_url"], body).status_code in (400, 422)
    [letter] = [letter for letter in web.letters() if letter["job_id"] == job["id"]]
    return letter


def submit(web: Web, vendor: str, input_: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Submit a job; the answer, its `callback_url` included."""
    answer = web.api.post("/v1/jobs", json={"vendor": vendor, "input": input_, **fields})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def line(web: Web) -> list[str]:
    """The RQ queue of submissions, first in line first."""
    ids = cast("list[bytes]", web.redis.lrange(f"rq:queue:{web.settings.key_prefix}-submit", 0, -1))
    return [rq_id.decode() for rq_id in ids]


def noted(web: Web) -> dict[str, float]:
    """The tasks that should move, and in how many seconds."""
    seconds, micros = web.redis.time()
    rows = cast("list[tuple[bytes, float]]", web.redis.zrange(web.key("tasks"), 0, -1, withscores=True))
    return {rq_id.decode(): at / 1000 - seconds - micros / 1e6 for rq_id, at in rows}


def nothing_written(web: Web) -> bool:
    return state.keys(web.redis) == []


def types(web: Web) -> list[str]:
    return [event["type"] for event in web.events()]


def keyed(key: str = "order-1", api_key: str = API_KEY) -> dict[str, str]:
    return {"Idempotency-Key": key, "Authorization": f"Bearer {api_key}"}
