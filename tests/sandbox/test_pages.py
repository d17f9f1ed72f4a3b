"""The sandbox plays its vendors as their pages say: the pages' own samples against what it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.customers import (
    APIMODELS,
    AUDIO,
    BEARER,
    BODIES,
    CHANJING_CREATED,
    CREATE,
    IMAGE,
    KITTA,
    LIPSYNC,
    LIST,
    TOKEN,
    TTS,
    VIDEO,
    Receiver,
    ask,
    body_of,
    finished,
    form,
    job_id,
    link,
    submit,
    upload,
    word,
)
from tests.support.processes import eventually
from tests.support.sandbox import SECONDS

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
