"""The jobs of the suite: what each asks of its vendor, what is to go wrong with it, and how it has to end.

A job's nonce stands in what it asks for, so the vendor's own record tells whose it is, whatever the service says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

#: How many of a hundred jobs each vendor gets.
VENDORS: Final = {"lipsync_studio": 40, "apimodels": 35, "kitta": 15, "chanjing": 10}
#: What becomes of the callbacks of a hundred jobs where they go wrong; the rest arrive as they should.
CALLBACKS: Final = {
    "callback_lost": 30,
    "callback_doubled": 20,
    "callback_reordered": 10,
    "callback_late:3": 5,
    "callback_forged": 5,
    "callback_garbled": 2,
}
#: The same of jobs that are called back for after all.
CALLED: Final = {word: share for word, share in CALLBACKS.items() if word != "callback_lost"}
#: Of a hundred jobs, so many fail.
FAILING: Final = 5

_NONCE: Final = re.compile(r"\bc[0-9a-f]{12}\b")
_VOICE: Final = "https://example.com/voice.mp3"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One job that somebody wants."""

    nonce: str
    vendor: str
    group: str  #: the row that it counts in
    words: tuple[str, ...]  #: what the sandbox does with it
    direct: bool = False  #: its owner submits it, and registers it here
    refusable: bool = False  #: it may fail because its vendor has not taken it

    @property
    def last_event(self) -> str:
        return "job.failed" if "job_failed" in self.words else "job.stored"

    @property
    def events(self) -> set[str]:
        """What subscribers must hear of, each once."""
        return {"job.submitted", "job.failed"} if "job_failed" in self.words else set(_SUCCESS)

    def request(self) -> dict[str, Any]:
        """The body of `POST /v1/jobs`."""
        if self.direct:
            return {"vendor": self.vendor, "metadata": {"nonce": self.nonce}}
        asked: dict[str, str] = {"audio_url": _VOICE}
        vendor_input: dict[str, str] = {}
        match self.vendor:
            case "chanjing":
                asked, vendor_input = {"text": "你好", "voice": "a-voice"}, {"video_file_id": self._marked("sandbox-x")}
            case "apimodels":
                asked = {"audio_url": self._marked(_VOICE)}
                vendor_input = {"session_id": "sandbox-session", "face_id": "sandbox-face"}
            case _:
                asked["video_url"] = self._marked("https://example.com/face.mp4")
        return {"vendor": self.vendor, "input": asked, "vendor_input": vendor_input}

    def submission(self, callback_url: str) -> tuple[str, dict[str, Any]]:
        """Path and body of the vendor's own call, as the job's owner makes it."""
        video = self._marked("https://example.com/face.mp4")
        match self.vendor:
            case "lipsync_studio":
                form = {"video": video, "audio": _VOICE}
                return "/api/v1/lipsync-video", {"formState": form, "webhook": callback_url}
            case "kitta":
                return "/api/v1/lip-sync/tasks", {"model": "kitta-lip-sync-v1", "videoUrl": video, "audioUrl": _VOICE}
            case "apimodels":
                face = {"session_id": "sandbox-session", "face_id": "sandbox-face"}
                asked = {"audio_url": self._marked(_VOICE), "callback_url": callback_url}
                return "/api/v1/audio/generations", {"model": "kling-advanced-lip-sync", **face, **asked}
            case _:
                audio = {"text": "你好", "audio_man_id": "voice"}
                body = {"video_file_id": self._marked("sandbox-x"), "tts_config": audio, "callback": callback_url}
                return "/open/v1/video_lip_sync/create", body

    def _marked(self, what: str) -> str:
        return f"{what}?n={self.nonce}&sandbox={','.join(self.words)}"


_SUCCESS: Final = ("job.submitted", "job.succeeded", "job.stored")


def nonce_in(asked: str) -> str:
    """Whose job it is that asks for this; empty where it is nobody's."""
    found = _NONCE.search(asked)
    return found[0] if found else ""


def orders(
    count: int,
    chance: random.Random,
    *,
    group: str = "",
    callbacks: Mapping[str, int] | None = None,
    vendors: dict[str, int] | None = None,
    seconds: tuple[float, float] = (0.2, 2.0),
    direct: float = 0.5,
    words: tuple[str, ...] = (),
    refusable: bool = False,
) -> Iterator[Order]:
    """So many jobs; `direct` is the share of those that their owners submit, `callbacks` are the ways they go wrong."""
    shares = vendors or VENDORS
    for _ in range(count):
        (vendor,) = chance.choices(list(shares), list(shares.values()))
        chosen = [f"seconds:{chance.uniform(*seconds):.2f}", *words]
        if callbacks and vendor != "kitta":  # which sends none
            rest = 100 - sum(callbacks.values())
            (word,) = chance.choices([*callbacks, ""], [*callbacks.values(), rest])
            chosen += [word] if word else []
        if chance.randrange(100) < FAILING:
            chosen.append("job_failed")
        yield Order(
            nonce=f"c{chance.getrandbits(48):012x}",
            vendor=vendor,
            group=group,
            words=tuple(chosen),
            direct=chance.random() < direct,
            refusable=refusable,
        )
