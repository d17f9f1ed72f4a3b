"""The sandbox plays its vendors as their pages say, and goes wrong only as it is asked to.

A real process on a free port, a real receiver for its callbacks, and the pages' own samples.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.faults import WORDS
from tests.support.processes import ROOT, Process, eventually
from tests.support.sandbox import sandbox_process

MANUAL = (ROOT / "docs" / "sandbox.md").read_text()
LISTENING = re.compile(r"sandbox listening on (http://127\.0\.0\.1:\d+)\n")
SECONDS = 0.25
SPEED = 20


# -- the process and the receiver --------------------------------------------------------------------


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


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[Process, str]]:
    """A sandbox and its URL."""
    log = folder / "sandbox.log"
    with Process([sys.executable, "-m", "sandbox", "--port", "0", *options], log=log) as process:
        line = process.wait_until(lambda: LISTENING.fullmatch(process.output()), "its URL")
        yield process, line[1]


def stop(process: Process, by: signal.Signals = signal.SIGTERM) -> None:
    """Stop it; it has to end well, and without a word."""
    process.send(by)
    assert process.wait(timeout=15) == 0
    assert LISTENING.fullmatch(process.output()), process.output()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = ("--seconds", str(SECONDS), "--speed", str(SPEED))
    with running(tmp_path_factory.mktemp("sandbox"), *options) as (process, url):
        yield url
        stop(process)


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


# -- happy paths, against the samples -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("lipsync-video", {"video": VIDEO, "audio": AUDIO, "mask_image": IMAGE, "prompt": "calm", "seed": 42}),
        ("lipsync-image", {"image": IMAGE, "audio": AUDIO, "resolution": "720p", "seed": 42}),
        ("lipsync-image-multi", {"image": IMAGE, "left_audio": AUDIO, "right_audio": AUDIO, "order": "meanwhile"}),
    ],
)
def test_lipsync_studio_keeps_to_its_page(
    api: httpx.Client, receiver: Receiver, model: str, fields: dict[str, Any]
) -> None:
    url = receiver.fresh()
    answer = api.post(f"{LIPSYNC}/{model}", json={"webhook": url, "formState": fields}, headers=BEARER)
    assert answer.status_code == 200
    assert form(answer.json()) == form(LIPSYNC_SUBMITTED)
    id = answer.json()["id"]
    assert ask(api, "lipsync_studio", id) == LIPSYNC_PROCESSING | {"id": id}
    [callback] = eventually(lambda: receiver.got(url))
    assert form(callback.json) == form(LIPSYNC_COMPLETED)
    assert callback.json["model"] == model
    assert callback.headers.keys() == {"host", "content-type", "content-length"}
    assert callback.headers["content-type"] == "application/json"
    assert ask(api, "lipsync_studio", id) == callback.json


def test_kitta_keeps_to_its_page(api: httpx.Client) -> None:
    answer = api.post(KITTA, json=body_of("kitta", faults="seconds:0.8"), headers=BEARER)
    assert answer.status_code == 202
    created = answer.json()
    assert form(created) == form(KITTA_CREATED)
    assert created["creditsCharged"] == 1200
    assert created["id"] != created["taskId"]
    id = created["taskId"]
    eventually(lambda: ask(api, "kitta", id)["status"] == "processing")
    done = eventually(lambda: (task := ask(api, "kitta", id))["status"] == "succeeded" and task)
    assert form(done) == form(KITTA_SUCCEEDED)
    assert done | {"id": created["id"], "creditsCharged": 1200, "createdAt": created["createdAt"]} == done
    listed = api.get(KITTA, headers=BEARER).json()
    assert form(listed) == form(KITTA_LIST)
    assert listed["data"] == [{key: done[key] for key in KITTA_LIST["data"][0]}]  # type: ignore[index]


def test_kitta_lists_in_pages_newest_first_and_by_status(api: httpx.Client) -> None:
    first, second, third = (submit(api, "kitta", faults=faults) for faults in ("", "job_failed", "job_stuck"))

    def listed(**query: str | int) -> tuple[list[str], Any]:
        answer = api.get(KITTA, params=query, headers=BEARER).json()
        return [row["taskId"] for row in answer["data"]], answer["pagination"]

    eventually(lambda: listed(status="failed")[0] == [second])
    assert listed() == ([third, second, first], {"limit": 20, "offset": 0, "hasMore": False})
    assert listed(limit=2) == ([third, second], {"limit": 2, "offset": 0, "hasMore": True})
    assert listed(limit=2, offset=2) == ([first], {"limit": 2, "offset": 2, "hasMore": False})
    assert listed(status="processing")[0] == [third]
    assert listed(status="succeeded")[0] == [first]
    assert listed(status="pending")[0] == []


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


def test_chanjing_keeps_to_its_page(api: httpx.Client, receiver: Receiver) -> None:
    url = receiver.fresh()
    content = api.get("/media/input/face.mp4", params={"sandbox": "seconds:0.8"}).content
    video = upload(api, "lip_sync_video", "face.mp4", content)
    audio = upload(api, "lip_sync_audio", "voice.mp3", api.get("/media/input/voice.mp3").content)
    body = {"video_file_id": video, "audio_type": "audio", "audio_file_id": audio, "model": 1, "callback": url}
    created = api.post(CREATE, json=body, headers=TOKEN).json()
    assert form(created) == form(CHANJING_CREATED)
    id = created["data"]
    seen = [ask(api, "chanjing", id)["data"]]
    [callback] = eventually(lambda: receiver.got(url))
    assert form(callback.json) == form(CHANJING_CALLBACK)
    assert callback.json["trace_id"] == created["trace_id"]
    seen.append(ask(api, "chanjing", id)["data"])
    assert [row["status"] for row in seen] == [0, 20]
    assert seen[0] == seen[1] | {
        "status": 0, "progress": 0, "msg": "", "video_url": "", "preview_url": "", "duration": 0
    }  # fmt: skip
    assert seen[1] == callback.json["data"]
    assert api.get(seen[1]["preview_url"]).headers["content-type"] == "image/jpeg"
    listed = api.post(LIST, json={"page": 1, "page_size": 10}, headers=TOKEN).json()["data"]
    assert listed == {"list": [seen[1]], "page_info": {"page": 1, "size": 10, "total_count": 1, "total_page": 1}}
    assert api.post(LIST, json={"page": 2, "page_size": 10}, headers=TOKEN).json()["data"]["list"] == []


@pytest.mark.parametrize("text", [TTS["text"], [TTS["text"], "奔流到海不复回。"]])
def test_chanjing_takes_text_as_a_string_and_as_strings(api: httpx.Client, text: str | list[str]) -> None:
    body = BODIES["chanjing"] | {"tts_config": TTS | {"text": text}}
    assert api.post(CREATE, json=body, headers=TOKEN).json()["code"] == 0


def test_apimodels_finds_faces_and_syncs_one_of_them(api: httpx.Client, receiver: Receiver) -> None:
    url = receiver.fresh()
    body: dict[str, Any] = {"model": "kling-identify-face", "video_url": VIDEO, "callback_url": url}
    answer = api.post(APIMODELS, json=body, headers=BEARER)
    assert form(answer.json()) == form(APIMODELS_PENDING)
    assert answer.json()["data"] | {"state": "pending", "model": body["model"]} == answer.json()["data"]
    [callback] = eventually(lambda: receiver.got(url))
    faces = ask(api, "apimodels", job_id("apimodels", answer.json()))
    assert form(faces) == form(APIMODELS_FACES)
    assert form(callback.json) == form(APIMODELS_CALLBACK)
    assert callback.json["data"]["model"] == "kling-video/kling-identify-face"
    assert json.loads(callback.json["data"]["resultJson"]) == faces["data"]["faceData"]
    assert api.get(faces["data"]["faceData"]["face_list"][0]["face_reference"]).status_code == 200

    session = faces["data"]["faceData"]
    face = session["face_list"][0]["face_id"]
    body = BODIES["apimodels"] | {"session_id": session["session_id"], "face_id": face, "callback_url": url}
    id = job_id("apimodels", api.post(APIMODELS, json=body, headers=BEARER).json())
    callback = eventually(lambda: receiver.got(url)[1:])[0]
    done = ask(api, "apimodels", id)
    assert form(done) == form(APIMODELS_COMPLETED)
    data = callback.json["data"]
    assert form(callback.json) == form(APIMODELS_CALLBACK)
    assert json.loads(data["param"]) == body
    assert json.loads(data["resultJson"]) == {"resultUrls": done["data"]["resultUrls"], "videoDuration": 2}
    assert data["completeTime"] - data["createTime"] == pytest.approx(data["costTime"], abs=1)
    assert data["costTime"] == SECONDS * 1000


@pytest.mark.parametrize(
    ("vendor", "sample"),
    [
        ("lipsync_studio", LIPSYNC_FAILED),
        ("kitta", KITTA_FAILED),
        ("chanjing", CHANJING_CALLBACK),
        ("apimodels", APIMODELS_FAILED),
    ],
)
def test_failed_jobs_say_so_in_the_vendors_way(api: httpx.Client, vendor: str, sample: Any) -> None:
    answer = finished(api, vendor, submit(api, vendor, faults="job_failed"))
    assert form(answer) == form(sample)
    assert word(vendor, answer) in ("failed", 30)
    assert link(vendor, answer) is None


def test_failed_callback_of_apimodels_has_no_result(api: httpx.Client, receiver: Receiver) -> None:
    url = receiver.fresh()
    submit(api, "apimodels", callback=url, faults="no_face")
    [callback] = eventually(lambda: receiver.got(url))
    data = callback.json["data"]
    assert (data["state"], data["resultJson"]) == ("failed", None)
    assert (type(data["failCode"]), data["failMsg"]) == (str, "Face detection failed: no faces found")


# -- refusals -----------------------------------------------------------------------------------------


def changed(vendor: str, *removed: str, **fields: Any) -> dict[str, Any]:
    body = {key: value for key, value in body_of(vendor).items() if key not in removed}
    return body | fields


def form_state(**fields: Any) -> dict[str, Any]:
    return {"formState": BODIES["lipsync_studio"]["formState"] | fields}


def tts(**fields: Any) -> dict[str, Any]:
    return changed("chanjing", tts_config=TTS | fields)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("lipsync_studio", {}),
    ("lipsync_studio", {"formState": {"video": VIDEO}}),
    ("lipsync_studio", form_state(order="meanwhile")),
    ("lipsync_studio", form_state(image=IMAGE)),
    ("lipsync_studio", form_state(video="face.mp4")),
    ("lipsync_studio", form_state(audio="ftp://example.com/voice.mp3")),
    ("lipsync_studio", form_state(audio=7)),
    ("lipsync_studio", form_state(resolution="1080p")),
    ("lipsync_studio", form_state(seed="42")),
    ("lipsync_studio", form_state(seed=1.5)),
    ("lipsync_studio", form_state(mask_image=None)),
    ("lipsync_studio", changed("lipsync_studio", webhook="http://example.com/hook")),
    ("lipsync_studio", changed("lipsync_studio", webhook="http://127.0.0.1.example.com/hook")),
    ("lipsync_studio", changed("lipsync_studio", webhook="hook")),
    ("lipsync_studio", changed("lipsync_studio", webhookUrl="https://example.com/hook")),
    ("kitta", changed("kitta", "model")),
    ("kitta", changed("kitta", "audioUrl")),
    ("kitta", changed("kitta", "videoUrl")),
    ("kitta", changed("kitta", "videoUrl", imageUrl=IMAGE)),
    ("kitta", changed("kitta", inputMode="image")),
    ("kitta", changed("kitta", inputMode="text")),
    ("kitta", changed("kitta", model="kitta-lip-sync-v2")),
    ("kitta", changed("kitta", audioUrl="voice.mp3")),
    ("kitta", changed("kitta", referenceImageUrl="nowhere")),
    ("kitta", changed("kitta", durationSeconds="12")),
    ("kitta", changed("kitta", durationSeconds=0)),
    ("kitta", changed("kitta", callback="https://example.com/hook")),
    ("chanjing", changed("chanjing", "video_file_id")),
    ("chanjing", changed("chanjing", video_file_id="e284db4d95de4220afe78132158156b5")),
    ("chanjing", changed("chanjing", video_file_id="")),
    ("chanjing", changed("chanjing", "tts_config")),
    ("chanjing", changed("chanjing", audio_type="audio")),
    ("chanjing", changed("chanjing", audio_type="audio", audio_file_id="unknown")),
    ("chanjing", changed("chanjing", audio_type="song")),
    ("chanjing", changed("chanjing", volume=0)),
    ("chanjing", changed("chanjing", volume=101)),
    ("chanjing", changed("chanjing", volume="100")),
    ("chanjing", changed("chanjing", backway=3)),
    ("chanjing", changed("chanjing", model=2)),
    ("chanjing", changed("chanjing", drive_mode="fast")),
    ("chanjing", changed("chanjing", screen_width=0)),
    ("chanjing", changed("chanjing", callback="hook")),
    ("chanjing", changed("chanjing", callback_url="https://example.com/hook")),
    ("chanjing", tts(speed=0.4)),
    ("chanjing", tts(speed=2.1)),
    ("chanjing", tts(text=[])),
    ("chanjing", tts(text=[1])),
    ("chanjing", tts(audio_man_id=None)),
    ("chanjing", tts(voice="x")),
    ("apimodels", {}),
    ("apimodels", changed("apimodels", model="kling-lip-sync")),
    ("apimodels", changed("apimodels", "session_id")),
    ("apimodels", changed("apimodels", "face_id")),
    ("apimodels", changed("apimodels", "audio_url")),
    ("apimodels", changed("apimodels", audio_id="second source")),
    ("apimodels", changed("apimodels", session_id="session_abc123")),
    ("apimodels", changed("apimodels", video_url=VIDEO)),
    ("apimodels", changed("apimodels", callback_url="hook")),
    ("apimodels", {"model": "kling-identify-face"}),
    ("apimodels", {"model": "kling-identify-face", "video_url": "face.mp4"}),
    ("apimodels", {"model": "kling-identify-face", "video_url": VIDEO, "session_id": "sandbox-session"}),
    *((vendor, body_of(vendor, faults="calback_lost")) for vendor in PATHS),
    *((vendor, body_of(vendor, faults="vendor_down")) for vendor in PATHS),
    *((vendor, body_of(vendor, faults="seconds")) for vendor in PATHS),
]


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


@pytest.mark.parametrize(("vendor", "body"), REFUSED)
def test_what_the_page_does_not_allow_is_refused(api: httpx.Client, vendor: str, body: dict[str, Any]) -> None:
    assert_refused(vendor, api.post(PATHS[vendor], json=body, headers=headers(vendor)), 400, 40000)
    assert api.get("/_sandbox/jobs").json() == {"data": []}
    assert api.get("/_sandbox/calls").json() == {"data": {vendor: {"refused": 1}}}


@pytest.mark.parametrize("vendor", PATHS)
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"a":"\xff"}', b"[" * 100_000])
def test_bodies_that_are_no_json_object_are_refused(api: httpx.Client, vendor: str, raw: bytes) -> None:
    sent = headers(vendor) | {"Content-Type": "application/json"}
    assert_refused(vendor, api.post(PATHS[vendor], content=raw, headers=sent), 400, 40000)


@pytest.mark.parametrize("vendor", PATHS)
def test_other_content_types_are_refused(api: httpx.Client, vendor: str) -> None:
    raw = json.dumps(BODIES[vendor])
    sent = headers(vendor) | {"Content-Type": "text/plain"}
    assert_refused(vendor, api.post(PATHS[vendor], content=raw, headers=sent), 400, 40000)


@pytest.mark.parametrize("vendor", PATHS)
@pytest.mark.parametrize("credential", [None, "", "sk_1", "Basic sk_1", "Bearer", "Bearer a b", "Bearer invalid_1"])
def test_calls_without_a_good_credential_are_refused(api: httpx.Client, vendor: str, credential: str | None) -> None:
    name = "access_token" if vendor == "chanjing" else "Authorization"
    sent = {} if credential is None else {name: credential}
    assert_refused(vendor, api.post(PATHS[vendor], json=BODIES[vendor], headers=sent), 401, 10400)


@pytest.mark.parametrize(
    ("vendor", "path"),
    [
        ("lipsync_studio", f"{LIPSYNC}/jobs/550e8400-e29b-41d4-a716-446655440000"),
        ("kitta", f"{KITTA}/lip_task_123"),
        ("chanjing", f"{DETAIL}?id=9499ed79995c4bdb95f0d66ca84419fd"),
        ("chanjing", f"{CHANJING}/common/file_detail?id=9499ed79995c4bdb95f0d66ca84419fd"),
        ("apimodels", f"{APIMODELS}?task_id=clx1"),
    ],
)
def test_unknown_ids_are_not_found(api: httpx.Client, vendor: str, path: str) -> None:
    assert_refused(vendor, api.get(path, headers=headers(vendor)), 404, 40000)


@pytest.mark.parametrize(
    ("vendor", "path"),
    [
        ("kitta", f"{KITTA}?limit=0"),
        ("kitta", f"{KITTA}?limit=101"),
        ("kitta", f"{KITTA}?limit=ten"),
        ("kitta", f"{KITTA}?offset=-1"),
        ("kitta", f"{KITTA}?status=completed"),
        ("chanjing", DETAIL),
        ("chanjing", f"{CHANJING}/common/create_upload_url?service=photo&name=face.mp4"),
        ("chanjing", f"{CHANJING}/common/create_upload_url?service=lip_sync_video&name=voice.mp3"),
        ("apimodels", APIMODELS),
        ("apimodels", f"{APIMODELS}?taskId=clx1"),
    ],
)
def test_odd_queries_are_refused(api: httpx.Client, vendor: str, path: str) -> None:
    assert_refused(vendor, api.get(path, headers=headers(vendor)), 400, 40000)


def test_apimodels_refuses_a_face_that_the_session_does_not_have(api: httpx.Client) -> None:
    body = {"model": "kling-identify-face", "video_url": VIDEO}
    id = job_id("apimodels", api.post(APIMODELS, json=body, headers=BEARER).json())
    faces = finished(api, "apimodels", id)["data"]["faceData"]
    body = BODIES["apimodels"] | {"session_id": faces["session_id"]}
    assert api.post(APIMODELS, json=body, headers=BEARER).status_code == 200
    for face in ("face_002", "face_000", "sandbox-face"):
        assert_refused("apimodels", api.post(APIMODELS, json=body | {"face_id": face}, headers=BEARER), 400, 0)


def mint(api: httpx.Client, app_id: str, secret_key: str = "s") -> Any:
    return api.post(f"{CHANJING}/access_token", json={"app_id": app_id, "secret_key": secret_key}).json()


def test_a_new_token_kills_the_old_one_of_its_app(api: httpx.Client) -> None:
    def accepted(token: str) -> bool:
        return bool(api.get(DETAIL, params={"id": "x"}, headers={"access_token": token}).json()["code"] == 40000)

    first, other = mint(api, "app")["data"], mint(api, "other app")["data"]
    assert first.keys() == {"access_token", "expire_in"}
    assert 0 < first["expire_in"] - time.time() - 86_000 < 1_000
    second = mint(api, "app")["data"]
    tokens = (first, second, other)
    assert [accepted(token["access_token"]) for token in tokens] == [False, True, True]
    assert not accepted("never minted")
    assert accepted(TOKEN["access_token"])


@pytest.mark.parametrize(("app_id", "secret_key"), [("invalid", "s"), ("app", "invalid")])
def test_bad_credentials_get_no_token(api: httpx.Client, app_id: str, secret_key: str) -> None:
    assert mint(api, app_id, secret_key)["code"] == 10400


def test_chanjing_takes_ten_creates_a_minute_and_ten_reads_a_second(api: httpx.Client) -> None:
    id, *_ = [submit(api, "chanjing") for _ in range(10)]
    assert_refused("chanjing", api.post(CREATE, json=BODIES["chanjing"], headers=TOKEN), 429, 40001)
    codes = [api.get(DETAIL, params={"id": id}, headers=TOKEN).json()["code"] for _ in range(11)]
    assert codes == [0] * 10 + [40001]
    assert api.post(LIST, json={}, headers=TOKEN).json()["code"] == 0
    eventually(lambda: api.get(DETAIL, params={"id": id}, headers=TOKEN).json()["code"] == 0)


def test_chanjing_takes_as_many_creates_as_it_is_told_to(tmp_path: Path) -> None:
    with sandbox_process(tmp_path, "--chanjing-submits", "2/1") as sandbox:

        def create() -> Any:
            return sandbox.http.post(CREATE, json=BODIES["chanjing"], headers=TOKEN)

        assert [create().json()["code"] for _ in range(2)] == [0, 0]
        assert_refused("chanjing", create(), 429, 40001)
        eventually(lambda: create().json()["code"] == 0)
        third, _, first = (job["submitted_at"] for job in sandbox.jobs("chanjing"))
        assert third - first > 0.9
        sandbox.reset()
        assert [create().json()["code"] for _ in range(3)] == [0, 0, 40001]


@pytest.mark.parametrize("rate", ["10", "0/60", "10/", "10/60/1", "ten/60", "-1/60", "10/-60"])
def test_a_rate_that_is_none_is_no_option(rate: str) -> None:
    command = [sys.executable, "-m", "sandbox", "--port", "0", "--chanjing-submits", rate]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, cwd=ROOT)
    assert ran.returncode == 2
    assert "REQUESTS/SECONDS" in ran.stderr


# -- media --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", PATHS)
def test_every_job_makes_a_playable_file_of_its_own(api: httpx.Client, vendor: str, tmp_path: Path) -> None:
    ids = [submit(api, vendor) for _ in range(2)]
    links = [link(vendor, finished(api, vendor, id)) for id in ids]
    for id, url in zip(ids, links, strict=True):
        assert url is not None
        assert f"/media/{vendor}/{id}/0.mp4?sig=" in url
        answer = api.get(url)
        [output] = entry(api, vendor, id)["outputs"]
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        assert (output["sha256"], output["bytes"]) == (hashlib.sha256(answer.content).hexdigest(), len(answer.content))
        assert (output["url"], output["attempts"], output["downloads"]) == (url, 1, 1)
        (tmp_path / id).write_bytes(answer.content)
    assert len({(tmp_path / id).read_bytes() for id in ids}) == 2
    if shutil.which("ffprobe"):
        probe = [
            "ffprobe",
            "-v",
            "error",
            "-show_entries",
            "stream=codec_name",
            "-of",
            "csv=p=0",
            str(tmp_path / ids[0]),
        ]
        assert subprocess.check_output(probe, stderr=subprocess.STDOUT, text=True).split() == ["h264", "aac"]


def test_results_come_in_ranges_too(api: httpx.Client) -> None:
    id = submit(api, "kitta")
    url = finished(api, "kitta", id)["resultVideoUrl"]
    whole = api.get(url).content
    size = len(whole)

    def part(asked: str) -> tuple[int, bytes, str | None]:
        answer = api.get(url, headers={"Range": asked})
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert part("bytes=0-9") == (206, whole[:10], f"bytes 0-9/{size}")
    assert part("bytes=10-") == (206, whole[10:], f"bytes 10-{size - 1}/{size}")
    assert part("bytes=-5") == (206, whole[-5:], f"bytes {size - 5}-{size - 1}/{size}")
    assert part(f"bytes=5-{size * 2}") == (206, whole[5:], f"bytes 5-{size - 1}/{size}")
    assert part(f"bytes={size}-") == (416, b"", f"bytes */{size}")
    assert part("bytes=9-5")[0] == 416
    assert part("lines=1-2") == (200, whole, None)
    head = api.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")
    assert entry(api, "kitta", id)["outputs"][0]["downloads"] == 5


def test_files_without_a_good_link_are_not_served(api: httpx.Client) -> None:
    id, stuck = submit(api, "kitta"), submit(api, "kitta", faults="job_stuck")
    assert api.get(f"/media/kitta/{stuck}/0.mp4?sig=early").status_code == 404
    url = finished(api, "kitta", id)["resultVideoUrl"]
    assert api.get(url[:-1]).status_code == 403
    assert api.get(url.partition("?")[0]).status_code == 403
    assert api.get(url.replace("0.mp4", "1.mp4")).status_code == 404
    assert api.get(url.replace(id, "lip_task_0")).status_code == 404
    assert api.get("/media/input/other.mp4").status_code == 404


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("face.mp4", "video/mp4"),
        ("face.png", "image/png"),
        ("face.jpg", "image/jpeg"),
        ("voice.mp3", "audio/mpeg"),
    ],
)
@pytest.mark.parametrize("query", ["", "?sandbox=callback_lost"])
def test_inputs_are_there_to_submit(api: httpx.Client, name: str, kind: str, query: str) -> None:
    got, head = (api.request(method, f"/media/input/{name}{query}") for method in ("GET", "HEAD"))
    assert len(got.content) > 1000
    for answer in (got, head):
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert int(answer.headers["content-length"]) == len(got.content)


def test_fault_words_survive_an_upload(api: httpx.Client) -> None:
    def fetched(name: str, faults: str) -> bytes:
        return api.get(f"/media/input/{name}", params={"sandbox": faults}).content

    files = {
        "video_file_id": upload(api, "lip_sync_video", "face.mp4", fetched("face.mp4", "job_failed,seconds:0")),
        "audio_file_id": upload(api, "lip_sync_audio", "voice.mp3", fetched("voice.mp3", "callback_late:2.5")),
    }
    id = api.post(CREATE, json=files | {"audio_type": "audio"}, headers=TOKEN).json()["data"]
    assert entry(api, "chanjing", id)["faults"] == ["job_failed", "seconds:0", "callback_late:2.5"]
    assert ask(api, "chanjing", id)["data"]["status"] == 30


# -- the ledger, and the process ----------------------------------------------------------------------------


def test_the_ledger_tells_what_happened(api: httpx.Client, receiver: Receiver) -> None:
    url, began = receiver.fresh(), time.time()
    id = submit(api, "apimodels", callback=url, faults="seconds:0.5")
    submit(api, "apimodels")
    [before] = api.get("/_sandbox/jobs", params={"callback_url": url}).json()["data"]
    assert before["status"] in ("queued", "processing")
    assert (before["finished_at"], before["outputs"]) == (None, [])
    settled(api, "apimodels", id, 1)
    ask(api, "apimodels", id)
    [job] = api.get("/_sandbox/jobs", params={"vendor": "apimodels", "callback_url": url}).json()["data"]
    assert job["request"] == body_of("apimodels", callback=url, faults="seconds:0.5")
    assert (job["vendor"], job["id"], job["model"]) == ("apimodels", id, "kling-advanced-lip-sync")
    assert (job["status"], job["status_calls"], job["list_calls"]) == ("succeeded", 1, 0)
    assert began < job["submitted_at"] < began + 1
    assert job["submitted_at"] + 0.5 == job["finished_at"] <= job["callbacks"][0]["at"]
    assert api.get("/_sandbox/jobs", params={"vendor": "kitta"}).json() == {"data": []}
    submit(api, "kitta", faults="seconds:0")
    api.get(KITTA, headers=BEARER)
    assert api.get("/_sandbox/jobs", params={"vendor": "kitta"}).json()["data"][0]["list_calls"] == 1
    api.get(KITTA)
    assert api.get("/_sandbox/calls").json() == {
        "data": {"apimodels": {"status": 1, "submit": 2}, "kitta": {"list": 1, "refused": 1, "submit": 1}}
    }


def test_a_reset_forgets_jobs_and_what_they_still_had_to_say(api: httpx.Client, receiver: Receiver) -> None:
    url, after = receiver.fresh(), receiver.fresh()
    submit(api, "lipsync_studio", callback=url, faults="seconds:0.5")
    order(api, "job_failed")
    api.post("/_sandbox/reset")
    assert [api.get(f"/_sandbox/{part}").json()["data"] for part in ("jobs", "faults", "calls")] == [[], [], {}]
    submit(api, "lipsync_studio", callback=after, faults="seconds:0.6")
    eventually(lambda: receiver.got(after))
    assert receiver.got(url) == []


def test_health(api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_with_everything_open(tmp_path: Path, by: signal.Signals) -> None:
    with (
        running(tmp_path, "--seconds", "0") as (process, url),
        httpx.Client(base_url=url, trust_env=False, timeout=10) as client,
    ):
        submit(client, "lipsync_studio", callback="http://localhost:9/hook", faults="seconds:60")
        slow = str(link("kitta", ask(client, "kitta", submit(client, "kitta", faults="download_slow:10"))))
        with client.stream("GET", slow) as answer:
            next(answer.iter_raw())
            order(client, "vendor_hangs", vendor="kitta")
            hanging = threading.Thread(target=lambda: httpx.get(url + KITTA, trust_env=False, timeout=10))
            hanging.start()
            eventually(lambda: client.get("/_sandbox/calls").json()["data"]["kitta"].get("faulted"))
            began = time.monotonic()
            stop(process, by)
            assert time.monotonic() - began < 2
            hanging.join()


def test_the_manual_names_every_fault_word() -> None:
    assert [word for word in sorted(WORDS) if f"`{word}" not in MANUAL] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("number", range(MANUAL.count("```sh\ncurl")))
def test_the_manuals_examples_work_as_pasted(api: httpx.Client, base: str, number: int) -> None:
    example = re.findall(r"```sh\n(curl.*?)```", MANUAL, re.DOTALL)[number]
    ran = subprocess.run(
        ["/bin/sh", "-ec", example.replace("http://127.0.0.1:8900", base)], capture_output=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout
