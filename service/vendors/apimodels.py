"""APIModels (Kling lip-sync): two steps, of which the first finds faces and makes no media.

Submission and status share one path. The same bodies come from a whole family of resellers, whose words are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final

from service.model import Cost, Observation, Source, Status
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
from service.vendors.inputs import (
    AudioSeconds,
    AudioUrl,
    Id,
    Input,
    Model,
    NoInput,
    VideoSeconds,
    VideoUrl,
    given,
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
    submitted,
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
SUBMITS: Final = None
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

#: USD: a call of the first, and every 5 seconds of the second that have begun.
IDENTIFY_USD: Final = 0.0007
LIP_SYNC_USD: Final = 0.0063


class IdentifyInput(Input, frozen=True, kw_only=True):
    video_url: VideoUrl
    video_duration_seconds: VideoSeconds | None = None


class LipSyncInput(Input, frozen=True, kw_only=True):
    audio_url: AudioUrl
    duration_seconds: AudioSeconds | None = None


class Face(Input, frozen=True, kw_only=True):
    """What identify-face found: the `session_id` of its video, and one of its faces."""

    session_id: Id
    face_id: Id


def _identify_cost(_: IdentifyInput, __: NoInput) -> Cost | None:
    return Cost(estimated=IDENTIFY_USD, unit="USD")


def _lip_sync_cost(input: LipSyncInput, _: Face) -> Cost | None:
    seconds = input.duration_seconds
    return None if seconds is None else Cost(estimated=round(LIP_SYNC_USD * ceil(seconds / 5), 4), unit="USD")


MODELS: Final = (
    Model(
        name=LIP_SYNC,
        input=LipSyncInput,
        vendor_input=Face,
        price=f"{LIP_SYNC_USD} USD per 5 seconds",
        limits="a face that kling-identify-face has found, and a voice at a public address",
        unit="USD",
        estimate=_lip_sync_cost,
    ),
    Model(
        name=IDENTIFY_FACE,
        input=IdentifyInput,
        vendor_input=NoInput,
        price=f"{IDENTIFY_USD} USD a call",
        limits="a video at a public address; finds faces, makes no media",
        unit="USD",
        estimate=_identify_cost,
        makes_media=False,
    ),
)

#: Fields of both calls. The page names none for the audio; this is the one of Kling's own API.
GENERATION: Final = {name: name for name in ("video_url", "audio_url", "session_id", "face_id")}

token_request, read_token = no_token_request, no_token
list_request, read_list = no_list_request, no_list


def headers(credentials: Mapping[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials['APIMODELS_API_KEY']}"}


def submit_request(model: str, input: Input, vendor_input: Input, callback_url: str | None) -> Request:
    body: dict[str, object] = {"model": model, **given(input, GENERATION), **given(vendor_input, GENERATION)}
    if callback_url:
        body["callback_url"] = callback_url
    return Request(method="POST", path="/api/v1/audio/generations", json=body)


def read_submit(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return submitted(http_status, _refused(http_status, answer), answer, _job)


def status_request(vendor_job_id: str) -> Request:
    return Request(path="/api/v1/audio/generations", query={"task_id": vendor_job_id})


def read_callback(body: bytes) -> Observation:
    return reading(Source.CALLBACK, decode(body), _job)


def read_status(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return answered(http_status, _refused(http_status, answer), reading(Source.POLL, answer, _job))


def _refused(http_status: int, answer: object) -> Refusal | None:
    # The family answers errors with HTTP 200 and the status that is meant as `code`.
    return refused(int(number(_wrong(mapping(answer)).get("code")) or http_status), answer)


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
