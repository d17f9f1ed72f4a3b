"""What the vendors' pages do not allow is refused, in the vendor's way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.customers import (
    APIMODELS,
    BEARER,
    BODIES,
    CHANJING,
    CREATE,
    DETAIL,
    IMAGE,
    KITTA,
    LIPSYNC,
    LIST,
    PATHS,
    TOKEN,
    TTS,
    VIDEO,
    assert_refused,
    body_of,
    finished,
    headers,
    job_id,
    submit,
)
from tests.support.processes import ROOT, eventually
from tests.support.sandbox import sandbox_process


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


@pytest.mark.parametrize(("vendor", "body"), REFUSED)
def test_what_the_page_does_not_allow_is_refused(api: httpx.Client, vendor: str, body: dict[str, Any]) -> None:
    assert_refused(vendor, api.post(PATHS[vendor], json=body, headers=headers(vendor)), 400, 40000)
    assert api.get("/_sandbox/jobs").json() == {"data": []}
    assert api.get("/_sandbox/calls").json() == {"data": {vendor: {"refused": 1}}}


@pytest.mark.parametrize("vendor", PATHS)
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"a":"\xff"}', b"[" * 100_000, None])
def test_what_is_no_json_object_or_not_said_to_be_one_is_refused(
    api: httpx.Client, vendor: str, raw: bytes | None
) -> None:
    sent = headers(vendor) | {"Content-Type": "application/json" if raw is not None else "text/plain"}
    content = json.dumps(BODIES[vendor]).encode() if raw is None else raw
    assert_refused(vendor, api.post(PATHS[vendor], content=content, headers=sent), 400, 40000)


@pytest.mark.parametrize("vendor", PATHS)
@pytest.mark.parametrize("credential", [None, "", "sk_1", "Basic sk_1", "Bearer", "Bearer a b", "Bearer invalid_1"])
def test_calls_without_a_good_credential_are_refused(api: httpx.Client, vendor: str, credential: str | None) -> None:
    name = "access_token" if vendor == "chanjing" else "Authorization"
    sent = {} if credential is None else {name: credential}
    assert_refused(vendor, api.post(PATHS[vendor], json=BODIES[vendor], headers=sent), 401, 10400)


@pytest.mark.parametrize(
    ("status", "vendor", "path"),
    [
        (404, "lipsync_studio", f"{LIPSYNC}/jobs/550e8400-e29b-41d4-a716-446655440000"),
        (404, "kitta", f"{KITTA}/lip_task_123"),
        (404, "chanjing", f"{DETAIL}?id=9499ed79995c4bdb95f0d66ca84419fd"),
        (404, "chanjing", f"{CHANJING}/common/file_detail?id=9499ed79995c4bdb95f0d66ca84419fd"),
        (404, "apimodels", f"{APIMODELS}?task_id=clx1"),
        (400, "kitta", f"{KITTA}?limit=0"),
        (400, "kitta", f"{KITTA}?limit=101"),
        (400, "kitta", f"{KITTA}?limit=ten"),
        (400, "kitta", f"{KITTA}?offset=-1"),
        (400, "kitta", f"{KITTA}?status=completed"),
        (400, "chanjing", DETAIL),
        (400, "chanjing", f"{CHANJING}/common/create_upload_url?service=photo&name=face.mp4"),
        (400, "chanjing", f"{CHANJING}/common/create_upload_url?service=lip_sync_video&name=voice.mp3"),
        (400, "apimodels", APIMODELS),
        (400, "apimodels", f"{APIMODELS}?taskId=clx1"),
    ],
)
def test_unknown_ids_and_odd_queries_are_refused(api: httpx.Client, status: int, vendor: str, path: str) -> None:
    assert_refused(vendor, api.get(path, headers=headers(vendor)), status, 40000)


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
