"""APIModels (Kling lip-sync): two steps, of which the first finds faces and makes no media.

Submission and status share one path. The same bodies come from a whole family of resellers, whose words are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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
    answered,
    decode,
    failure,
    known,
    mapping,
    moment,
    nested,
    number,
    outputs,
    reading,
    refused,
    settled,
    several,
    task_in,
    text,
    word,
)

SLUG: Final = "apimodels"
NAME: Final = "APIModels"
DOCS: Final = "https://apimodels.app/zh/docs/kling-lip-sync"
BASE_URL: Final = "https://apimodels.app"
CREDENTIALS: Final = (("APIMODELS_API_KEY",),)
RHYTHM: Final = Rhythm(grace=30, every=5)
READS: Final = Limit(requests=10, seconds=1)  # the page has no limit: ours
LIST_PAGE: Final = 0

IDENTIFY_FACE: Final = "kling-identify-face"
LIP_SYNC: Final = "kling-advanced-lip-sync"

#: `state`: first the page's words, then the family's.
STATES: Final = {
    "pending": Status.QUEUED,
    "processing": Status.PROCESSING,
    "completed": Status.SUCCEEDED,
    "failed": Status.FAILED,
    "waiting": Status.QUEUED,
    "queuing": Status.QUEUED,
    "generating": Status.PROCESSING,
    "success": Status.SUCCEEDED,
    "fail": Status.FAILED,
    **CANCELLED_WORDS,
}

token_request, read_token = no_token_request, no_token
list_request, read_list = no_list_request, no_list


def headers(credentials: Mapping[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials['APIMODELS_API_KEY']}"}


def status_request(vendor_job_id: str) -> Request:
    return Request(path="/api/v1/audio/generations", query={"task_id": vendor_job_id})


def read_callback(body: bytes) -> Observation:
    return reading(Source.CALLBACK, decode(body), _job)


def read_status(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    # The family answers errors with HTTP 200 and the status that is meant as `code`.
    meant = int(number(_wrong(mapping(answer)).get("code")) or http_status)
    return answered(http_status, refused(meant, answer), reading(Source.POLL, answer, _job))


def _wrong(body: dict[str, object]) -> dict[str, object]:
    """The envelope where it reports an error, else nothing."""
    return body if (number(body.get("code")) or 0) >= 400 else {}


def _job(source: Source, body: dict[str, object]) -> Observation:
    task, wrong = task_in(body), _wrong(body)
    # JSON inside a string, null or "" on failure; of the family also a plain object. `param` is the same, and is never
    # opened: it echoes the request, which may hold megabytes of base64.
    result = nested(task.get("resultJson"))
    # The callback says `kling-video/kling-advanced-lip-sync`, the status answer says it without the prefix.
    model = (text(task.get("model")) or "").removeprefix("kling-video/") or None
    faces = _faces(task.get("faceData"), result.get("faceData"), result, task)
    videos = outputs(*several(task.get("resultUrls")), *several(result.get("resultUrls")))
    made: dict[str | None, object] = {IDENTIFY_FACE: faces, LIP_SYNC: videos}
    seen = Observation(
        source=source,
        status=word(task.get("state"), STATES),
        vendor_job_id=text(task.get("taskId")),
        model=model,
        outputs=None if model == IDENTIFY_FACE else videos,
        result=known(
            **faces,
            duration_seconds=amount(result.get("videoDuration")) or amount(task.get("videoDuration")),
            execution_time_ms=amount(task.get("costTime")),
        ),
        error=failure(task.get("failCode") or wrong.get("code"), text(task.get("failMsg")) or wrong.get("msg")),
        submitted_at=moment(task.get("createTime")),
        completed_at=moment(task.get("completeTime")),
    )
    return settled(seen, task.get("state"), made=made.get(model, faces or videos), trouble=text(wrong.get("msg")))


def _faces(*places: object) -> dict[str, object]:
    """What identify-face found, from the first of `places` that holds it. An empty list of faces is a finding too."""
    for place in map(nested, places):
        if isinstance(place.get("face_list"), list):
            return {"session_id": text(place.get("session_id")), "face_list": place["face_list"]}
    return {}
