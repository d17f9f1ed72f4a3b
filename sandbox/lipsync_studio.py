"""lipsync.studio as its API page describes it: https://lipsync.studio/api/v1

Three submit calls and one status call. One webhook per job, tried once. No list call.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.jobs import Job, Phase
from sandbox.vendor import Handler, Refusal, Shape, Url, Vendor, Why, read

# The page wants HTTPS. Receivers under test listen on loopback, where there are no certificates.
Webhook = Annotated[
    str,
    msgspec.Meta(pattern=r"^(https://[^\s/?#]+|http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?)([/?#]\S*)?\Z"),
]


class FormState(Shape):
    """The page lists the options for lipsync-video only, and shows two of them for lipsync-image: all take them all."""

    resolution: Literal["480p", "720p"] = "480p"
    mask_image: Url | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    seed: int | UnsetType = UNSET


class VideoForm(FormState, kw_only=True):
    video: Url
    audio: Url


class ImageForm(FormState, kw_only=True):
    image: Url
    audio: Url


class MultiForm(FormState, kw_only=True):
    image: Url
    left_audio: Url
    right_audio: Url
    # The page names `meanwhile` and "otherwise"; the others are what services with the same fields call it.
    order: Literal["meanwhile", "left_right", "right_left"] = "meanwhile"


class VideoBody(Shape):
    formState: VideoForm
    webhook: Webhook | UnsetType = UNSET


class ImageBody(Shape):
    formState: ImageForm
    webhook: Webhook | UnsetType = UNSET


class MultiBody(Shape):
    formState: MultiForm
    webhook: Webhook | UnsetType = UNSET


B = TypeVar("B", VideoBody, ImageBody, MultiBody)

_STATUSES: Final = {
    Why.INVALID: 400,
    Why.UNAUTHORIZED: 401,
    Why.NOT_FOUND: 404,
    Why.RATE_LIMITED: 429,
    Why.INTERNAL: 500,
}
_WORDS: Final = {
    Phase.QUEUED: "processing",
    Phase.PROCESSING: "processing",
    Phase.UNKNOWN: "reviewing",
    Phase.SUCCEEDED: "completed",
    Phase.FAILED: "failed",
}


class LipsyncStudio(Vendor):
    slug = "lipsync_studio"

    def routes(self) -> Sequence[Route]:
        submits = (
            self._submit("lipsync-video", VideoBody),
            self._submit("lipsync-image", ImageBody),
            self._submit("lipsync-image-multi", MultiBody),
        )
        return [*submits, Route("/api/v1/jobs/{id}", self.call("status", self._status))]

    def refusal(self, why: Why, message: str) -> Response:
        return JSONResponse({"error": message}, _STATUSES[why])

    def callback(self, job: Job, phase: Phase) -> object:
        return _report(job, phase)

    def _submit(self, model: str, shape: type[B]) -> Route:
        decoder: msgspec.json.Decoder[B] = msgspec.json.Decoder(shape)

        async def submit(request: Request) -> Response:
            asked, body = await read(request, decoder)
            webhook = None if isinstance(asked.webhook, UnsetType) else asked.webhook
            job = await self.begin(request, id=str(uuid.uuid4()), model=model, body=body, callback_url=webhook)
            return self.submitted(job, JSONResponse({"id": job.id, "status": "processing"}))

        handler: Handler = self.call("submit", submit)
        return Route(f"/api/v1/{model}", handler, methods=["POST"])

    async def _status(self, request: Request) -> Response:
        job = self.world.jobs.get(self.slug, request.path_params["id"])
        if job is None:
            raise Refusal(Why.NOT_FOUND, "Job not found")
        job.status_calls += 1
        job.asked()
        return JSONResponse(_report(job, job.phase()))


def _report(job: Job, phase: Phase) -> dict[str, object]:
    """The page's one object, the same for status and webhook. Until the end its model is `lipsync`, for every call."""
    over = phase in (Phase.SUCCEEDED, Phase.FAILED)
    succeeded = phase is Phase.SUCCEEDED
    return {
        "id": job.id,
        "model": job.model if over else "lipsync",
        "status": _WORDS[phase],
        "output": job.media() if succeeded else None,
        "error": job.failure("Invalid audio format") if phase is Phase.FAILED else "",
        "executionTime": round(job.seconds * 1000) if succeeded else None,
        "timings": None,
    }
