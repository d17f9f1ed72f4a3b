"""What the demo asks of each vendor, and what has to come of it: the jobs as data."""

from __future__ import annotations

from typing import Any, Final

import msgspec

Input = dict[str, Any]


class Scene(msgspec.Struct, frozen=True):
    """One job of the demo and how it has to end."""

    vendor: str
    label: str
    input: Input  #: files by name; what is to go wrong is asked for behind it
    vendor_input: Input = {}
    status: str = "succeeded"
    archive: str = "stored"
    verdict_by: str = "callback"
    tasks: int = 1  #: how many jobs it takes at the vendor
    says: str = ""  #: what the job or its timeline has to tell

    def request(self, media: str) -> dict[str, Any]:
        """The body of `POST /v1/jobs`. `media` is where the sandbox serves its files."""
        files = {name: media + value for name, value in self.input.items() if name.endswith("_url")}
        given = {"input": self.input | files, "vendor_input": self.vendor_input}
        return {"vendor": self.vendor, **given, "metadata": {"scene": self.label}}


def _video(faults: str = "", voice: str = "voice.mp3") -> Input:
    return {"video_url": f"face.mp4?sandbox={faults}", "audio_url": voice, "duration_seconds": 2}


def _image(faults: str) -> Input:
    return {"image_url": f"face.png?sandbox={faults}", "audio_url": "voice.mp3", "duration_seconds": 2}


def _text(faults: str) -> Input:
    return {"video_url": f"face.mp4?sandbox={faults}", "text": "君不见黄河之水天上来", "voice": "C-demo"}


_TWO: Final = {f"{side}_audio_url": "voice.mp3" for side in ("left", "right")}
_LOST: Final = {"image_url": "face.png?sandbox=callback_lost", **_TWO}
_GARBLED: Final = _video(voice="voice.mp3?sandbox=callback_garbled,download_broken")

SCENES: Final = (
    Scene("lipsync_studio", "video", _video()),
    Scene("lipsync_studio", "image, callback doubled", _image("callback_doubled")),
    Scene("lipsync_studio", "two speakers, callback lost", _LOST, verdict_by="poll"),
    Scene("lipsync_studio", "callbacks forged", _video("callback_forged")),
    Scene("lipsync_studio", "answer to submission lost", _video("submit_lost"), says="no_answer"),
    Scene("lipsync_studio", "fails", _video("job_failed"), status="failed", archive="none"),
    Scene("kitta", "video", _video(), verdict_by="poll"),
    Scene("kitta", "image, first link dead", _image("link_expired"), verdict_by="poll"),
    Scene("chanjing", "voice and video from URLs", _video(), says="audio_url is at the vendor"),
    Scene("chanjing", "text, callback late", _text("callback_late:8"), verdict_by="poll"),
    Scene("chanjing", "text, callback reordered", _text("callback_reordered")),
    Scene("apimodels", "second face of two", _video("faces:2"), {"face": 1}, tasks=2, says="face_002"),
    Scene(
        "apimodels", "no face", _video("faces:0"), status="failed", archive="none", verdict_by="submit", says="no_face"
    ),
    Scene("apimodels", "callback garbled, download cut", _GARBLED, verdict_by="poll", tasks=2),
)
