"""The sandbox plays its vendors as their pages say, and goes wrong only as it is asked to.

A real process on a free port, a real receiver for its callbacks, and the pages' own samples.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from sandbox.faults import JOB_WORDS, VENDOR_WORDS, WORDS

ROOT = Path(__file__).parent.parent
SECONDS = 0.4
SPEED = 20

T = TypeVar("T")


# -- the process, the receiver, and waiting ---------------------------------------------------------


def until(condition: Callable[[], T], within: float = 6) -> T:
    """The first truthy answer of `condition`, which has to come in time."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


@dataclass
class Callback:
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver(ThreadingHTTPServer):
    """Takes callbacks. A path answers with the statuses that were set for it, then with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.statuses: dict[str, list[int]] = {}
        self._got: defaultdict[str, list[Callback]] = defaultdict(list)
        self._numbers = iter(range(10**6))

    def fresh(self, *statuses: int) -> str:
        """A callback URL that nobody has used yet, shaped like one that carries an id and a token."""
        path = f"/callbacks/vendor/job_{next(self._numbers)}.{'ab' * 16}"
        self.statuses[path] = list(statuses)
        return self.url + path

    def got(self, url: str) -> list[Callback]:
        return self._got[url.removeprefix(self.url)]

    def near(self, url: str) -> list[Callback]:
        """What came to `url` and to other tokens of the same job."""
        stem = url.removeprefix(self.url).rpartition(".")[0] + "."
        return sorted((c for path, cs in list(self._got.items()) if path.startswith(stem) for c in cs), key=_at)

    def take(self, callback: Callback) -> int:
        self._got[callback.path].append(callback)
        left = self.statuses.get(callback.path)
        return left.pop(0) if left else 200


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        at = time.monotonic()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        assert isinstance(self.server, Receiver)
        self.send_response(self.server.take(Callback(self.path, headers, body, at)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _at(callback: Callback) -> float:
    return callback.at


def start(*options: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "sandbox", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline() if process.stdout else ""))
    reader.start()
    reader.join(15)
    assert lines, "the sandbox did not start"
    assert lines[0].startswith("sandbox listening on http://127.0.0.1:"), (lines, process.poll())
    return process, lines[0].split()[-1]


def stop(process: subprocess.Popen[str], by: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(by)
    _, errors = process.communicate(timeout=5)
    return process.returncode, errors


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    process, url = start("--seconds", str(SECONDS), "--speed", str(SPEED))
    yield url
    assert stop(process) == (0, "")


@pytest.fixture(scope="module")
def connected(base: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base, trust_env=False, timeout=5) as client:
        yield client


@pytest.fixture
def api(connected: httpx.Client) -> httpx.Client:
    assert connected.post("/_sandbox/reset").json() == {"reset": True}
    return connected


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# -- what the vendors take ----------------------------------------------------------------------------

VIDEO, AUDIO, IMAGE = "https://example.com/face.mp4", "https://example.com/voice.mp3", "https://example.com/face.png"
BEARER = {"Authorization": "Bearer sk_XXXX_YYYY"}
TOKEN = {"access_token": "sandbox-access-token"}
LIPSYNC, KITTA = "/lipsync_studio/api/v1", "/kitta/api/v1/lip-sync/tasks"
CHANJING, APIMODELS = "/chanjing/open/v1", "/apimodels/api/v1/audio/generations"
CREATE, DETAIL, LIST = (f"{CHANJING}/video_lip_sync/{call}" for call in ("create", "detail", "list"))
TTS: dict[str, Any] = {"text": "君不见黄河之水天上来", "audio_man_id": "C-f2429d0755", "speed": 1, "pitch": 1}

PATHS = {"lipsync_studio": f"{LIPSYNC}/lipsync-video", "kitta": KITTA, "chanjing": CREATE, "apimodels": APIMODELS}
BODIES: dict[str, dict[str, Any]] = {
    "lipsync_studio": {"formState": {"video": VIDEO, "audio": AUDIO}},
    "kitta": {"model": "kitta-lip-sync-v1", "videoUrl": VIDEO, "audioUrl": AUDIO, "durationSeconds": 12},
    "chanjing": {"video_file_id": "sandbox-video", "audio_type": "tts", "tts_config": TTS},
    "apimodels": {
        "model": "kling-advanced-lip-sync",
        "session_id": "sandbox-session",
        "face_id": "face_001",
        "audio_url": AUDIO,
    },
}
CALLBACK_FIELD = {"lipsync_studio": "webhook", "chanjing": "callback", "apimodels": "callback_url"}
CALLING = sorted(CALLBACK_FIELD)
FAULT_FIELD = {
    "lipsync_studio": ("formState", "video"),
    "kitta": ("videoUrl",),
    "chanjing": ("video_file_id",),
    "apimodels": ("audio_url",),
}


def headers(vendor: str) -> dict[str, str]:
    return TOKEN if vendor == "chanjing" else BEARER


def body_of(vendor: str, *, callback: str | None = None, faults: str = "") -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(BODIES[vendor]))
    if callback is not None:
        body[CALLBACK_FIELD[vendor]] = callback
    if faults:
        *parents, last = FAULT_FIELD[vendor]
        part = body
        for name in parents:
            part = part[name]
        part[last] += f"?sandbox={faults}"
    return body


def submit(api: httpx.Client, vendor: str, *, callback: str | None = None, faults: str = "") -> str:
    """Submit a good job; the id to ask by."""
    answer = api.post(PATHS[vendor], json=body_of(vendor, callback=callback, faults=faults), headers=headers(vendor))
    assert answer.is_success, answer.text
    return job_id(vendor, answer.json())


def job_id(vendor: str, answer: Any) -> str:
    found: str = {
        "lipsync_studio": lambda: answer["id"],
        "kitta": lambda: answer["taskId"],
        "chanjing": lambda: answer["data"],
        "apimodels": lambda: answer["data"]["taskId"],
    }[vendor]()
    return found


def ask(api: httpx.Client, vendor: str, id: str) -> Any:
    """The status answer."""
    path, query = {
        "lipsync_studio": (f"{LIPSYNC}/jobs/{id}", {}),
        "kitta": (f"{KITTA}/{id}", {}),
        "chanjing": (DETAIL, {"id": id}),
        "apimodels": (APIMODELS, {"task_id": id}),
    }[vendor]
    answer = api.get(path, params=query, headers=headers(vendor))
    assert answer.status_code == 200, answer.text
    return answer.json()


def word(vendor: str, answer: Any) -> Any:
    data = answer["data"] if vendor in ("chanjing", "apimodels") else answer
    return data["state"] if vendor == "apimodels" else data["status"]


def link(vendor: str, answer: Any) -> str | None:
    found: str | None = {
        "lipsync_studio": lambda: answer["output"],
        "kitta": lambda: answer["resultVideoUrl"],
        "chanjing": lambda: answer["data"]["video_url"] or None,
        "apimodels": lambda: answer["data"].get("resultUrls", [None])[0],
    }[vendor]()
    return found


def entry(api: httpx.Client, vendor: str, id: str) -> Any:
    """What the ledger has of a job."""
    return next(job for job in api.get("/_sandbox/jobs", params={"vendor": vendor}).json()["data"] if job["id"] == id)


def finished(api: httpx.Client, vendor: str, id: str) -> Any:
    until(lambda: entry(api, vendor, id)["finished_at"])
    return ask(api, vendor, id)


def form(value: Any) -> Any:
    """Keys in order and kinds of values: what an answer and a page's sample have in common."""
    if isinstance(value, dict):
        return [(key, form(inner)) for key, inner in value.items()]
    return [form(inner) for inner in value] if isinstance(value, list) else type(value).__name__


