"""lipsync.studio: one flat job object, the same in the callback and in the status answer.

It documents no retry of a callback: one that is lost is lost for good, and only the poller finds out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from service.model import Observation, Source, Status
from service.vendors.base import (
    CANCELLED_WORDS,
    Limit,
    Refusal,
    Request,
    Rhythm,
    no_list,
    no_list_request,
    no_token,
    no_token_request,
)
from service.vendors.reading import (
    amount,
    complaint,
    decode,
    failure,
    known,
    outputs,
    reading,
    refused,
    settled,
    several,
    task_in,
    text,
    word,
)

SLUG: Final = "lipsync_studio"
NAME: Final = "Lipsync Studio"
DOCS: Final = "https://lipsync.studio/api-platform"
BASE_URL: Final = "https://lipsync.studio"
CREDENTIALS: Final = (("LIPSYNC_STUDIO_API_KEY",),)
RHYTHM: Final = Rhythm(grace=30, every=5)  # a job takes 30 to 120 s; asked for every 5 to 10 s
READS: Final = Limit(requests=10, seconds=1)  # the page has no limit: ours
LIST_PAGE: Final = 0

#: The job's `status`, in the callback and in the status answer.
STATUSES: Final = {
    "processing": Status.PROCESSING,
    "completed": Status.SUCCEEDED,
    "failed": Status.FAILED,
    **CANCELLED_WORDS,
}

token_request, read_token = no_token_request, no_token
list_request, read_list = no_list_request, no_list


def headers(credentials: Mapping[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials['LIPSYNC_STUDIO_API_KEY']}"}


def status_request(vendor_job_id: str) -> Request:
    return Request(path=f"/api/v1/jobs/{quote(vendor_job_id, safe='')}")


def read_callback(body: bytes) -> Observation:
    return reading(Source.CALLBACK, decode(body), _job)


def read_status(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return refused(http_status, answer) or reading(Source.POLL, answer, _job)


def _job(source: Source, body: dict[str, object]) -> Observation:
    job = task_in(body)
    videos = outputs(*several(job.get("output")))
    wrong = complaint(job.get("error"))  # "" where nothing went wrong
    seen = Observation(
        source=source,
        status=word(job.get("status"), STATUSES),
        # The status path calls the same id `requestId`.
        vendor_job_id=text(job.get("id")) or text(job.get("requestId")),
        # No `model`: it is `lipsync` while processing and `lipsync-image` afterwards, whatever was submitted.
        outputs=videos,
        result=known(execution_time_ms=amount(job.get("executionTime"))),
        error=failure(None, wrong),
    )
    return settled(seen, job.get("status"), made=videos, trouble=wrong)
