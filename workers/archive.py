"""Brings a job's outputs home: the vendor's link → object storage, in a stream, hashed as it passes.

`store_outputs` is the RQ task. It is safe to run twice and at the same time: a lease lets one run in, the object's
key is made from the job, and the commit counts only while the job still says what the run read. Its failure is
`archive: failed` after its retries and never touches `status`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Final, Literal
from urllib.parse import urljoin
from uuid import uuid4

import httpx
import msgspec
from obstore.exceptions import BaseError
from redis import RedisError

from service import logs
from service.deployment import Deployment, configured, opened
from service.jobs import tasks
from service.model import Archive, Job, Observation, Output, Problem, Source, Stored
from service.storage import content_type, object_key
from workers import outbound
from workers.stopping import stopped
from workers.vendor_client import VendorClient

#: Shorter than the sweep's patience: whoever the sweep sends in place of a killed run must find the lease free.
LEASE_MS: Final = 45_000
#: A download may take this long, and must on the whole be at least this fast once it has had time to begin.
MAX_SECONDS: Final = 3600.0
MIN_BYTES_PER_SECOND: Final = 1024
MIN_RATE_AFTER: Final = 60.0
MAX_REDIRECTS: Final = 5
#: From the request to the end of the answer's headers; a read timeout alone never ends a drip.
MAX_HEAD_SECONDS: Final = 60.0
#: How a page or a message begins, whatever its server calls it; no media file does.
_PAGES: Final = (b"<!doctype", b"<html", b"<?xml", b'{"')
#: An attempt that is still not over by then hangs where no limit of its own reaches.
HARD_LIMIT: Final = MAX_SECONDS + 600

_log = logs.get("archive")


class NotStored(Exception):
    """An attempt that did not bring the output home; another may."""


class DeadLink(NotStored):
    """The vendor's link is gone: another link is needed, not another attempt."""


class Unwanted(NotStored):
    """What the link leads to is not for us: more attempts would only fetch it again."""


class Interrupted(Exception):
    """This process is about to stop; another takes the task over."""


