"""Chanjing (蝉镜): an envelope `{code, msg, data}` around a video, whose status is a number.

Its page describes the submission and the callback; detail, list, token and files are from other pages of the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta

from service.model import Cost, Limit, Observation, Source, Status
from service.vendors.base import CANCELLED_WORDS, ListPage, Refusal, Request, Rhythm, Slot, Token, tells_nothing
from service.vendors.inputs import (
    AudioSeconds,
    AudioUrl,
    Id,
    Input,
    Model,
    SpokenText,
    VideoSeconds,
    VideoUrl,
    Voice,
    given,
)
from service.vendors.reading import (
    amount,
    answered,
    complaint,
    decode,
    failure,
    known,
    listed,
    mapping,
    media_url,
    moment,
    number,
    outputs,
    percent,
    reading,
    refusal,
    refused,
    settled,
    submitted,
    task_in,
    text,
    word,
)

SLUG: Final = "chanjing"
NAME: Final = "Chanjing"
DOCS: Final = "https://doc.chanjing.cc/api/lip-syncing/create_task.html"
BASE_URL: Final = "https://open-api.chanjing.cc"
CREDENTIALS: Final = (("CHANJING_ACCESS_TOKEN",), ("CHANJING_APP_ID", "CHANJING_SECRET_KEY"))
RHYTHM: Final = Rhythm(grace=30, every=10)
LIMITS: Final = {
    "read": Limit(requests=10, seconds=1),  # detail and list, each
    "submit": Limit(requests=10, seconds=60),
    "upload": Limit(requests=30, seconds=60),
}
LIST_PAGE: Final = 100
UPLOADS: Final = {"video_url": (".mp4", ".mov", ".webm"), "audio_url": (".mp3", ".m4a", ".wav")}

#: `status` of the video_lip_sync calls alone: another call of this vendor says 30 for success.
VIDEO_LIP_SYNC: Final = {
    "0": Status.QUEUED,
    "10": Status.PROCESSING,
    "20": Status.SUCCEEDED,
    "30": Status.FAILED,
    "success": Status.SUCCEEDED,
    "succeeded": Status.SUCCEEDED,
    "completed": Status.SUCCEEDED,
    "failed": Status.FAILED,
    **CANCELLED_WORDS,
}

#: The envelope's `code`; 0 is the only good one.
REFUSALS: Final[dict[float, str]] = {
    10400: "unauthorized",
    40000: "invalid_input",
    40001: "rate_limited",
    50000: "vendor_error",
}

#: A file's `status`: 0 until it can be used, and those with which it never can.
READY: Final = 1
LOST: Final[dict[float, str]] = {98: "is unsafe", 99: "was deleted", 100: "was purged"}


class VideoLipSyncInput(Input, frozen=True, kw_only=True):
    """A video, and either a text with a voice or a recorded voice."""

    video_url: VideoUrl | None = None
    text: SpokenText | None = None
    voice: Voice | None = None
    audio_url: AudioUrl | None = None
    video_duration_seconds: VideoSeconds | None = None
    duration_seconds: AudioSeconds | None = None


class VideoLipSyncOptions(Input, frozen=True, kw_only=True):
    """The vendor takes files, not URLs: a URL is uploaded first, and its file's id goes here."""

    video_file_id: Id | None = None
    audio_file_id: Id | None = None
    screen_width: Annotated[int, Meta(ge=1, le=10_000, description="pixels; 1080")] | None = None
    screen_height: Annotated[int, Meta(ge=1, le=10_000, description="pixels; 1920")] | None = None
    backway: Annotated[Literal[1, 2], Meta(description="at the video's end: 1 from the start, 2 backwards")] | None = (
        None
    )
    drive_mode: Annotated[Literal["", "random"], Meta(description="random: begin anywhere in the video")] | None = None
    volume: Annotated[int, Meta(ge=1, le=100)] | None = None
    speed: Annotated[float, Meta(ge=0.5, le=2, description="of the text's voice")] | None = None
    # The page sends the reader elsewhere for the range.
    pitch: Annotated[float, Meta(gt=0, description="of the text's voice")] | None = None


