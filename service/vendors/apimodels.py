"""APIModels (Kling lip-sync): two steps, of which the first finds faces and makes no media.

Submission and status share one path. The same bodies come from a whole family of resellers, whose words are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Final

from msgspec import Meta

from service.model import Cost, JobError, Limit, Observation, Source, Status
from service.vendors.base import (
    CANCELLED_WORDS,
    NO_UPLOADS,
    Refusal,
    Request,
    Rhythm,
    no_list,
    no_list_request,
    no_token,
    no_token_request,
    no_uploads,
    tells_nothing,
)
from service.vendors.inputs import (
    AudioSeconds,
    AudioUrl,
    Choice,
    First,
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
LIMITS: Final = {"read": Limit(requests=10, seconds=1)}  # the page has no limit: ours
LIST_PAGE: Final = 0
UPLOADS: Final = NO_UPLOADS

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
    """With a video, identify-face is asked first; without, its answer is in `vendor_input`."""

    video_url: VideoUrl | None = None
    audio_url: AudioUrl
    video_duration_seconds: VideoSeconds | None = None
    duration_seconds: AudioSeconds | None = None


class Face(Input, frozen=True, kw_only=True):
    """What identify-face found, a `session_id` and one of its faces; or which face of `video_url` is meant."""

    session_id: Id | None = None
    face_id: Id | None = None
    face: Annotated[
        Annotated[int, Meta(ge=0, le=999)] | Id | None,
        Meta(description="`first`, `largest`, a number from 0, or a face's id; first where it is not given"),
    ] = None


def _identify_cost(_: IdentifyInput, __: NoInput) -> Cost | None:
    return Cost(estimated=IDENTIFY_USD, unit="USD")


def _lip_sync_cost(input: LipSyncInput, _: Face) -> Cost | None:
    if input.duration_seconds is None:
        return None
    first = 0 if input.video_url is None else IDENTIFY_USD
    return Cost(estimated=round(LIP_SYNC_USD * ceil(input.duration_seconds / 5) + first, 4), unit="USD")


def choose_face(own: Face, found: Mapping[str, object]) -> Choice | JobError:
    """The face that is meant, of those in the result of identify-face."""
    entries = map(mapping, several(found.get("face_list")))
    sizes = {face_id: _size(face) for face in entries if (face_id := text(face.get("face_id")))}
    session_id, ids = text(found.get("session_id")), list(sizes)
    if session_id is None or not ids:
        return JobError(code="no_face", message="no face was found in the video")
    match own.face:
        case None | "first":
            at, why = 0, "the first"
        case "largest":
            at = ids.index(max(ids, key=sizes.__getitem__))
            why = "the largest" if any(sizes.values()) else "the first: sizes are not told"
        case int(at):
            why = f"number {at}"
        case face_id if face_id in ids:
            at, why = ids.index(face_id), "as asked for"
        case face_id:  # a number may come as a string
            at, why = int(face_id) if face_id.isdecimal() and len(face_id) < 4 else len(ids), f"number {face_id}"
    count = f"{len(ids)} face{'s' * (len(ids) > 1)}"
    if at >= len(ids):
        return JobError(code="no_face", message=f"there is no face {own.face}: the video has {count}, numbered from 0")
    return Choice(vendor_input={"session_id": session_id, "face_id": ids[at]}, words=f"{count}: {ids[at]} ({why})")


def _size(face: dict[str, object]) -> float:
    """The area of a face, 0 where its entry does not tell it. The page shows none: these are the usual names."""
    for box in (face, *map(face.get, ("bbox", "box", "face_bbox"))):
        sides = box[2:] if isinstance(box, list) and len(box) == 4 else [*map(mapping(box).get, ("width", "height"))]
        width, height = map(amount, sides)
        if size := amount(mapping(box).get("area")) or (width and height and width * height):
            return size
    return 0


MODELS: Final = (
    Model(
        name=LIP_SYNC,
        input=LipSyncInput,
        vendor_input=Face,
        one_of=(("input.video_url", "vendor_input.session_id"),),
        needs={
            "vendor_input.session_id": "vendor_input.face_id",
            "vendor_input.face_id": "vendor_input.session_id",
            "vendor_input.face": "input.video_url",
            "input.video_duration_seconds": "input.video_url",
        },
        first=First(model=IDENTIFY_FACE, field="video_url", choose=choose_face),
        price=f"{LIP_SYNC_USD} USD per 5 seconds, and {IDENTIFY_USD} where faces have to be found",
        limits="files at public addresses; or a face that kling-identify-face has found",
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
upload_request, read_upload, file_request, read_file = no_uploads


resembles = tells_nothing


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
    status = word(task.get("state"), STATES)
    if source is Source.POLL and model == IDENTIFY_FACE and status is Status.SUCCEEDED and not faces:
        faces = {"face_list": []}  # asked, and none is told: a callback without them may only be cut short
    words = text(task.get("failMsg")) or text(wrong.get("msg"))
    code = task.get("failCode") or ("no_face" if "no face" in (words or "").lower() else wrong.get("code"))
    videos = outputs(*several(task.get("resultUrls")), *several(result.get("resultUrls")))
    made: dict[str | None, object] = {IDENTIFY_FACE: faces, LIP_SYNC: videos}
    seen = Observation(
        source=source,
        status=status,
        vendor_job_id=text(task.get("taskId")),
        model=model,
        outputs=None if model == IDENTIFY_FACE else videos,
        result=known(
            **faces,
            duration_seconds=amount(result.get("videoDuration")) or amount(task.get("videoDuration")),
            execution_time_ms=amount(task.get("costTime")),
        ),
        error=failure(status, code, words),
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
