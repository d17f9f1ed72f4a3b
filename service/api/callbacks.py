"""The vendors' door bell: `POST /callbacks/{vendor}/{token}`, a plain ASGI function in front of the router.

Answers 200 once the callback is durable, for news, duplicates and stale facts alike. What cannot be understood is
durable too (in quarantine, and the vendor is asked at once) before it gets its 400 or 422. No slow work happens here.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any, Final

import msgspec
from redis import RedisError
from starlette.types import Receive, Scope, Send

from service import logs, metrics, tracing
from service.deployment import Deployment
from service.jobs.tokens import SHARED, redact
from service.jobs.tracker import CommitFailed, Recorded
from service.model import Observation, Problem, Source
from service.vendors import VENDORS
from service.vendors.reading import unreadable

PREFIX: Final = "/callbacks/"

_log = logs.get("callbacks")


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    media_type: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def _problem(status: int, detail: str, *headers: tuple[bytes, bytes]) -> _Answer:
    title = HTTPStatus(status).phrase
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
    return _Answer(status, body, b"application/problem+json", headers)


_RECEIVED: Final = _Answer(200, b'{"received":true}', b"application/json")
_NOT_FOUND: Final = _problem(404, "no such callback URL")
_NOT_POST: Final = _problem(405, "callbacks are sent by POST", (b"allow", b"POST"))
_TOO_LARGE: Final = _problem(413, "the callback is larger than this service takes; the vendor is asked instead")
_UNAVAILABLE: Final = _problem(503, "the callback was not kept; send it again", (b"retry-after", b"5"))


#: What the counts call an answer that is not 200.
_REFUSED: Final = {
    400: "not_understood",
    404: "no_such_url",
    405: "not_post",
    413: "too_large",
    422: "not_understood",
    503: "unavailable",
}


class Disconnected(Exception):
    """The sender went away before its body was complete."""


class Callbacks:
    """Receives every vendor's callbacks."""

    def __init__(self, deployment: Deployment) -> None:
        self._tracker = deployment.tracker
        self._tokens = deployment.tokens
        self._limit = deployment.settings.max_callback_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        slug, _, token = scope["path"][len(PREFIX) :].partition("/")
        subject = self._tokens.verify(slug, token)  # before anything else is looked at: every wrong URL takes as long
        line: dict[str, Any] = {"vendor": slug if slug in VENDORS else None, "job_id": None}
        if subject is None or slug not in VENDORS:
            answer = _NOT_FOUND  # and the body is never read
        else:
            line["job_id"] = None if subject == SHARED else subject
            try:
                if scope["method"] == "POST":
                    packed = any(
                        name == b"content-encoding" and value != b"identity" for name, value in scope["headers"]
                    )
                    answer = await self._take(slug, subject, receive, line, packed=packed)
                else:
                    answer = _NOT_POST
            except Disconnected:
                metrics.callbacks(slug, "cut_short").inc()
                _log.info("callback cut short", **line)
                return
        await _reply(send, answer)
        level = _log.info if answer.status == 200 else _log.warning
        if tracing.on():
            tracing.note(vendor=line["vendor"], job_id=line["job_id"], http_status=answer.status)
        seconds = time.perf_counter() - began
        metrics.callbacks(line["vendor"] or "unknown", _REFUSED.get(answer.status) or line["outcome"]).inc()
        if answer.status == 200:
            metrics.ack_seconds.observe(seconds)
        if problem := line.get("problem"):
            metrics.quarantined(slug, problem).inc()
        level("callback", http_status=answer.status, ms=round(seconds * 1000, 1), **line)

    async def _take(self, slug: str, subject: str, receive: Receive, line: dict[str, Any], *, packed: bool) -> _Answer:
        body = await _read(receive, self._limit)
        if body is None:
            seen, body = unreadable(Source.CALLBACK, Problem.TOO_LARGE, f"larger than {self._limit} bytes"), b""
        elif packed:  # nobody here unpacks what a stranger has packed
            seen = unreadable(Source.CALLBACK, Problem.BAD_SHAPE, "it is compressed")
        else:
            seen = VENDORS[slug].read_callback(body)
        if subject == SHARED and seen.vendor_job_id is None and seen.problem is None:
            seen = unreadable(Source.CALLBACK, Problem.NO_JOB_ID, "came by the vendor's shared URL and names no job")
        try:
            recorded = await self._record(slug, subject, seen, body)
            if recorded.outcome in ("other_job", "taken"):
                detail = f"names the vendor's job {seen.vendor_job_id!r}, which is not the one behind this URL"
                seen = unreadable(Source.CALLBACK, Problem.OTHER_JOB, detail)
                recorded = await self._record(slug, subject, seen, body)
        except (RedisError, CommitFailed, OSError) as error:
            line |= {"error": f"{type(error).__name__}: {error}"[:300]}
            return _UNAVAILABLE
        line |= {"bytes": len(body), "outcome": recorded.outcome, "status": seen.status, "problem": seen.problem}
        line["job_id"] = recorded.job_id or line["job_id"]
        return _answer(seen, recorded)

    async def _record(self, slug: str, subject: str, seen: Observation, body: bytes) -> Recorded:
        shared = subject == SHARED
        return await self._tracker.record(
            seen,
            vendor=slug,
            job_id=None if shared else subject,
            raw=body,
            weak_path=shared,
            quarantine=(subject, body) if seen.problem not in (None, Problem.TOO_LARGE) else None,
        )


def _answer(seen: Observation, recorded: Recorded) -> _Answer:
    if recorded.outcome == "unknown_job":
        return _NOT_FOUND
    if seen.problem is None:
        return _RECEIVED
    if seen.problem is Problem.TOO_LARGE:
        return _TOO_LARGE
    status = 400 if seen.problem is Problem.BAD_JSON else 422
    words = redact(f"not understood: {seen.detail}".encode(errors="replace")).decode()
    return _problem(status, f"{words}; the callback is kept, and the vendor is asked")


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The body, counted as it arrives (a chunked one announces no length); None where it is larger than `limit`."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        more = message.get("more_body", False)
    return bytes(body)


async def _reply(send: Send, answer: _Answer) -> None:
    length = b"%d" % len(answer.body)
    headers = [(b"content-type", answer.media_type), (b"content-length", length), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