class Archivist:
    """What storing takes, and whether there is still time for it."""

    def __init__(self, deployment: Deployment, http: httpx.AsyncClient) -> None:
        self._store = deployment.store
        self._tracker = deployment.tracker
        self._storage = deployment.storage
        self._settings = deployment.settings
        self._http = http
        self._vendors = VendorClient(deployment, http)
        #: Set: uploads abort where they are. (obstore leaves parts behind when it is merely cancelled.)
        self.interrupted = asyncio.Event()

    async def store(self, job_id: str) -> str:
        """One attempt. Returns what came of it in a word.

        Raises:
            Interrupted: The process stops; the task has to be enqueued again.
        """
        lease, owner = f"archive-{job_id}", uuid4().hex
        if not await self._store.lease(lease, owner, LEASE_MS):
            return "held by another run"
        try:
            outcome = "changed"
            while outcome == "changed":  # the links were replaced meanwhile: what was stored may be another file
                job = await self._store.job(job_id)
                if job is None or job.archive is not Archive.WAITING:
                    return "nothing to do"
                outcome = await self._attempt(job, lease, owner)
            return outcome
        finally:
            await self._store.give_up(lease, owner)

    async def _attempt(self, job: Job, lease: str, owner: str) -> str:
        began = time.monotonic()
        try:
            async with self._alive(job.id, lease, owner), asyncio.timeout(HARD_LIMIT):
                outputs = await self._fetch(job)
        except (Interrupted, RedisError):
            raise
        except Exception as error:  # whatever it was, it was an attempt, and is counted as one
            if not isinstance(error, NotStored | BaseError | OSError):
                _log.exception("an attempt failed in a way of its own", vendor=job.vendor, job_id=job.id)
            return await self._not_stored(job, error)
        recorded = await self._tracker.record(
            Observation(source=Source.ARCHIVE, archive=Archive.STORED, outputs=outputs),
            vendor=job.vendor,
            job_id=job.id,
            expect={"outputs": [msgspec.structs.replace(output, stored=None) for output in outputs]},
        )
        size = sum(output.stored.bytes for output in outputs if output.stored)
        seconds = round(time.monotonic() - began, 2)
        _log.info("archive", vendor=job.vendor, job_id=job.id, outcome=recorded.outcome, bytes=size, seconds=seconds)
        return recorded.outcome

    @asynccontextmanager
    async def _alive(self, job_id: str, lease: str, owner: str) -> AsyncIterator[None]:
        """Say that the run is alive while the block lasts, and nothing after it: the outcome sets the next due time."""
        over = asyncio.Event()

        async def beat() -> None:
            while True:
                with suppress(RedisError, OSError):  # the next beat may reach it
                    await self._store.alive(job_id, tasks.PATIENCE)
                    await self._store.renew(lease, owner, LEASE_MS)
                if await stopped(over, LEASE_MS / 3000):
                    return

        heart = asyncio.create_task(beat())
        try:
            yield
        finally:
            over.set()  # not cancelled: a beat on its way arrives before the block ends, not after
            await heart

    async def _not_stored(self, job: Job, error: Exception) -> str:
        """Note the attempt; try again later, or give up after the last."""
        made = await self._store.attempts(job.id)
        delays = tasks.SHORT_RETRIES if isinstance(error, DeadLink | Unwanted) else tasks.ARCHIVE_RETRIES
        words = f"attempt {made + 1}: {_words(error)}"
        last = made >= len(delays)
        seen = (
            Observation(source=Source.ARCHIVE, archive=Archive.FAILED, detail=words)
            if last
            else Observation(
                source=Source.ARCHIVE, problem=Problem.NOT_STORED, detail=f"{words}; next in {delays[made]} s"
            )
        )
        await self._tracker.record(seen, vendor=job.vendor, job_id=job.id, retry_in=0 if last else delays[made])
        _log.warning(
            "archive", vendor=job.vendor, job_id=job.id, outcome="failed" if last else "not stored", detail=words
        )
        return "failed" if last else "to be tried again"

    async def _fetch(self, job: Job) -> tuple[Output, ...]:
        """The outputs at home, by a fresh link where the one that we have is dead."""
        try:
            return await self._bring_home(job)
        except DeadLink as dead:
            if not job.vendor_job_id or not self._settings.accounts[job.vendor].complete:
                raise DeadLink(f"{dead}, and the vendor cannot be asked for another") from None
            return await self._bring_home(await self._with_fresh_links(job, dead))

    async def _with_fresh_links(self, job: Job, dead: DeadLink) -> Job:
        """The job after its vendor was asked again.

        Raises:
            NotStored: The vendor did not answer, so nobody has said that there is no better link.
        """
        answer = await self._vendors.status(job.vendor, job.vendor_job_id or "")
        if not isinstance(answer.reading, Observation):
            raise NotStored(f"{dead}, and the vendor has no other for now: {answer.reading.message}"[:300])
        if answer.reading.problem is None:
            await self._tracker.record(answer.reading, vendor=job.vendor, job_id=job.id, raw=answer.raw)
        return await self._store.job(job.id) or job

    async def _bring_home(self, job: Job) -> tuple[Output, ...]:
        """Every output with our copy of it."""
        found = []
        for number, output in enumerate(job.outputs):
            key = object_key(job.vendor, job.id, number, output)
            download = _Download(self, self._settings.max_output_bytes)
            async with self._opened(output.url) as response:
                await self._storage.put(key, download.chunks(response))
            url = f"{self._settings.public_url}/v1/jobs/{job.id}/outputs/{number}"
            stored = Stored(
                url=url,
                key=key,
                bytes=download.size,
                sha256=download.digest.hexdigest(),
                content_type=content_type(key),
            )
            found.append(msgspec.structs.replace(output, stored=stored))
        return tuple(found)

    @asynccontextmanager
    async def _opened(self, url: str) -> AsyncIterator[httpx.Response]:
        """The answer to a GET, redirects followed one by one so that each target is judged anew."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with asyncio.timeout(MAX_HEAD_SECONDS):
                    response = await self._http.send(self._http.build_request("GET", url), stream=True)
            except outbound.TransportError as error:
                words = "the link's address is not allowed" if outbound.was_forbidden(error) else _words(error)
                raise NotStored(words) from error
            try:
                if response.has_redirect_location:
                    url = _target(url, response.headers["location"])
                    continue
                _check(response)
                yield response
                return
            finally:
                await response.aclose()
        raise NotStored(f"more than {MAX_REDIRECTS} redirects")


class _Download:
    """One stream on its way: counted, hashed, and held to its limits."""

    def __init__(self, archivist: Archivist, limit: int) -> None:
        self._archivist = archivist
        self._limit = limit
        self.size = 0
        self.digest = hashlib.sha256()

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body's pieces. Whatever is wrong is raised here, inside the upload, which aborts it."""
        began = time.monotonic()
        source = response.aiter_raw()  # as it arrives: pieces of a fixed size would hide how slowly that is
        interrupted = asyncio.create_task(self._archivist.interrupted.wait())
        try:
            announced = response.headers.get("content-length", "")
            if announced.isdecimal() and int(announced[:20]) > self._limit:
                raise Unwanted(f"the file is larger than {self._limit} bytes: it has {announced[:20]}")
            while chunk := await self._next(source, interrupted):
                if not self.size and chunk[:100].lstrip().lower().startswith(_PAGES):
                    raise NotStored("the link answers with a page or a message, not with media")
                self.size += len(chunk)
                self._check_limits(time.monotonic() - began)
                self.digest.update(chunk)
                yield chunk
        except outbound.TransportError as error:
            raise NotStored(f"the download broke off after {self.size} bytes: {_words(error)}") from error
        finally:
            interrupted.cancel()
        if self.size == 0:
            raise NotStored("the file is empty")

    async def _next(self, source: AsyncIterator[bytes], interrupted: asyncio.Task[Literal[True]]) -> bytes:
        """The next piece, empty at the end. A server that stalls does not keep the process from stopping."""
        piece = asyncio.ensure_future(anext(source, b""))
        await asyncio.wait((piece, interrupted), return_when=asyncio.FIRST_COMPLETED)
        if interrupted.done():
            piece.cancel()
            await asyncio.wait((piece,))
            raise Interrupted
        return await piece

    def _check_limits(self, seconds: float) -> None:
        if self.size > self._limit:
            raise Unwanted(f"the file is larger than {self._limit} bytes")
        if seconds > MAX_SECONDS or (seconds > MIN_RATE_AFTER and self.size < MIN_BYTES_PER_SECOND * seconds):
            raise NotStored(f"too slow: {self.size} bytes in {seconds:.0f} s")


def _target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise NotStored(f"a redirect to nowhere: {error}") from error


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status in (401, 403, 404, 410):
        raise DeadLink(f"the link answers {status}")
    if status != 200:
        raise NotStored(f"the link answers {status}")
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/html" or media_type.endswith(("json", "xml")):
        raise NotStored(f"the link answers with {media_type}, not with media")
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise NotStored("the file comes compressed, which was not asked for")


def _words(error: BaseException) -> str:
    if isinstance(error, NotStored):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")[:300]


#: The archivist of a worker that runs many tasks at once. Under any other RQ worker each task brings its own.
shared: ContextVar[Archivist] = ContextVar("archivist")


async def store_outputs(job_id: str) -> str:
    """The RQ task: one attempt to store a job's outputs."""
    if archivist := shared.get(None):
        return await archivist.store(job_id)
    settings = configured()
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        return await Archivist(deployment, http).store(job_id)
