"""Callbacks: which ones a job's faults make of its verdict, and sending them as the vendors do.

Owns the only HTTP client of the sandbox. A callback URL holds its receiver's secret: nothing here logs one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec

from sandbox.jobs import Attempt, Job, Phase

#: How long one attempt may take. One vendor's page says so; the others get the same patience.
TIMEOUT: Final = 10.0

#: `callback_late` without a number: this many times the job's own seconds.
_LATE: Final = 4


class Caller(Protocol):
    """A vendor that calls back."""

    @property
    def retries(self) -> Sequence[float]:
        """Seconds between the attempts until one is answered with a 2xx; empty for a single attempt."""

    def callback(self, job: Job, phase: Phase) -> object:
        """The callback's body, in the vendor's shape."""


@dataclass(frozen=True)
class Callback:
    """One callback that will be sent."""

    at: float  #: unix seconds
    kind: str  #: `verdict`, or the fault that made it
    url: str
    says: Phase
    copies: int = 1  #: sent at the same time
    cut: bool = False  #: half of the body is missing
    forged: bool = False  #: not the vendor's own, so nobody repeats it


def plan(job: Job, url: str) -> list[Callback]:
    """The callbacks of a job, in the order in which they are sent."""
    faults, end, truth = job.faults, job.finished_at, job.verdict
    opposite = Phase.SUCCEEDED if truth is Phase.FAILED else Phase.FAILED
    late = 0.0
    if "callback_late" in faults:
        asked = faults["callback_late"]
        late = job.seconds * _LATE if asked is None else asked
    kind, copies = "verdict", 1
    if "callback_doubled" in faults:
        kind, copies = "doubled", 2
    if "callback_garbled" in faults:
        kind = "garbled"

    calls = []
    if "callback_forged" in faults:
        calls.append(Callback(end, "forged_token", _wrong_token(url), truth, forged=True))
        calls.append(Callback(end, "forged_verdict", _made_up_token(url), opposite, forged=True))
    if "callback_lost" not in faults:
        if "unknown_status" in faults:
            calls.append(Callback(end, "unknown_status", url, Phase.UNKNOWN))
        calls.append(Callback(job.known_at + late, kind, url, truth, copies, cut="callback_garbled" in faults))
        if "callback_reordered" in faults:
            calls.append(Callback(job.known_at + late, "stale", url, Phase.PROCESSING))
    return [call for call in calls if call.at < math.inf]


def _wrong_token(url: str) -> str:
    """The same URL with the last character of its path changed, to one that hex and base64 have too."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path[:-1] + ("0" if parts.path[-1:] != "0" else "1")))


def _made_up_token(url: str) -> str:
    """The same URL with a random token; what stands before a dot (an id that anybody may know) stays."""
    parts = urlsplit(url)
    folder, _, last = parts.path.rpartition("/")
    known, dot, token = last.rpartition(".")
    made_up = secrets.token_hex(max(16, len(token) // 2))
    return urlunsplit(parts._replace(path=f"{folder}/{known}{dot}{made_up}"))


class Sender:
    """Sends callbacks in the background and notes every attempt on its job."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._tasks: set[asyncio.Task[None]] = set()
        self._client = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, limits=httpx.Limits(max_connections=None)
        )
        # At INFO, httpx logs every URL that it asks for.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    async def start(self, job: Job, caller: Caller) -> None:
        """Send a job's callbacks when they are due. Returns at once, or with `callback_early` when one has arrived."""
        if job.callback_url is None:
            return
        heard = asyncio.Event()
        task = asyncio.create_task(self._send_all(job, caller, plan(job, job.callback_url), heard))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: heard.set())
        if "callback_early" in job.faults:
            await heard.wait()

    def cancel(self) -> None:
        """Send nothing more."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def _send_all(self, job: Job, caller: Caller, calls: Sequence[Callback], heard: asyncio.Event) -> None:
        for call in calls:
            # A millisecond more: two clocks are at work, and whoever asks after the callback must hear the same.
            await asyncio.sleep(max(0.0, call.at - time.time() + 0.001))
            body = msgspec.json.encode(caller.callback(job, call.says))
            body = body[: len(body) // 2] if call.cut else body
            waits = () if call.forged else caller.retries
            await asyncio.gather(*(self._send(job, call, body, waits, heard) for _ in range(call.copies)))

    async def _send(self, job: Job, call: Callback, body: bytes, waits: Sequence[float], heard: asyncio.Event) -> None:
        for wait in (0.0, *waits):
            await asyncio.sleep(wait / self._speed)
            attempt = await self._attempt(call, body)
            job.callbacks.append(attempt)
            if not call.forged:
                heard.set()
            if attempt.http_status is not None and 200 <= attempt.http_status < 300:
                return

    async def _attempt(self, call: Callback, body: bytes) -> Attempt:
        at, status, error = time.time(), None, None
        try:
            # A Request made by hand: the client would add headers of its own, and the vendors send this one only.
            request = httpx.Request(
                "POST",
                call.url,
                headers={"Content-Type": "application/json"},
                content=body,
                extensions={"timeout": httpx.Timeout(TIMEOUT).as_dict()},
            )
            async with asyncio.timeout(TIMEOUT):
                status = (await self._client.send(request)).status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as problem:
            error = type(problem).__name__
        return Attempt(at=at, kind=call.kind, http_status=status, error=error)
