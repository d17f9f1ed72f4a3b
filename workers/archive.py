"""Brings a job's outputs home: the vendor's link → object storage, in a stream, hashed as it passes.

`store_outputs` is the RQ task. It is safe to run twice and at the same time: a lease lets one run in, the object's
key is made from the job, and the commit counts only while the job still says what the run read. Its failure is
`archive: failed` after its retries and never touches `status`.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import Final

import httpx
import msgspec
from obstore.exceptions import BaseError
from redis import RedisError

from service import logs, metrics
from service.deployment import Deployment, configured, opened
from service.jobs import tasks
from service.model import Archive, Job, Observation, Output, Problem, Source, Stored
from service.storage import object_key
from workers import download, outbound
from workers.download import DeadLink, Download, Interrupted, NotFetched, Unwanted
from workers.held import Lease, held
from workers.vendor_client import VendorClient

#: An attempt that is still not over by then hangs where no limit of its own reaches.
HARD_LIMIT: Final = download.MAX_SECONDS + 600

_log = logs.get("archive")


class Archivist:
    """What storing takes, and whether there is still time for it.

    Once `interrupted` is set, uploads abort where they are. (obstore leaves parts behind when it is merely cancelled.)
    """

    def __init__(self, deployment: Deployment, http: httpx.AsyncClient, interrupted: asyncio.Event) -> None:
        self._store = deployment.store
        self._tracker = deployment.tracker
        self._storage = deployment.storage
        self._settings = deployment.settings
        self._http = http
        self._vendors = VendorClient(deployment, http)
        self._interrupted = interrupted

    async def store(self, job_id: str) -> str:
        """One attempt. Returns what came of it in a word.

        Raises:
            Interrupted: The process stops; the task has to be enqueued again.
        """
        async with held(self._store, tasks.ARCHIVE, job_id) as lease:
            if lease is None:
                return "held by another run"
            outcome = "changed"
            while outcome == "changed":  # the links were replaced meanwhile: what was stored may be another file
                job = await self._store.job(job_id)
                if job is None or job.archive is not Archive.WAITING:
                    return "nothing to do"
                outcome = await self._attempt(job, lease)
            return outcome

    async def _attempt(self, job: Job, lease: Lease) -> str:
        began = time.monotonic()
        try:
            async with lease.alive(), asyncio.timeout(HARD_LIMIT):
                outputs = await self._fetch(job)
        except (Interrupted, RedisError):
            raise
        except Exception as error:  # whatever it was, it was an attempt, and is counted as one
            if not isinstance(error, NotFetched | BaseError | OSError):
                metrics.errors("archive").inc()
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
        metrics.archives(job.vendor, "stored" if recorded.outcome == "apply" else "changed").inc()
        metrics.archive_bytes(job.vendor).inc(size)
        metrics.archive_seconds(job.vendor).observe(seconds)
        _log.info("archive", vendor=job.vendor, job_id=job.id, outcome=recorded.outcome, bytes=size, seconds=seconds)
        return recorded.outcome

    async def _not_stored(self, job: Job, error: Exception) -> str:
        """Note the attempt; try again later, or give up after the last."""
        made = await self._store.attempts(job.id)
        delays = tasks.SHORT_RETRIES if isinstance(error, DeadLink | Unwanted) else tasks.ARCHIVE_RETRIES
        words = f"attempt {made + 1}: {download.words(error)}"
        last = made >= len(delays)
        if last:
            seen = Observation(source=Source.ARCHIVE, archive=Archive.FAILED, detail=words)
            await self._tracker.record(seen, vendor=job.vendor, job_id=job.id)
        else:
            again_in = delays[made]
            detail = f"{words}; next in {again_in} s"
            seen = Observation(source=Source.ARCHIVE, problem=Problem.NOT_STORED, detail=detail)
            await self._tracker.record(seen, vendor=job.vendor, job_id=job.id, task=tasks.ARCHIVE, retry_in=again_in)
        metrics.archives(job.vendor, "failed" if last else "again").inc()
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
            NotFetched: The vendor did not answer, so nobody has said that there is no better link.
        """
        answer = await self._vendors.status(job.vendor, job.vendor_job_id or "")
        if not isinstance(answer.reading, Observation):
            raise NotFetched(f"{dead}, and the vendor has no other for now: {answer.reading.message}"[:300])
        if answer.reading.problem is None:
            await self._tracker.record(answer.reading, vendor=job.vendor, job_id=job.id, raw=answer.raw)
        return await self._store.job(job.id) or job

    async def _bring_home(self, job: Job) -> tuple[Output, ...]:
        """Every output with our copy of it."""
        found = []
        for number, output in enumerate(job.outputs):
            key = object_key(job.vendor, job.id, number, output)
            file = Download(self._settings.max_output_bytes, self._interrupted)
            async with download.opened(self._http, output.url) as response:
                content_type = await self._storage.put(key, file.chunks(response), file.check)
            url = f"{self._settings.public_url}/v1/jobs/{job.id}/outputs/{number}"
            stored = Stored(
                url=url,
                key=key,
                bytes=file.size,
                sha256=file.digest.hexdigest(),
                content_type=content_type,
            )
            found.append(msgspec.structs.replace(output, stored=stored))
        return tuple(found)


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
        return await Archivist(deployment, http, asyncio.Event()).store(job_id)
