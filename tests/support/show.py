"""A deployment with something of everything to be seen, for the tests of the dashboard and its pictures."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx

from service.cli.local import Local

from .processes import eventually

KEYS: Final = {"team": "a-key-that-may-do-everything-012", "reader": "a-key-that-may-only-read-01234567"}
HOSTILE: Final = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> {{ 7 * 7 }} ' onfocus=x"""

_VOICE: Final = "voice.mp3"
#: label → vendor, and what is asked of it: faults of the sandbox stand behind the files.
_ORDERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "stored": ("lipsync_studio", {"video_url": "face.mp4", "audio_url": _VOICE}),
    "doubled": ("lipsync_studio", {"image_url": "face.png?sandbox=callback_doubled", "audio_url": _VOICE}),
    "lost": ("lipsync_studio", {"video_url": "face.mp4?sandbox=callback_lost", "audio_url": _VOICE}),
    "failed": ("lipsync_studio", {"video_url": "face.mp4?sandbox=job_failed", "audio_url": _VOICE}),
    "asked": ("kitta", {"image_url": "face.png", "audio_url": _VOICE}),
    "picked": ("chanjing", {"video_url": "face.mp4", "audio_url": _VOICE}),
    "garbled": ("apimodels", {"video_url": "face.mp4", "audio_url": f"{_VOICE}?sandbox=callback_garbled"}),
    "unanswered": ("apimodels", {"video_url": "face.mp4", "audio_url": f"{_VOICE}?sandbox=submit_lost,callback_lost"}),
    "stuck": ("kitta", {"video_url": "face.mp4?sandbox=job_stuck", "audio_url": _VOICE}),
}
_ENDS: Final = {"failed": "failed", "unanswered": "unconfirmed", "stuck": "processing"}


class Show:
    """The deployment, and what its jobs are called here."""

    def __init__(self, local: Local, subscriber: str, log: Path, said: str) -> None:
        self._log = log
        self.heard = _Subscriber.heard  #: a path for each webhook that came
        self.url = local.url
        self.subscriber = subscriber
        self.environ: dict[str, str] = json.loads((local.folder / "up.json").read_text())["environ"]
        self.redis_url = self.environ["REDIS_URL"]
        self.api = httpx.Client(
            base_url=local.url, timeout=30, trust_env=False, headers={"Authorization": f"Bearer {KEYS['team']}"}
        )
        media = f"{local.sandbox_url}/media/input/"
        self.endpoints = {name: self._endpoint(f"{subscriber}/{name}") for name in ("taken", "refused")}
        self.jobs = {label: self._order(label, vendor, asked, media) for label, (vendor, asked) in _ORDERS.items()}
        self.jobs["hostile"] = self._hostile(said)

    def _endpoint(self, url: str) -> str:
        return str(self.api.post("/v1/endpoints", json={"url": url}).raise_for_status().json()["id"])

    def _order(self, label: str, vendor: str, asked: dict[str, Any], media: str) -> str:
        given = {name: media + file for name, file in asked.items()} | {"duration_seconds": 2}
        order = {"vendor": vendor, "input": given, "metadata": {"scene": label}}
        return str(self.api.post("/v1/jobs", json=order).raise_for_status().json()["id"])

    def _hostile(self, words: str) -> str:
        """A job about which everybody says the worst."""
        job = self.api.post("/v1/jobs", json={"vendor": "kitta", "metadata": {"said": words}}).raise_for_status().json()
        told = {"taskId": "hostile", "status": "failed", "errorMessage": words, "message": words}
        self.api.post(job["callback_url"], json={"code": 200, "data": told, "taskId": "hostile", "status": words})
        return str(job["id"])

    def log(self) -> str:
        """What all processes have logged."""
        return self._log.read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log under this name."""
        lines = (json.loads(line[line.index("{") :]) for line in self.log().splitlines() if "{" in line)
        return [line for line in lines if line.get("event") == event]

    def job(self, label: str) -> dict[str, Any]:
        return dict(self.api.get(f"/v1/jobs/{self.jobs[label]}").raise_for_status().json())

    def unsettled(self) -> dict[str, str]:
        """The jobs that are not where they should be yet."""
        told = {label: self.job(label) for label in _ORDERS}
        stands = {label: job["status"] if label in _ENDS else job["archive"] for label, job in told.items()}
        return {label: at for label, at in stands.items() if at != _ENDS.get(label, "stored")}


class _Subscriber(BaseHTTPRequestHandler):
    heard: ClassVar[list[str]] = []
    said: ClassVar[str] = ""

    def do_POST(self) -> None:
        self.heard.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if self.path == "/taken" else 500)
        self.end_headers()
        self.wfile.write(b"thank you" if self.path == "/taken" else self.said.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def show(folder: Path, said: str = HOSTILE) -> Iterator[Show]:
    """Run it, and wait until there is something to be seen. `said`: what others say wherever they can."""
    _Subscriber.said = said
    keys = f"team:{KEYS['team']},reader:{KEYS['reader']}:read"
    settings = {"API_KEYS": keys, "LOG_FORMAT": "json", "POLL_GRACE_SECONDS": "1"}
    subscriber = ThreadingHTTPServer(("127.0.0.1", 0), _Subscriber)
    threading.Thread(target=subscriber.serve_forever, daemon=True).start()
    path = folder / "log"
    with path.open("w") as log, Local(folder / "var", settings, seconds=0.5) as local:
        local.start(lambda name, line: print(name, line, file=log, flush=True))
        local.note()
        shown = Show(local, f"http://127.0.0.1:{subscriber.server_port}", path, said)
        with contextlib.closing(shown.api):
            eventually(lambda: not shown.unsettled(), "every job is where it should be", timeout=60)
            yield shown
    subscriber.shutdown()
    subscriber.server_close()
