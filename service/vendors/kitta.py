"""KittaAI: a flat task object, and a list of sparse ones. It has no webhook, so this vendor is polled, always."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from service.model import Cost, Limit, Observation, Source, Status
from service.vendors.base import (
    CANCELLED_WORDS,
    NO_UPLOADS,
    ListPage,
    Refusal,
    Request,
    Rhythm,
    no_token,
    no_token_request,
    no_uploads,
)
from service.vendors.inputs import (
    AudioSeconds,
    AudioUrl,
    ImageUrl,
    Input,
    Model,
    NoInput,
    ReferenceImageUrl,
    VideoSeconds,
    VideoUrl,
    given,
)
from service.vendors.reading import (
    complaint,
    decode,
    failure,
    listed,
    mapping,
    moment,
    number,
    outputs,
    reading,
    refused,
    settled,
    submitted,
    task_in,
    text,
    word,
)

SLUG: Final = "kitta"
NAME: Final = "KittaAI"
DOCS: Final = "https://docs.kittaai.com/zh/docs/api-reference/lip-sync/jobs"
BASE_URL: Final = "https://kittaaudio.com"
CREDENTIALS: Final = (("KITTA_API_TOKEN",),)
RHYTHM: Final = Rhythm(every=3)  # the page: every 3 to 5 s until the verdict
LIMITS: Final = {"read": Limit(requests=10, seconds=1)}  # the page has no limit: ours
LIST_PAGE: Final = 100  # the most that `limit` may be
UPLOADS: Final = NO_UPLOADS

#: The task's `status`. `completed` is the word of the vendor's older API.
STATUSES: Final = {
    "pending": Status.QUEUED,
    "processing": Status.PROCESSING,
    "succeeded": Status.SUCCEEDED,
    "completed": Status.SUCCEEDED,
    "failed": Status.FAILED,
    **CANCELLED_WORDS,
}

#: Codes in `{"error": …}` that came under a 2xx. The page shows only this one.
REFUSALS: Final = {"invalid_request": "invalid_input", "insufficient_credits": "insufficient_credit"}


class LipSyncInput(Input, frozen=True, kw_only=True):
    """Which of video and image is given decides the mode."""

    video_url: VideoUrl | None = None
    image_url: ImageUrl | None = None
    audio_url: AudioUrl
    reference_image_url: ReferenceImageUrl | None = None
    video_duration_seconds: VideoSeconds | None = None
    duration_seconds: AudioSeconds | None = None


def _cost(_: LipSyncInput, __: NoInput) -> Cost | None:
    """The page has no price: `creditsCharged` tells what a job took."""
    return None


MODELS: Final = (
    Model(
        name="kitta-lip-sync-v1",
        input=LipSyncInput,
        vendor_input=NoInput,
        one_of=(("input.video_url", "input.image_url"),),
        needs={"input.reference_image_url": "input.image_url"},
        price="not published; told when the job is taken",
        limits="files at public addresses",
        unit="credits",
        estimate=_cost,
    ),
)

#: Fields of a task. `durationSeconds` is the length of the voice.
TASK: Final = {
    "video_url": "videoUrl",
    "image_url": "imageUrl",
    "audio_url": "audioUrl",
    "reference_image_url": "referenceImageUrl",
    "duration_seconds": "durationSeconds",
}

token_request, read_token = no_token_request, no_token
upload_request, read_upload, file_request, read_file = no_uploads


def headers(credentials: Mapping[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials['KITTA_API_TOKEN']}"}


def resembles(input: Mapping[str, object], body: bytes) -> bool:
    mode = "video" if input.get("video_url") else "image"
    return task_in(mapping(decode(body))).get("inputMode") in (None, mode)


def submit_request(model: str, input: Input, vendor_input: Input, callback_url: str | None) -> Request:
    """Without the callback URL: the vendor has no field for one."""
    task = given(input, TASK)
    mode = "video" if "videoUrl" in task else "image"
    return Request(method="POST", path="/api/v1/lip-sync/tasks", json={"model": model, "inputMode": mode, **task})


def read_submit(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return submitted(http_status, _refused(http_status, answer), answer, _job)


def status_request(vendor_job_id: str) -> Request:
    return Request(path=f"/api/v1/lip-sync/tasks/{quote(vendor_job_id, safe='')}")


def list_request(page: int) -> Request:
    return Request(path="/api/v1/lip-sync/tasks", query={"limit": str(LIST_PAGE), "offset": str(page * LIST_PAGE)})


def read_callback(body: bytes) -> Observation:
    """Nothing that the vendor documents is sent; a pushed task would be this object."""
    return reading(Source.CALLBACK, decode(body), _job)


def read_status(http_status: int, body: bytes) -> Observation | Refusal:
    answer = decode(body)
    return _refused(http_status, answer) or reading(Source.POLL, answer, _job)


def read_list(http_status: int, body: bytes) -> ListPage | Refusal:
    answer = decode(body)
    page = mapping(answer)
    more = mapping(page.get("pagination")).get("hasMore") is True
    return _refused(http_status, answer) or listed(page.get("data"), _job, more=more)


def _refused(http_status: int, answer: object) -> Refusal | None:
    error = mapping(mapping(answer).get("error"))
    if no := refused(http_status, answer):
        return no
    if not error:
        return None
    code = text(error.get("code")) or "an error without a code"
    return Refusal(code=REFUSALS.get(code, "vendor_error"), message=complaint(error) or code)


def _job(source: Source, body: dict[str, object]) -> Observation:
    task = task_in(body)
    # The second names are those of the older API.
    videos = outputs(task.get("resultVideoUrl"), task.get("result_url"))[:1]
    charged = number(task.get("creditsCharged"))
    if charged is None:
        charged = number(task.get("credits_used"))
    status = word(task.get("status"), STATUSES)
    seen = Observation(
        source=source,
        status=status,
        # Never `id`: that is a database row (`row_…`), and the status path does not know it.
        vendor_job_id=text(task.get("taskId")),
        model=text(task.get("model")),
        outputs=videos,
        # A failure has a code or a message, perhaps not both.
        error=failure(status, task.get("errorCode"), task.get("errorMessage")),
        cost=None if charged is None else Cost(charged=charged, unit="credits"),
        submitted_at=moment(task.get("createdAt")),
        started_at=moment(task.get("startedAt")),
        completed_at=moment(task.get("completedAt")),
    )
    return settled(seen, task.get("status"), made=videos, trouble=complaint(body.get("error")))
