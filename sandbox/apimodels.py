"""API Models' Kling lip-sync as its page describes it: https://apimodels.app/api/v1

Two models behind one path: identify-face finds faces and makes no media, advanced-lip-sync takes one of
them and makes the video. Callbacks are repeated until they are answered with a 2xx.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.jobs import Job, Phase
from sandbox.media.files import DURATION
from sandbox.vendor import Refusal, Shape, Text, Url, Vendor, Why, read

IDENTIFY: Final = "kling-identify-face"
LIP_SYNC: Final = "kling-advanced-lip-sync"

#: After 1, 2 and 4 s, then every minute while half an hour lasts.
_RETRIES: Final = (1.0, 2.0, 4.0, *(60.0,) * 29)


class Generation(Shape, tag_field="model", kw_only=True):
    callback_url: Url | UnsetType = UNSET


class IdentifyFace(Generation, tag=IDENTIFY):
    video_url: Url


class AdvancedLipSync(Generation, tag=LIP_SYNC):
    session_id: Text
    face_id: Text
    # The page asks for "the corresponding audio source" and names no field for it. One of these, as in Kling's own API
    # and its resellers'; `audio_file` may hold base64.
    audio_url: Url | UnsetType = UNSET
    audio_file: Text | UnsetType = UNSET
    audio_id: Text | UnsetType = UNSET


_GENERATION: Final[msgspec.json.Decoder[IdentifyFace | AdvancedLipSync]] = msgspec.json.Decoder(
    IdentifyFace | AdvancedLipSync
)
_STATUSES: Final = {
    Why.INVALID: 400,
    Why.UNAUTHORIZED: 401,
    Why.NOT_FOUND: 404,
    Why.RATE_LIMITED: 429,
    Why.INTERNAL: 500,
}
_WORDS: Final = {
    Phase.QUEUED: "pending",
    Phase.PROCESSING: "processing",
    Phase.UNKNOWN: "reviewing",
    Phase.SUCCEEDED: "completed",
    Phase.FAILED: "failed",
}


class Apimodels(Vendor):
    slug = "apimodels"
    retries = _RETRIES

    def routes(self) -> Sequence[Route]:
        path = "/api/v1/audio/generations"
        return [
            Route(path, self.call("submit", self._submit), methods=["POST"]),
            Route(path, self.call("status", self._status)),
        ]

    def refusal(self, why: Why, message: str) -> Response:
        status = _STATUSES[why]
        return JSONResponse({"code": status, "msg": message, "data": None}, status)

    def callback(self, job: Job, phase: Phase) -> object:
        over = phase in (Phase.SUCCEEDED, Phase.FAILED)
        failed = phase is Phase.FAILED
        return _envelope(
            {
                "taskId": job.id,
                "model": f"kling-video/{job.model}",
                "state": _WORDS[phase],
                "param": _text(job.request),
                "resultJson": _text(_result(job)) if phase is Phase.SUCCEEDED else None,
                "failCode": "generation_failed" if failed else None,
                "failMsg": _fail_message(job) if failed else None,
                "costTime": round(job.seconds * 1000) if over else None,
                "completeTime": round(job.finished_at * 1000) if over else None,
                "createTime": round(job.submitted_at * 1000),
            }
        )

    async def _submit(self, request: Request) -> Response:
        asked, body = await read(request, _GENERATION)
        if isinstance(asked, AdvancedLipSync):
            self._check(asked)
        job = await self.begin(
            request,
            id="clx" + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(22)),
            model=IDENTIFY if isinstance(asked, IdentifyFace) else LIP_SYNC,
            body=body,
            callback_url=None if isinstance(asked.callback_url, UnsetType) else asked.callback_url,
            makes_media=isinstance(asked, AdvancedLipSync),
        )
        return self.submitted(job, JSONResponse(_envelope(_task(job, Phase.QUEUED))))

    def _check(self, asked: AdvancedLipSync) -> None:
        """The audio source and the face, which has to come from a session that identify-face has made."""
        if [asked.audio_url, asked.audio_file, asked.audio_id].count(UNSET) != 2:
            raise Refusal(Why.INVALID, "one audio source is required: audio_url, audio_file or audio_id")
        if asked.session_id.startswith("sandbox-"):
            return
        job = self.world.jobs.get(self.slug, asked.session_id.removeprefix("session_"))
        if job is None or job.output is not None or job.phase() is not Phase.SUCCEEDED:
            raise Refusal(Why.INVALID, f"unknown session_id: {asked.session_id}")
        if asked.face_id not in _face_ids(job):
            raise Refusal(Why.INVALID, f"unknown face_id: {asked.face_id}")

    async def _status(self, request: Request) -> Response:
        id = request.query_params.get("task_id")
        if not id:
            raise Refusal(Why.INVALID, "task_id is required")
        job = self.world.jobs.get(self.slug, id)
        if job is None:
            raise Refusal(Why.NOT_FOUND, "Task not found")
        job.status_calls += 1
        job.asked()
        return JSONResponse(_envelope(_task(job, job.phase())))


def _envelope(data: dict[str, object]) -> dict[str, object]:
    return {"code": 200, "msg": "success", "data": data}


def _text(value: object) -> str:
    """JSON inside a string, as the callback has it."""
    return msgspec.json.encode(value).decode()


def _fail_message(job: Job) -> str:
    return job.failure("Lip sync failed: audio could not be read")


def _task(job: Job, phase: Phase) -> dict[str, object]:
    """The task as submit and status answers have it. A failed one does not say its model."""
    task: dict[str, object] = {"taskId": job.id, "state": _WORDS[phase]}
    if phase is Phase.FAILED:
        return task | {"failMsg": _fail_message(job)}
    task["model"] = job.model
    if phase is not Phase.SUCCEEDED:
        return task
    return task | ({"faceData": _faces(job)} if job.output is None else {"resultUrls": [job.media()]})


def _result(job: Job) -> dict[str, object]:
    return _faces(job) if job.output is None else {"resultUrls": [job.media()], "videoDuration": round(DURATION)}


def _faces(job: Job) -> dict[str, object]:
    reference = f"{job.base}/media/input/face.jpg"
    faces = [{"face_id": face_id, "face_reference": reference} for face_id in _face_ids(job)]
    return {"session_id": f"session_{job.id}", "face_list": faces}


def _face_ids(job: Job) -> list[str]:
    """One face in every video, unless `faces` asked for another number."""
    asked = job.faults.get("faces")
    return [f"face_{number:03d}" for number in range(1, 2 if asked is None else int(asked) + 1)]
