"""Chanjing's video lip-sync as its API page describes it: https://open-api.chanjing.cc

The page has the create call and the callback. Detail, list, token and files are as the vendor's other
public pages have them. Refusals are HTTP 200 with a code in the body.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.chanjing_files import AUDIO, VIDEO, Files
from sandbox.jobs import Job, Phase
from sandbox.media.files import DURATION
from sandbox.vendor import Refusal, Shape, Text, Url, Vendor, Why, Window, read
from sandbox.world import World

#: Always good, and never killed.
FIXED_TOKEN: Final = "sandbox-access-token"  # noqa: S105  a made-up one, for tests
_TOKEN_SECONDS: Final = 24 * 60 * 60

Pixels = Annotated[int, msgspec.Meta(gt=0)]


class TtsConfig(Shape):
    # An array of strings in the page's table, a string in its example.
    text: Text | Annotated[list[Text], msgspec.Meta(min_length=1)]
    audio_man_id: Text
    speed: Annotated[float, msgspec.Meta(ge=0.5, le=2)] = 1
    # The page sends the reader elsewhere for the range.
    pitch: Annotated[float, msgspec.Meta(gt=0)] = 1


class Create(Shape):
    video_file_id: Text
    screen_width: Pixels = 1080
    screen_height: Pixels = 1920
    backway: Literal[1, 2] = 1
    drive_mode: Literal["", "random"] = ""
    callback: Url | UnsetType = UNSET
    model: Literal[0, 1] = 0
    audio_type: Literal["tts", "audio"] = "tts"
    tts_config: TtsConfig | UnsetType = UNSET
    audio_file_id: Text | UnsetType = UNSET
    volume: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100


class Page(Shape):
    page: Annotated[int, msgspec.Meta(ge=1)] = 1
    page_size: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


class Credential(Shape):
    app_id: Text
    secret_key: Text


_CREATE: Final = msgspec.json.Decoder(Create)
_PAGE: Final = msgspec.json.Decoder(Page)
_CREDENTIAL: Final = msgspec.json.Decoder(Credential)

_CODES: Final = {
    Why.INVALID: (40000, "参数错误"),
    Why.UNAUTHORIZED: (10400, "AccessToken验证失败"),
    Why.NOT_FOUND: (40000, "参数错误"),
    Why.RATE_LIMITED: (40001, "超出RPM限制"),
    Why.INTERNAL: (50000, "系统内部错误"),
}
_STATUSES: Final = {
    Phase.QUEUED: 0,
    Phase.PROCESSING: 10,
    Phase.UNKNOWN: 25,
    Phase.SUCCEEDED: 20,
    Phase.FAILED: 30,
}


class Chanjing(Vendor):
    slug = "chanjing"

    def __init__(self, world: World, submits: tuple[int, float]) -> None:
        super().__init__(world)
        self._submits = submits
        self._tokens: dict[str, tuple[str, float]] = {}  # app_id → its one token and when that dies
        world.on_reset.append(self._forget)
        self._forget()

    def _forget(self) -> None:
        """Files and limits begin anew. Tokens stay: whoever holds one has done nothing to lose it."""
        self._files = Files()
        self._creates = Window(*self._submits)
        self._details = Window(10, 1)
        self._lists = Window(10, 1)

    def routes(self) -> Sequence[Route]:
        videos, common = "/open/v1/video_lip_sync", "/open/v1/common"
        return [
            Route("/open/v1/access_token", self.call("token", self._token, public=True), methods=["POST"]),
            Route(f"{videos}/create", self.call("submit", self._create), methods=["POST"]),
            Route(f"{videos}/detail", self.call("status", self._detail)),
            Route(f"{videos}/list", self.call("list", self._list), methods=["POST"]),
            Route(f"{common}/create_upload_url", self.call("upload_url", self._upload_url)),
            Route(f"{common}/file_detail", self.call("file", self._file_detail)),
            Route("/upload/{id}", self._upload, methods=["PUT"]),
        ]

    def refusal(self, why: Why, message: str) -> Response:
        code, words = _CODES[why]
        return _answer(None, code=code, msg=f"{words}: {message}")

    def callback(self, job: Job, phase: Phase) -> object:
        return {"trace_id": _trace(job), "code": 0, "msg": "success", "data": _video(job, phase)}

    def authorize(self, request: Request) -> None:
        token = request.headers.get("access_token", "")
        living = (value for value, dies_at in self._tokens.values() if dies_at > time.time())
        if token != FIXED_TOKEN and token not in living:
            raise Refusal(Why.UNAUTHORIZED, "unknown or expired access_token" if token else "access_token is missing")

    async def _token(self, request: Request) -> Response:
        """A new token; the one that the app had before is dead from now on."""
        asked, _ = await read(request, _CREDENTIAL)
        if asked.app_id.startswith("invalid") or asked.secret_key.startswith("invalid"):
            raise Refusal(Why.UNAUTHORIZED, "invalid app_id or secret_key")
        token, dies_at = secrets.token_hex(16), int(time.time()) + _TOKEN_SECONDS
        self._tokens[asked.app_id] = (token, dies_at)
        return _answer({"access_token": token, "expire_in": dies_at})

    async def _create(self, request: Request) -> Response:
        asked, body = await read(request, _CREATE)
        faults = self._files.use(asked.video_file_id, VIDEO)
        if asked.audio_type == "tts" and asked.tts_config is UNSET:
            raise Refusal(Why.INVALID, "tts_config is required when audio_type is tts")
        if asked.audio_type == "audio":
            if isinstance(asked.audio_file_id, UnsetType):
                raise Refusal(Why.INVALID, "audio_file_id is required when audio_type is audio")
            faults = faults | self._files.use(asked.audio_file_id, AUDIO)
        self._creates.take()
        job = await self.begin(
            request,
            id=secrets.token_hex(16),
            model=str(asked.model),
            body=body,
            callback_url=None if isinstance(asked.callback, UnsetType) else asked.callback,
            more=faults,
        )
        return self.submitted(job, _answer(job.id, trace_id=_trace(job)))

    async def _detail(self, request: Request) -> Response:
        self._details.take()
        job = self.world.jobs.get(self.slug, request.query_params.get("id", ""))
        if job is None:
            raise Refusal(Why.NOT_FOUND, "unknown id")
        job.status_calls += 1
        job.asked()
        return _answer(_video(job, job.phase()))

    async def _list(self, request: Request) -> Response:
        asked, _ = await read(request, _PAGE)
        self._lists.take()
        first, total = (asked.page - 1) * asked.page_size, self.world.jobs.count(self.slug)
        rows = []
        for job in islice(self.world.jobs.newest_first(self.slug), first, first + asked.page_size):
            job.list_calls += 1
            job.asked()
            rows.append(_video(job, job.phase()))
        info = {
            "page": asked.page,
            "size": asked.page_size,
            "total_count": total,
            "total_page": -(-total // asked.page_size),
        }
        return _answer({"list": rows, "page_info": info})

    async def _upload_url(self, request: Request) -> Response:
        query = request.query_params
        base = f"{request.url.scheme}://{request.url.netloc}"
        return _answer(self._files.address(query.get("service", ""), query.get("name", ""), base))

    async def _file_detail(self, request: Request) -> Response:
        return _answer(self._files.detail(request.query_params.get("id", "")))

    async def _upload(self, request: Request) -> Response:
        return await self._files.put(request)


def _answer(data: object, *, code: int = 0, msg: str = "success", trace_id: str | None = None) -> JSONResponse:
    return JSONResponse({"trace_id": trace_id or secrets.token_hex(16), "code": code, "msg": msg, "data": data})


def _trace(job: Job) -> str:
    """The callback repeats the trace of the submission."""
    return hashlib.sha256(job.id.encode()).hexdigest()[:32]


def _video(job: Job, phase: Phase) -> dict[str, object]:
    succeeded = phase is Phase.SUCCEEDED
    words = {Phase.SUCCEEDED: "success", Phase.FAILED: job.failure("合成失败:无法识别音频")}
    return {
        "id": job.id,
        "status": _STATUSES[phase],
        "progress": 100 if succeeded else 0 if phase is Phase.QUEUED else 50,
        "msg": words.get(phase, ""),
        "video_url": job.media() if succeeded else "",
        "preview_url": job.media(".jpg") if succeeded else "",
        "duration": round(DURATION * 1000) if succeeded else 0,
        "create_time": int(job.submitted_at),
    }
