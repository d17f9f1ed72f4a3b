"""Chanjing (蝉镜): an envelope `{code, msg, data}` around a video, whose status is a number.

Its page describes the submission and the callback; detail, list and token are from other pages of the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from service.model import Observation, Source, Status
from service.vendors.base import CANCELLED_WORDS, Limit, ListPage, Refusal, Request, Rhythm, Token
from service.vendors.reading import (
    amount,
    answered,
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
READS: Final = Limit(requests=10, seconds=1)  # detail and list, each
LIST_PAGE: Final = 100

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


def _job(source: Source, body: dict[str, object]) -> Observation:
    video = task_in(body)  # at times the callback is the bare `data`
    wrong = _wrong(body)
    videos = outputs(video.get("video_url"))
    seen = Observation(
        source=source,
        status=word(video.get("status"), VIDEO_LIP_SYNC),
        vendor_job_id=text(video.get("id")),
        progress=percent(video.get("progress")),
        outputs=videos,
        # `duration` is in ms. The preview is a still of the video, not an output of its own.
        result=known(
            duration_seconds=amount(video.get("duration"), per=1000), preview_url=media_url(video.get("preview_url"))
        ),
        error=failure(wrong.get("code"), text(video.get("msg")) or wrong.get("msg")),
        submitted_at=moment(video.get("create_time")),
    )
    return settled(seen, video.get("status"), made=videos, trouble=text(wrong.get("msg")))
