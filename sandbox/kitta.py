"""Kitta as its API page describes it: https://kittaaudio.com/api/v1

Create, read and list tasks. No callbacks: whoever wants to know has to ask.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.jobs import Job, Phase, iso
from sandbox.vendor import Refusal, Shape, Url, Vendor, Why, read

#: The page's example charges 1200 for 12 seconds.
_CREDITS_A_SECOND: Final = 100
_LEAST_SECONDS: Final = 5


class Task(Shape):
    """Which URLs are required is told by the page's own message, so none is by the shape."""

    model: Literal["kitta-lip-sync-v1"]
    inputMode: Literal["video", "image"] = "video"
    audioUrl: Url | UnsetType = UNSET
    videoUrl: Url | UnsetType = UNSET
    imageUrl: Url | UnsetType = UNSET
    referenceImageUrl: Url | UnsetType = UNSET
    durationSeconds: Annotated[float, msgspec.Meta(gt=0)] | UnsetType = UNSET


class Page(msgspec.Struct):
    """The list call's query."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    status: Literal["pending", "processing", "succeeded", "failed"] | None = None


_TASK: Final = msgspec.json.Decoder(Task)
_REFUSALS: Final = {
    Why.INVALID: (400, "invalid_request"),
    Why.UNAUTHORIZED: (401, "unauthorized"),
    Why.NOT_FOUND: (404, "not_found"),
    Why.RATE_LIMITED: (429, "rate_limited"),
    Why.INTERNAL: (500, "internal_error"),
}
_WORDS: Final = {
    Phase.QUEUED: "pending",
    Phase.PROCESSING: "processing",
    Phase.UNKNOWN: "reviewing",
    Phase.SUCCEEDED: "succeeded",
    Phase.FAILED: "failed",
}
#: What a row of the list has; the rest only the task's own page tells.
_SPARSE: Final = ("taskId", "type", "status", "inputMode", "resultVideoUrl", "creditsCharged")


class Kitta(Vendor):
    slug = "kitta"

    def routes(self) -> Sequence[Route]:
        tasks = "/api/v1/lip-sync/tasks"
        return [
            Route(tasks, self.call("submit", self._submit), methods=["POST"]),
            Route(tasks, self.call("list", self._list)),
            Route(f"{tasks}/{{id}}", self.call("status", self._status)),
        ]

    def refusal(self, why: Why, message: str) -> Response:
        status, code = _REFUSALS[why]
        error = {"code": code, "message": message, "requestId": f"req_{secrets.token_hex(8)}"}
        return JSONResponse({"error": error}, status)

    async def _submit(self, request: Request) -> Response:
        asked, body = await read(request, _TASK)
        if asked.audioUrl is UNSET or (asked.videoUrl is UNSET and asked.imageUrl is UNSET):
            raise Refusal(Why.INVALID, "audioUrl and videoUrl or imageUrl are required")
        needed = {"video": asked.videoUrl, "image": asked.imageUrl}[asked.inputMode]
        if needed is UNSET:
            raise Refusal(Why.INVALID, f"{asked.inputMode}Url is required when inputMode is {asked.inputMode}")
        job = await self.begin(request, id=f"lip_task_{secrets.token_hex(12)}", model=asked.model, body=body)
        return self.submitted(job, JSONResponse(_report(job, Phase.QUEUED), 202))

    async def _status(self, request: Request) -> Response:
        job = self.world.jobs.get(self.slug, request.path_params["id"])
        if job is None:
            raise Refusal(Why.NOT_FOUND, "Task not found")
        job.status_calls += 1
        job.asked()
        return JSONResponse(_report(job, job.phase()))

    async def _list(self, request: Request) -> Response:
        try:
            page = msgspec.convert(dict(request.query_params), Page, strict=False)
        except msgspec.ValidationError as problem:
            raise Refusal(Why.INVALID, str(problem)) from None
        tasks = ((job, job.phase()) for job in self.world.jobs.newest_first(self.slug))
        fitting = ((job, phase) for job, phase in tasks if page.status in (None, _WORDS[phase]))
        found = list(islice(fitting, page.offset, page.offset + page.limit + 1))
        rows = []
        for job, phase in found[: page.limit]:
            job.list_calls += 1
            job.asked()
            report = _report(job, phase)
            rows.append({key: report[key] for key in _SPARSE})
        more = {"limit": page.limit, "offset": page.offset, "hasMore": len(found) > page.limit}
        return JSONResponse({"data": rows, "pagination": more})


def _report(job: Job, phase: Phase) -> dict[str, object]:
    """The page's task. `taskId` is the id to ask by; `id` is another one, and good for nothing."""
    over = phase in (Phase.SUCCEEDED, Phase.FAILED)
    failed = phase is Phase.FAILED
    seconds = job.request.get("durationSeconds", 0)
    charged = max(seconds, _LEAST_SECONDS) if isinstance(seconds, int | float) else _LEAST_SECONDS
    return {
        "id": f"row_{job.id.removeprefix('lip_task_')[:12]}",
        "taskId": job.id,
        "type": "lip_sync",
        "status": _WORDS[phase],
        "model": job.model,
        "inputMode": job.request.get("inputMode", "video"),
        "resultVideoUrl": job.media() if phase is Phase.SUCCEEDED else None,
        "errorCode": "generation_failed" if failed else None,
        "errorMessage": job.failure("The lip-sync provider could not process the audio") if failed else None,
        "creditsCharged": math.ceil(charged * _CREDITS_A_SECOND),
        "createdAt": iso(job.submitted_at),
        "startedAt": None if phase is Phase.QUEUED else iso(job.started_at),
        "completedAt": iso(job.finished_at) if over else None,
    }
