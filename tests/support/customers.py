"""What customers of the sandbox's vendors do: submit, ask, take callbacks, and look into its ledger."""

from __future__ import annotations

import itertools
import json
import re
import signal
from typing import Any

import httpx

from tests.support.files import Files, Request, status, whole
from tests.support.processes import Process, eventually

LISTENING = re.compile(r"sandbox listening on (http://127\.0\.0\.1:\d+)\n")
SPEED = 20


class Receiver(Files):
    """Takes callbacks. A path answers with the statuses that were set for it, then with 200."""

    def __init__(self) -> None:
        super().__init__(otherwise=whole(b""))
        self._numbers = itertools.count()

    def fresh(self, *statuses: int) -> str:
        """A callback URL that nobody has used yet, shaped like one that carries an id and a token."""
        path = f"/callbacks/vendor/job_{next(self._numbers)}.{'ab' * 16}"
        return self.serve(path, *map(status, statuses), whole(b""))

    def got(self, url: str) -> list[Request]:
        return self.requests(url.removeprefix(self.url))

    def near(self, url: str) -> list[Request]:
        """What came to `url` and to other tokens of the same job."""
        stem = url.removeprefix(self.url).rpartition(".")[0] + "."
        found = (request for path in list(self._routes) if path.startswith(stem) for request in self.requests(path))
        return sorted(found, key=lambda request: request.at)


def stop(process: Process, by: signal.Signals = signal.SIGTERM) -> None:
    """Stop it; it has to end well, and without a word."""
    process.send(by)
    assert process.wait(timeout=15) == 0
    assert LISTENING.fullmatch(process.output()), process.output()


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
    if vendor == "chanjing":
        return str(answer["data"])
    part = answer["data"] if vendor == "apimodels" else answer
    return str(part["id" if vendor == "lipsync_studio" else "taskId"])


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
    if vendor == "apimodels":
        return next(iter(answer["data"].get("resultUrls", [])), None)
    part = answer["data"] if vendor == "chanjing" else answer
    return part[{"lipsync_studio": "output", "kitta": "resultVideoUrl", "chanjing": "video_url"}[vendor]] or None


def entry(api: httpx.Client, vendor: str, id: str) -> Any:
    """What the ledger has of a job."""
    return next(job for job in api.get("/_sandbox/jobs", params={"vendor": vendor}).json()["data"] if job["id"] == id)


def finished(api: httpx.Client, vendor: str, id: str) -> Any:
    eventually(lambda: entry(api, vendor, id)["finished_at"])
    return ask(api, vendor, id)


def kinds(api: httpx.Client, vendor: str, id: str) -> list[tuple[str, int | None]]:
    return [(call["kind"], call["http_status"]) for call in entry(api, vendor, id)["callbacks"]]


def settled(api: httpx.Client, vendor: str, id: str, count: int) -> list[tuple[str, int | None]]:
    """The kinds of a job's callbacks, once there are so many of them."""
    eventually(lambda: len(kinds(api, vendor, id)) >= count)
    return kinds(api, vendor, id)


def order(api: httpx.Client, *faults: str, vendor: str | None = None, count: int | None = None) -> None:
    answer = api.post("/_sandbox/faults", json={"vendor": vendor, "faults": faults, "count": count})
    assert answer.status_code == 200, answer.text


def form(value: Any) -> Any:
    """Keys in order and kinds of values: what an answer and a page's sample have in common."""
    if isinstance(value, dict):
        return [(key, form(inner)) for key, inner in value.items()]
    return [form(inner) for inner in value] if isinstance(value, list) else type(value).__name__


KITTA_ERROR = {"error": {"code": "invalid_request", "message": "…", "requestId": "req_xxx"}}

CHANJING_CREATED = {
    "trace_id": "8d10659438827bd4d59eaa2696f9d391",
    "code": 0,
    "msg": "success",
    "data": "9499ed79995c4bdb95f0d66ca84419fd",
}


def upload(api: httpx.Client, service: str, name: str, content: bytes) -> str:
    """Chanjing's three steps; the file's id, once the file can be used."""
    address = api.get(
        f"{CHANJING}/common/create_upload_url", params={"service": service, "name": name}, headers=TOKEN
    ).json()
    assert address["code"] == 0, address
    file = address["data"]
    assert file.keys() == {"sign_url", "mime_type", "file_id", "full_path", "key"}

    def status() -> int:
        detail = api.get(f"{CHANJING}/common/file_detail", params={"id": file["file_id"]}, headers=TOKEN).json()
        found: int = detail["data"]["status"]
        return found

    assert status() == 0
    assert api.put(file["sign_url"], content=content, headers={"Content-Type": "text/plain"}).status_code == 403
    assert api.put(file["sign_url"], content=content, headers={"Content-Type": file["mime_type"]}).status_code == 200
    assert [status(), status()] == [0, 1]
    id: str = file["file_id"]
    return id


def assert_refused(vendor: str, answer: httpx.Response, status: int, code: int) -> None:
    """A refusal in the vendor's shape: `status` where it uses HTTP's, `code` for chanjing."""
    data = answer.json()
    assert answer.status_code == (200 if vendor == "chanjing" else status), data
    if vendor == "lipsync_studio":
        assert form(data) == form({"error": "…"})
    elif vendor == "kitta":
        assert form(data) == form(KITTA_ERROR)
    elif vendor == "chanjing":
        assert form(data) == form(CHANJING_CREATED | {"data": None})
        assert data["code"] == code
    else:
        assert form(data) == form({"code": status, "msg": "…", "data": None})
        assert data["code"] == status