# -- the pages' samples -------------------------------------------------------------------------------

LIPSYNC_SUBMITTED = {"id": "550e8400-e29b-41d4-a716-446655440000", "status": "processing"}
LIPSYNC_PROCESSING = {
    "id": "550e8400-e29b-41d4-a716-446655440000",
    "model": "lipsync",
    "status": "processing",
    "output": None,
    "error": "",
    "executionTime": None,
    "timings": None,
}
LIPSYNC_COMPLETED = LIPSYNC_PROCESSING | {
    "model": "lipsync-image",
    "status": "completed",
    "output": "https://.../result.mp4",
    "executionTime": 12345,
}
LIPSYNC_FAILED = LIPSYNC_PROCESSING | {"model": "lipsync-image", "status": "failed", "error": "Invalid audio format"}

KITTA_CREATED = {
    "id": "row_123",
    "taskId": "lip_task_123",
    "type": "lip_sync",
    "status": "pending",
    "model": "kitta-lip-sync-v1",
    "inputMode": "video",
    "resultVideoUrl": None,
    "errorCode": None,
    "errorMessage": None,
    "creditsCharged": 1200,
    "createdAt": "2026-07-01T08:00:00.000Z",
    "startedAt": None,
    "completedAt": None,
}
KITTA_SUCCEEDED = KITTA_CREATED | {
    "status": "succeeded",
    "resultVideoUrl": "https://example.com/result.mp4",
    "startedAt": "2026-07-01T08:00:03.000Z",
    "completedAt": "2026-07-01T08:01:20.000Z",
}
KITTA_FAILED = KITTA_SUCCEEDED | {"resultVideoUrl": None, "errorCode": "…", "errorMessage": "…"}
KITTA_LIST = {
    "data": [
        {
            "taskId": "lip_task_123",
            "type": "lip_sync",
            "status": "succeeded",
            "inputMode": "video",
            "resultVideoUrl": "https://example.com/result.mp4",
            "creditsCharged": 1200,
        }
    ],
    "pagination": {"limit": 20, "offset": 0, "hasMore": False},
}
KITTA_ERROR = {"error": {"code": "invalid_request", "message": "…", "requestId": "req_xxx"}}