def _model(name: str, beans: int) -> Model[VideoLipSyncInput, VideoLipSyncOptions]:
    def cost(input: VideoLipSyncInput, _: VideoLipSyncOptions) -> Cost | None:
        seconds = input.duration_seconds
        return None if seconds is None else Cost(estimated=beans * seconds, unit="beans")

    return Model(
        name=name,
        input=VideoLipSyncInput,
        vendor_input=VideoLipSyncOptions,
        one_of=(
            ("input.video_url", "vendor_input.video_file_id"),
            ("input.text", "input.audio_url", "vendor_input.audio_file_id"),
        ),
        needs={
            "input.text": "input.voice",
            "input.voice": "input.text",
            "vendor_input.speed": "input.text",
            "vendor_input.pitch": "input.text",
        },
        uploads={"video_url": "video_file_id", "audio_url": "audio_file_id"},
        price=f"{beans} bean{'s' * (beans > 1)} a second",
        limits="video as MP4, MOV or WebM; voice as MP3, M4A or WAV; 10 jobs a minute",
        unit="beans",
        estimate=cost,
    )


#: The vendor's `model` is a number; these are the page's words for it.
GRADES: Final = {"basic": 0, "high-quality": 1}
MODELS: Final = (_model("basic", beans=1), _model("high-quality", beans=2))

#: Fields of the create call that are ours under `vendor_input`, and those of its `tts_config`.
CREATE: Final = {
    name: name
    for name in (
        "video_file_id",
        "audio_file_id",
        "screen_width",
        "screen_height",
        "backway",
        "drive_mode",
        "volume",
    )
}
SPEECH: Final = {"text": "text", "voice": "audio_man_id", "speed": "speed", "pitch": "pitch"}


resembles = tells_nothing


def headers(credentials: Mapping[str, str]) -> dict[str, str]:
    # With an underscore: a proxy that drops such headers makes every call a 10400.
    return {"access_token": credentials["CHANJING_ACCESS_TOKEN"]}


def token_request(credentials: Mapping[str, str]) -> Request | None:
    app_id, secret_key = credentials.get("CHANJING_APP_ID"), credentials.get("CHANJING_SECRET_KEY")
    if credentials.get("CHANJING_ACCESS_TOKEN") or not (app_id and secret_key):
        return None
    return Request(method="POST", path="/open/v1/access_token", json={"app_id": app_id, "secret_key": secret_key})


def read_token(body: bytes) -> Token | Refusal:
    answer = decode(body)
    data = mapping(mapping(answer).get("data"))
    # `expire_in` is not a duration but an absolute unix second, about a day ahead.
    value, expires_at = text(data.get("access_token")), moment(data.get("expire_in"))
    if no := _refused(200, answer):
        return no
    if value is None or expires_at is None:
        return Refusal(code="vendor_error", message="an answer without a token and its end")
    return Token(value=value, expires_at=expires_at.timestamp())


def upload_request(field: str, ending: str) -> Request:
    kind = field.removesuffix("_url")
    query = {"service": f"lip_sync_{kind}", "name": f"{kind}{ending}"}
    return Request(path="/open/v1/common/create_upload_url", query=query)


def read_upload(http_status: int, body: bytes) -> Slot | Refusal:
    answer = decode(body)
    data = mapping(mapping(answer).get("data"))
    url, file_id, mime_type = media_url(data.get("sign_url")), text(data.get("file_id")), text(data.get("mime_type"))
    if no := _refused(http_status, answer):
        return no
    if url is None or file_id is None:
        return Refusal(code="vendor_error", message="an answer without an address and a file's id")
    # The address is signed with the type: the bytes have to come under it.
    headers = {"Content-Type": mime_type} if mime_type and mime_type.isascii() and mime_type.isprintable() else {}
    return Slot(url=url, headers=headers, file_id=file_id)


