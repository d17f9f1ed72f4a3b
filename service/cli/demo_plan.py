"""What the demo does to each vendor, and what has to come of it: the jobs as data.

The demo acts as an internal service would: it registers a job, submits it to the vendor itself (here: to the sandbox)
with the callback URL that it was given, and tells Callsheet the vendor's id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

Body = dict[str, Any]


class Vendor(msgspec.Struct, frozen=True):
    """How a team's own code submits to a vendor."""

    headers: dict[str, str]
    callback_field: str | None  #: where the body takes the callback URL; None: the vendor has no callbacks
    find_id: Callable[[Any], str]  #: the vendor's job id in its answer


VENDORS: Final = {
    "lipsync_studio": Vendor({"Authorization": "Bearer sk_demo_key"}, "webhook", lambda answer: answer["id"]),
    "kitta": Vendor({"Authorization": "Bearer demo"}, None, lambda answer: answer["taskId"]),
    # The fixed token: asking for one of our own would kill the one that the poller holds.
    "chanjing": Vendor({"access_token": "sandbox-access-token"}, "callback", lambda answer: answer["data"]),
    "apimodels": Vendor({"Authorization": "Bearer demo"}, "callback_url", lambda answer: answer["data"]["taskId"]),
}


class Scene(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One job of the demo and how it has to end."""

    label: str
    vendor: str
    path: str
    body: Body
    status: str = "succeeded"
    archive: str = "stored"
    verdict_by: str = "callback"  #: `callback`, `poll`, or `either` where the two race
    after: str | None = None  #: the label of the scene whose faces this one needs


def _media(name: str, faults: str = "") -> str:
    return f"https://media.example.com/{name}" + (f"?sandbox={faults}" if faults else "")


def _studio(label: str, operation: str, faults: str = "", **expected: Any) -> Scene:
    subject = {"video": _media("face.mp4", faults)} if operation == "video" else {"image": _media("face.png", faults)}
    voices = ("left_audio", "right_audio") if operation == "image-multi" else ("audio",)
    form = {**subject, **{voice: _media(f"{voice}.mp3") for voice in voices}, "resolution": "480p"}
    path = f"/api/v1/lipsync-{operation}"
    return Scene(label=label, vendor="lipsync_studio", path=path, body={"formState": form}, **expected)


def _kitta(label: str, mode: str, faults: str = "") -> Scene:
    subject = {"videoUrl": _media("face.mp4", faults)} if mode == "video" else {"imageUrl": _media("face.png", faults)}
    body = {"model": "kitta-lip-sync-v1", "inputMode": mode, "audioUrl": _media("voice.mp3"), **subject}
    return Scene(label=label, vendor="kitta", path="/api/v1/lip-sync/tasks", body=body, verdict_by="poll")


def _chanjing(label: str, audio: Body, faults: str = "", **expected: Any) -> Scene:
    body = {"video_file_id": "sandbox-video" + (f"?sandbox={faults}" if faults else ""), "model": 0, **audio}
    return Scene(label=label, vendor="chanjing", path="/open/v1/video_lip_sync/create", body=body, **expected)


def _kling(label: str, body: Body, **expected: Any) -> Scene:
    return Scene(label=label, vendor="apimodels", path="/api/v1/audio/generations", body=body, **expected)


def _lip_sync(faults: str = "") -> Body:
    return {"model": "kling-advanced-lip-sync", "audio_url": _media("voice.mp3", faults)}


_TEXT: Final = {
    "audio_type": "tts",
    "tts_config": {"text": "君不见黄河之水天上来", "audio_man_id": "C-demo", "speed": 1},
}
_AUDIO: Final = {"audio_type": "audio", "audio_file_id": "sandbox-audio"}
_FACES: Final = {"model": "kling-identify-face", "video_url": _media("face.mp4")}

SCENES: Final = (
    _studio("video", "video"),
    _studio("image, callback doubled", "image", "callback_doubled"),
    _studio("two speakers, callback lost", "image-multi", "callback_lost", verdict_by="poll"),
    _studio("forged callbacks", "video", "callback_forged"),
    _studio("fails", "video", "job_failed", status="failed", archive="none"),
    _kitta("video", "video"),
    _kitta("image, first link dead", "image", "link_expired"),
    _chanjing("from text", _TEXT),
    _chanjing("from audio, callback late", _AUDIO, "callback_late:8", verdict_by="poll"),
    _chanjing("callback reordered", _TEXT, "callback_reordered"),
    _kling("faces", _FACES, archive="none"),
    _kling("lip-sync", _lip_sync(), after="faces"),
    _kling(
        "callback garbled, download cut",
        _lip_sync("callback_garbled,download_broken"),
        after="faces",
        verdict_by="either",
    ),
)