CHANJING_CREATED = {
    "trace_id": "8d10659438827bd4d59eaa2696f9d391",
    "code": 0,
    "msg": "success",
    "data": "9499ed79995c4bdb95f0d66ca84419fd",
}
CHANJING_CALLBACK = CHANJING_CREATED | {
    "data": {
        "id": "9499ed79995c4bdb95f0d66ca84419fd",
        "status": 20,
        "progress": 100,
        "msg": "success",
        "video_url": "https://res.chanjing.cc/xxx/lip-sync/9499ed79995c4bdb95f0d66ca84419fd.mp4",
        "preview_url": "https://res.chanjing.cc/xxx/lip-sync/9499ed79995c4bdb95f0d66ca84419fd.jpg",
        "duration": 300,
        "create_time": 1738636800,
    }
}

APIMODELS_PENDING = {
    "code": 200,
    "msg": "success",
    "data": {"taskId": "clxxx...", "state": "pending", "model": "kling-identify-face"},
}
APIMODELS_FACES = {
    "code": 200,
    "msg": "success",
    "data": {
        "taskId": "clxxx...",
        "state": "completed",
        "model": "kling-identify-face",
        "faceData": {
            "session_id": "session_abc123",
            "face_list": [{"face_id": "face_001", "face_reference": "https://...face_thumbnail.jpg"}],
        },
    },
}
APIMODELS_COMPLETED = {
    "code": 200,
    "msg": "success",
    "data": {
        "taskId": "clxxx...",
        "state": "completed",
        "model": "kling-advanced-lip-sync",
        "resultUrls": ["https://...lip_synced_video.mp4"],
    },
}
APIMODELS_FAILED = {
    "code": 200,
    "msg": "success",
    "data": {"taskId": "clxxx...", "state": "failed", "failMsg": "Face detection failed: no faces found"},
}
APIMODELS_CALLBACK = {
    "code": 200,
    "msg": "success",
    "data": {
        "taskId": "clxxx...",
        "model": "kling-video/kling-advanced-lip-sync",
        "state": "completed",
        "param": "<JSON string>",
        "resultJson": "<JSON string>",
        "failCode": None,
        "failMsg": None,
        "costTime": 12345,
        "completeTime": 1705123500000,
        "createTime": 1705123450000,
    },
}