def file_request(file_id: str) -> Request:
    return Request(path="/open/v1/common/file_detail", query={"id": file_id})


def read_file(http_status: int, body: bytes) -> bool | Refusal:
    answer = decode(body)
    data = mapping(mapping(answer).get("data"))
    status, words = number(data.get("status")) or 0, complaint(data)
    if no := _refused(http_status, answer):
        return no
    if status in LOST:
        return Refusal(code="invalid_input", message=f"the file {LOST[status]}{f': {words}' if words else ''}")
    return status == READY


def submit_request(model: str, input: Input, vendor_input: Input, callback_url: str | None) -> Request:
    """Of files alone: what was given as a URL is uploaded, and named in `vendor_input`."""
    speech = given(input, SPEECH) | given(vendor_input, SPEECH)
    body: dict[str, object] = {"model": GRADES[model], "audio_type": "tts" if speech else "audio"}
    if speech:
        body["tts_config"] = speech
    if callback_url:
        body["callback"] = callback_url
    return Request(method="POST", path="/open/v1/video_lip_sync/create", json=body | given(vendor_input, CREATE))


def read_submit(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return submitted(http_status, _refused(http_status, answer), answer, _created)


def status_request(vendor_job_id: str) -> Request:
    return Request(path="/open/v1/video_lip_sync/detail", query={"id": vendor_job_id})


def list_request(page: int) -> Request:
    return Request(method="POST", path="/open/v1/video_lip_sync/list", json={"page": page + 1, "page_size": LIST_PAGE})


def read_callback(body: bytes) -> Observation:
    return reading(Source.CALLBACK, decode(body), _job)


def read_status(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return answered(http_status, _refused(http_status, answer), reading(Source.POLL, answer, _job))


def read_list(http_status: int, body: bytes) -> ListPage | Refusal:
    answer = decode(body)
    data = mapping(mapping(answer).get("data"))
    info = mapping(data.get("page_info"))
    page, pages = number(info.get("page")), number(info.get("total_page"))
    more = page is not None and pages is not None and page < pages
    return _refused(http_status, answer) or listed(data.get("list"), _job, more=more)


def _wrong(body: dict[str, object]) -> dict[str, object]:
    """The envelope where it reports an error, else nothing."""
    return body if number(body.get("code")) else {}


def _refused(http_status: int, answer: object) -> Refusal | None:
    wrong = _wrong(mapping(answer))
    if not wrong:
        return refused(http_status, answer)
    # The envelope's code says more than the HTTP status over it; one that is not on the page leaves it to that.
    code = REFUSALS.get(number(wrong.get("code")) or 0, refusal(http_status, None).code)
    return Refusal(code=code, message=text(wrong.get("msg")) or f"code {text(wrong.get('code'))}")


def _created(source: Source, body: dict[str, object]) -> Observation:
    """The answer to the create call, whose `data` is the bare id."""
    data = body.get("data")
    return Observation(source=source, vendor_job_id=text(data) or text(mapping(data).get("id")))


def _job(source: Source, body: dict[str, object]) -> Observation:
    video = task_in(body)  # at times the callback is the bare `data`
    wrong = _wrong(body)
    videos = outputs(video.get("video_url"))
    status = word(video.get("status"), VIDEO_LIP_SYNC)
    seen = Observation(
        source=source,
        status=status,
        vendor_job_id=text(video.get("id")),
        progress=percent(video.get("progress")),
        outputs=videos,
        # `duration` is in ms. The preview is a still of the video, not an output of its own.
        result=known(
            duration_seconds=amount(video.get("duration"), per=1000), preview_url=media_url(video.get("preview_url"))
        ),
        error=failure(status, wrong.get("code"), text(video.get("msg")) or wrong.get("msg")),
        submitted_at=moment(video.get("create_time")),
    )
    return settled(seen, video.get("status"), made=videos, trouble=text(wrong.get("msg")))
