"""lipsync.studio: one flat job object, the same in the callback and in the status answer.

It documents no retry of a callback: one that is lost is lost for good, and only the poller finds out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import quote

from service.model import Cost, Limit, Observation, Source, Status
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
    ImageUrl,
    Input,
    LeftAudioUrl,
    LeftSeconds,
    MaskImageUrl,
    Model,
    NoInput,
    Prompt,
    Resolution,
    RightAudioUrl,
    RightSeconds,
    Seed,
    VideoSeconds,
    VideoUrl,
    given,
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
    submitted,
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
LIMITS: Final = {"read": Limit(requests=10, seconds=1)}  # the page has no limit: ours
LIST_PAGE: Final = 0
UPLOADS: Final = NO_UPLOADS

#: Credits a second, by resolution; the first is the vendor's default.
CREDITS: Final = {"480p": 2, "720p": 4}
LEAST_SECONDS: Final = 5  # charged for, however short the job

#: The job's `status`, in the callback and in the status answer.
STATUSES: Final = {
    "processing": Status.PROCESSING,
    "completed": Status.SUCCEEDED,
    "failed": Status.FAILED,
    **CANCELLED_WORDS,
}


class Options(Input, frozen=True, kw_only=True):
    """What the page shows with all calls; more of them with lipsync-video alone."""

    resolution: Resolution | None = None
    seed: Seed | None = None


class VideoInput(Options, frozen=True, kw_only=True):
    video_url: VideoUrl
    audio_url: AudioUrl
    prompt: Prompt | None = None
    mask_image_url: MaskImageUrl | None = None
    video_duration_seconds: VideoSeconds | None = None
    duration_seconds: AudioSeconds | None = None


class ImageInput(Options, frozen=True, kw_only=True):
    image_url: ImageUrl
    audio_url: AudioUrl
    duration_seconds: AudioSeconds | None = None


class MultiInput(Options, frozen=True, kw_only=True):
    image_url: ImageUrl
    left_audio_url: LeftAudioUrl
    right_audio_url: RightAudioUrl
    left_duration_seconds: LeftSeconds | None = None
    right_duration_seconds: RightSeconds | None = None


class Speakers(Input, frozen=True, kw_only=True):
    """The page charges by `order` and has no default for it, so it is always sent.

    It names `meanwhile` alone; the others are the words of services with the same fields.
    """

    order: Literal["meanwhile", "left_right", "right_left"] = "meanwhile"


def _price(resolution: str | None, seconds: float | None) -> Cost | None:
    if seconds is None:
        return None
    return Cost(estimated=CREDITS[resolution or "480p"] * max(seconds, LEAST_SECONDS), unit="credits")


def _video_cost(input: VideoInput, _: NoInput) -> Cost | None:
    # A longer video is cut and charged as the voice is; a longer voice is charged as the video is. So it is the shorter
    # of the two, and at most the one that is told.
    told = (seconds for seconds in (input.duration_seconds, input.video_duration_seconds) if seconds is not None)
    return _price(input.resolution, min(told, default=None))


def _image_cost(input: ImageInput, _: NoInput) -> Cost | None:
    return _price(input.resolution, input.duration_seconds)


def _multi_cost(input: MultiInput, own: Speakers) -> Cost | None:
    left, right = input.left_duration_seconds, input.right_duration_seconds
    if left is None or right is None:
        return None
    return _price(input.resolution, max(left, right) if own.order == "meanwhile" else left + right)


#: In words, for all three.
PRICE: Final = "2 credits a second at 480p, 4 at 720p, at least 5 seconds"

MODELS: Final = (
    Model(
        name="lipsync-video",
        input=VideoInput,
        vendor_input=NoInput,
        price=f"{PRICE}: of video and voice the shorter",
        limits="MP4, MOV or the like; MP3, WAV or the like; at public addresses",
        unit="credits",
        estimate=_video_cost,
    ),
    Model(
        name="lipsync-image",
        input=ImageInput,
        vendor_input=NoInput,
        price=f"{PRICE}: the voice",
        limits="files at public addresses",
        unit="credits",
        estimate=_image_cost,
    ),
    Model(
        name="lipsync-image-multi",
        input=MultiInput,
        vendor_input=Speakers,
        price=f"{PRICE}: the longer voice where order is meanwhile, else both",
        limits="files at public addresses; two speakers",
        unit="credits",
        estimate=_multi_cost,
    ),
)

#: Fields of `formState`. It has no durations: those are for the estimate.
FORM: Final = {
    "video_url": "video",
    "image_url": "image",
    "audio_url": "audio",
    "left_audio_url": "left_audio",
    "right_audio_url": "right_audio",
    "resolution": "resolution",
    "mask_image_url": "mask_image",
    "prompt": "prompt",
    "seed": "seed",
}

token_request, read_token = no_token_request, no_token
list_request, read_list = no_list_request, no_list
upload_request, read_upload, file_request, read_file = no_uploads


resembles = tells_nothing


def headers(credentials: Mapping[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials['LIPSYNC_STUDIO_API_KEY']}"}


def submit_request(model: str, input: Input, vendor_input: Input, callback_url: str | None) -> Request:
    body: dict[str, object] = {"formState": given(input, FORM) | given(vendor_input, {"order": "order"})}
    if callback_url:
        body["webhook"] = callback_url
    return Request(method="POST", path=f"/api/v1/{model}", json=body)


def read_submit(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return submitted(http_status, refused(http_status, answer), answer, _job)


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
    status = word(job.get("status"), STATUSES)
    seen = Observation(
        source=source,
        status=status,
        # The status path calls the same id `requestId`.
        vendor_job_id=text(job.get("id")) or text(job.get("requestId")),
        # No `model`: it is `lipsync` while processing and `lipsync-image` afterwards, whatever was submitted.
        outputs=videos,
        result=known(execution_time_ms=amount(job.get("executionTime"))),
        error=failure(status, None, wrong),
    )
    return settled(seen, job.get("status"), made=videos, trouble=wrong)
