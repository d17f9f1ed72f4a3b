"""Sends events to subscribers' endpoints, signed as the Standard Webhooks specification says.

`deliver` is the RQ task: one run sees to one endpoint until nothing is due there. So an endpoint has a concurrency and
a circuit of its own, and one that is slow or dead holds up nobody else. A job's events are sent one after the other.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import httpx

from service import logs, metrics, tracing
from service.deployment import Deployment, configured, opened
from service.jobs import tasks
from service.jobs.endpoints import MAX_ENDPOINTS, TEST, Claim, Endpoints, Waiting, delivery_id
from service.jobs.stream import read_head, says
from service.jobs.tokens import redact
from service.model import Attempt
from workers import outbound
from workers.download import Interrupted
from workers.vendor_client import retry_after

#: Events on their way to one endpoint at once.
IN_FLIGHT: Final = 8
#: Seconds between looks for new events while there is room for them beside those that are not answered yet.
LOOK_EVERY: Final = 0.2
#: Seconds of one request as a whole, less than a worker has to stop in; and how much of its answer is read.
SECONDS: Final = 15.0
ANSWER_BYTES: Final = 1024
#: A run and what it sends are believed to live for so long: longer than a request takes; after each it says so again.
LEASE_MS: Final = 30_000
#: An endpoint that nothing has got through to for so long is disabled.
DISABLE_AFTER_MS: Final = 5 * 86_400_000

_log = logs.get("notify")


class Notifier:
    """What sending takes, and whether there is still time for it."""

    def __init__(self, deployment: Deployment, http: httpx.AsyncClient, stop: asyncio.Event) -> None:
        self._endpoints = Endpoints(deployment.redis, deployment.store, deployment.settings)
        self._http = http
        self._stop = stop

    async def deliver(self, endpoint_id: str) -> None:
        """One run over an endpoint, until nothing is due there.

        Raises:
            Interrupted: The process stops; the task has to be enqueued again.
        """
        run, over = uuid4().hex, False
        sending: set[asyncio.Task[None]] = set()
        try:
            while sending or not (over or self._stop.is_set()):
                room = 0 if over or self._stop.is_set() else IN_FLIGHT - len(sending)
                if room:
                    claim = await self._endpoints.claim(endpoint_id, run, LEASE_MS, room, hold=bool(sending))
                    over = claim is None
                    if claim:
                        sending |= {asyncio.create_task(self._send(claim, waiting)) for waiting in claim.waiting}
                if sending:
                    look = LOOK_EVERY if room and len(sending) < IN_FLIGHT else None
                    done, sending = await asyncio.wait(sending, timeout=look, return_when=asyncio.FIRST_COMPLETED)
                    for trouble in filter(None, (task.exception() for task in done)):
                        metrics.errors("notify").inc()
                        words = repr(trouble)[:300]
                        _log.error("a delivery was left to its lease", endpoint=endpoint_id, trouble=words)
        finally:  # where Redis went away meanwhile, what is on its way still has to be noted
            await asyncio.gather(*sending, return_exceptions=True)
        if not over:
            await self._endpoints.release(endpoint_id, run)
            raise Interrupted

    async def _send(self, claim: Claim, waiting: Waiting) -> None:
        endpoint, (job_id, _, type_) = claim.endpoint, waiting.member.split()
        payload = waiting.event or await self._endpoints.event(waiting.member)
        head = read_head(payload) if payload else None
        if payload is None or head is None or not (type_ == TEST or says(head.data.metadata, endpoint.metadata)):
            if head is None:
                _log.error("an event is no longer known", endpoint=endpoint.id, job_id=job_id, type=type_)
            await self._endpoints.drop(endpoint.id, waiting)
            return None
        began, at_s = time.monotonic(), (waiting.lease - LEASE_MS) / 1000  # Redis' clock: receivers refuse a wrong one
        headers = signature(claim.secrets, head.id, int(at_s), payload)
        with tracing.span("deliver", waiting.trace, kind="producer", job_id=job_id, endpoint=endpoint.id, event=type_):
            if at := tracing.traceparent():
                headers["traceparent"] = at
            status, answer, wait = await self._post(endpoint.url, payload, headers)
            tracing.note(http_status=status)
        delivered, left = status is not None and 200 <= status < 300, tasks.DELIVERY_RETRIES[waiting.tries :]
        again = None
        if not delivered and left:
            again = int(1000 * max(wait, left[0] * random.uniform(0.8, 1.2)))  # noqa: S311  jitter
        attempt = Attempt(
            delivery_id=delivery_id(endpoint.id, waiting.member),
            event_id=head.id,
            type=type_,
            job_id=job_id,
            at=datetime.fromtimestamp(at_s, UTC),
            number=waiting.tries + 1,
            status=status,
            ms=int((time.monotonic() - began) * 1000),
            outcome="delivered" if delivered else "given up" if again is None or status == 410 else "again",
            answer=redact(answer).decode(errors="replace"),
        )
        metrics.deliveries(attempt.outcome.replace(" ", "_")).inc()
        metrics.delivery_seconds.observe(attempt.ms / 1000)
        _log.info(
            "delivery", endpoint=endpoint.id, job_id=job_id, type=type_, http_status=status, ms=attempt.ms,
            outcome=attempt.outcome,
        )  # fmt: skip
        if delivered:
            return await self._endpoints.sent(endpoint.id, waiting, attempt)
        failing_ms = await self._endpoints.failed(endpoint.id, waiting, attempt, again, int(wait * 1000))
        reason = f"nothing has got through for {failing_ms // 86_400_000} days"
        reason = "it answered 410 Gone" if status == 410 else reason if failing_ms > DISABLE_AFTER_MS else ""
        if reason and await self._endpoints.disable(endpoint, reason):
            _log.error("endpoint disabled", endpoint=endpoint.id, reason=reason)
        return None

    async def _post(self, url: str, payload: bytes, headers: dict[str, str]) -> tuple[int | None, bytes, float]:
        """The status, how the answer begins, and the seconds that it asks to be left alone."""
        status, wait, body = None, 0.0, bytearray()
        try:
            async with (
                asyncio.timeout(SECONDS),
                self._http.stream("POST", url, content=payload, headers=headers) as response,
            ):
                status, wait = response.status_code, retry_after(response)
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) >= ANSWER_BYTES:
                        break
        except outbound.TransportError as error:
            words = "its address is not allowed" if outbound.was_forbidden(error) else str(error) or "no answer in time"
            # httpx-aiohttp calls every lost connection a ConnectTimeout; what aiohttp called it is its cause.
            met = error.__cause__ if isinstance(error, httpx.HTTPError) else None
            body = body if status else bytearray(f"{type(met or error).__name__}: {words}".encode())
        return status, bytes(body[:ANSWER_BYTES]), wait


def client(*, allow_private_networks: bool) -> httpx.AsyncClient:
    """Connections for every endpoint, so that none has to wait until a slow one has let go of its own."""
    return outbound.client(allow_private_networks=allow_private_networks, connections=MAX_ENDPOINTS * IN_FLIGHT)


def signature(secrets: list[str], event_id: str, timestamp: int, payload: bytes) -> dict[str, str]:
    """The headers of the Standard Webhooks specification; every secret that is in force signs."""
    signed = f"{event_id}.{timestamp}.".encode() + payload
    keys = (base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets)
    made = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{one}" for one in made),
    }


#: The notifier of a worker that runs many tasks at once. Under any other RQ worker each task brings its own.
shared: ContextVar[Notifier] = ContextVar("notifier")


async def deliver(endpoint_id: str) -> None:
    """The RQ task: send what is due at an endpoint."""
    if notifier := shared.get(None):
        return await notifier.deliver(endpoint_id)
    settings = configured()
    async with (
        opened(settings) as deployment,
        client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        return await Notifier(deployment, http, asyncio.Event()).deliver(endpoint_id)
