"""What the dashboard's pages take with many jobs in the store: medians of the time in the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import httpx

from service.deployment import opened
from service.model import JobError, Observation, Source, Status, new_id
from service.settings import Settings
from service.vendors import VENDORS
from tests.support.servers import valkey_server
from tests.support.web import API_KEY, CREDENTIALS, web_process

from .measure import OURS, Row

PATHS: Final = (
    *("/", "/?hours=168", "/jobs", "/jobs?status=failed", "/jobs?vendor=kitta&archive=none", "/quarantine"),
    *("/endpoints", "/vendors"),
)
_BATCH: Final = 500


def seed(settings: Settings, jobs: int) -> str:
    """Put so many jobs there, of every vendor and most statuses, each with a timeline. Returns the latest id."""
    return asyncio.run(_seed(settings, jobs))


async def _seed(settings: Settings, jobs: int) -> str:
    slugs, job_id = list(VENDORS), ""
    ends = (Status.SUCCEEDED, Status.FAILED, Status.PROCESSING, Status.SUCCEEDED, Status.CANCELLED)
    error = JobError(code="bad_audio", message="the audio cannot be read")
    async with opened(settings) as deployment:
        record, now = deployment.tracker.record, await deployment.store.now_ms()
        for start in range(0, jobs, _BATCH):
            facts = []
            for number in range(start, min(start + _BATCH, jobs)):
                job_id, vendor, end = (
                    new_id("job", now - jobs + number),
                    slugs[number % len(slugs)],
                    ends[number % len(ends)],
                )
                first = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id=job_id)
                last = Observation(source=Source.CALLBACK, status=end, error=error if end is Status.FAILED else None)
                facts.append(record(first, vendor=vendor, job_id=job_id, create=True))
                facts.append(record(last, vendor=vendor, job_id=job_id, raw=b'{"state": "as the vendor sent it"}'))
            await asyncio.gather(*facts)
    return job_id


def measure(jobs: int, folder: Path, rounds: int = 30) -> dict[str, float]:
    """Page → milliseconds, the median of so many rounds, with so many jobs in the store."""
    with (
        valkey_server(folder, config={"appendonly": "no"}) as valkey,
        web_process(folder, {"REDIS_URL": valkey.url, **CREDENTIALS}) as web,
        httpx.Client(base_url=web.url, headers={"Origin": web.url}, trust_env=False, timeout=30) as visitor,
    ):
        paths = (*PATHS, f"/jobs/{seed(web.settings, jobs)}")
        visitor.post("/sign-in", data={"key": API_KEY})
        return {path.partition("_")[0]: _median(visitor, path, rounds) for path in paths}


def rows(folder: Path, few: int, many: int) -> Iterator[Row]:
    """Each page with many jobs: beside the same with few, and beside what a visitor does not wait for."""
    found = {}
    for jobs in (few, many):
        (folder / str(jobs)).mkdir(parents=True)
        found[jobs] = measure(jobs, folder / str(jobs))
    for path, taken in found[many].items():
        row = Row(f"page {path} with {many:,} jobs", "ms", {f"{few:,} jobs": 1.5, "50 ms": 1.0})
        for subject, value in ((OURS, taken), (f"{few:,} jobs", found[few][path]), ("50 ms", 50.0)):
            row.add(subject, value)
        yield row


def _median(visitor: httpx.Client, path: str, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):  # the first reads the templates
        began = perf_counter()
        visitor.get(path).raise_for_status()
        taken.append((perf_counter() - began) * 1000)
    return median(taken[1:])
