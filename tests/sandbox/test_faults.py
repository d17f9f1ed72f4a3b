"""The sandbox's faults: each word does what the manual says, for every vendor that it means anything to."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import httpx
import pytest

from sandbox.faults import WORDS
from tests.support.customers import (
    APIMODELS,
    BEARER,
    BODIES,
    CALLING,
    CREATE,
    DETAIL,
    KITTA,
    LIPSYNC,
    PATHS,
    SPEED,
    TOKEN,
    TTS,
    VIDEO,
    Receiver,
    ask,
    assert_refused,
    body_of,
    entry,
    finished,
    headers,
    job_id,
    kinds,
    link,
    order,
    settled,
    submit,
    word,
)
from tests.support.processes import eventually
from tests.support.sandbox import SECONDS

# -- faults of callbacks --------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", CALLING)
def test_callback_lost(api: httpx.Client, receiver: Receiver, vendor: str) -> None:
    url, after = receiver.fresh(), receiver.fresh()
    id = submit(api, vendor, callback=url, faults="callback_lost")
    assert link(vendor, finished(api, vendor, id))
    submit(api, vendor, callback=after, faults="seconds:0")
    eventually(lambda: receiver.got(after))
    assert kinds(api, vendor, id) == []
    assert receiver.got(url) == []


@pytest.mark.parametrize("vendor", CALLING)
def test_callback_doubled(api: httpx.Client, receiver: Receiver, vendor: str) -> None:
    url = receiver.fresh()
    id = submit(api, vendor, callback=url, faults="callback_doubled")
    assert settled(api, vendor, id, 2) == [("doubled", 200)] * 2
    first, second = receiver.got(url)
    assert first.body == second.body


@pytest.mark.parametrize(("faults", "wait"), [("callback_late", SECONDS * 4), ("callback_late:0.3", 0.3)])
def test_callback_late(api: httpx.Client, receiver: Receiver, faults: str, wait: float) -> None:
    url, after = receiver.fresh(), receiver.fresh()
    submit(api, "apimodels", callback=url, faults=faults)
    submit(api, "apimodels", callback=after)
    eventually(lambda: receiver.got(after))
    [late] = eventually(lambda: receiver.got(url))
    assert wait - 0.1 < late.at - receiver.got(after)[0].at < wait + 1


@pytest.mark.parametrize(
    ("vendor", "stale"), [("lipsync_studio", "processing"), ("chanjing", 10), ("apimodels", "processing")]
)
def test_callback_reordered(api: httpx.Client, receiver: Receiver, vendor: str, stale: str | int) -> None:
    url = receiver.fresh()
    id = submit(api, vendor, callback=url, faults="callback_reordered")
    assert settled(api, vendor, id, 2) == [("verdict", 200), ("stale", 200)]
    verdict, second = (callback.json for callback in receiver.got(url))
    assert str(link(vendor, ask(api, vendor, id))) in json.dumps(verdict)
    assert word(vendor, second) == stale


@pytest.mark.parametrize("vendor", CALLING)
def test_callback_garbled(api: httpx.Client, receiver: Receiver, vendor: str) -> None:
    url = receiver.fresh()
    id = submit(api, vendor, callback=url, faults="callback_garbled")
    assert settled(api, vendor, id, 1) == [("garbled", 200)]
    with pytest.raises(json.JSONDecodeError):
        _ = receiver.got(url)[0].json


@pytest.mark.parametrize("vendor", CALLING)
@pytest.mark.parametrize("verdict", ["", ",job_failed"])
def test_callback_forged(api: httpx.Client, receiver: Receiver, vendor: str, verdict: str) -> None:
    url = receiver.fresh()
    id = submit(api, vendor, callback=url, faults=f"callback_forged{verdict}")
    assert [kind for kind, _ in settled(api, vendor, id, 3)] == ["forged_token", "forged_verdict", "verdict"]
    copied, opposite, true = receiver.near(url)
    paths = [copied.path, opposite.path, true.path]
    assert receiver.url + true.path == url
    assert copied.path[:-1] == true.path[:-1]
    assert len(set(paths)) == 3
    assert len({len(path) for path in paths}) == 1
    assert copied.body == true.body
    assert word(vendor, opposite.json) != word(vendor, true.json)


@pytest.mark.parametrize("vendor", CALLING)
def test_callback_early(api: httpx.Client, receiver: Receiver, vendor: str) -> None:
    url = receiver.fresh()
    id = submit(api, vendor, callback=url, faults="callback_early")
    [early] = receiver.got(url)
    assert id in early.body.decode()
    assert link(vendor, ask(api, vendor, id))


@pytest.mark.parametrize("vendor", ["lipsync_studio", "chanjing"])
def test_a_refused_callback_is_not_repeated(api: httpx.Client, receiver: Receiver, vendor: str) -> None:
    url, after = receiver.fresh(500, 500), receiver.fresh()
    id = submit(api, vendor, callback=url)
    submit(api, "apimodels", callback=after, faults="seconds:0.4")
    eventually(lambda: receiver.got(after))
    assert kinds(api, vendor, id) == [("verdict", 500)]


def test_apimodels_repeats_after_1_2_4_and_then_every_60_seconds(api: httpx.Client, receiver: Receiver) -> None:
    url = receiver.fresh(500, 404, 302, 400)
    id = submit(api, "apimodels", callback=url, faults="seconds:0")
    attempts = settled(api, "apimodels", id, 5)
    assert attempts == [("verdict", status) for status in (500, 404, 302, 400, 200)]
    got = receiver.got(url)
    assert len({callback.body for callback in got}) == 1
    for (before, after), seconds in zip(pairwise(got), (1, 2, 4, 60), strict=True):
        assert seconds / SPEED * 0.8 < after.at - before.at < seconds / SPEED + 1


def test_an_unreachable_receiver_is_noted(api: httpx.Client) -> None:
    id = submit(api, "lipsync_studio", callback="http://localhost:1/hook", faults="seconds:0")
    settled(api, "lipsync_studio", id, 1)
    [call] = entry(api, "lipsync_studio", id)["callbacks"]
    assert (call["http_status"], call["error"]) == (None, "ConnectError")


# -- faults of jobs, links and downloads ------------------------------------------------------------------


@pytest.mark.parametrize("vendor", PATHS)
def test_job_stuck(api: httpx.Client, vendor: str) -> None:
    stuck, after = submit(api, vendor, faults="job_stuck"), submit(api, vendor, faults="seconds:0.4")
    finished(api, vendor, after)
    assert word(vendor, ask(api, vendor, stuck)) in ("processing", 10)


@pytest.mark.parametrize("vendor", PATHS)
def test_unknown_status(api: httpx.Client, receiver: Receiver, vendor: str) -> None:
    url = receiver.fresh() if vendor in CALLING else None
    id = submit(api, vendor, callback=url, faults="unknown_status")
    answer = finished(api, vendor, id)
    assert word(vendor, answer) in ("reviewing", 25)
    assert link(vendor, answer) is None
    if url is not None:
        [callback] = eventually(lambda: receiver.got(url))
        assert word(vendor, callback.json) == word(vendor, answer)


def test_unknown_status_for_a_while(api: httpx.Client, receiver: Receiver) -> None:
    url = receiver.fresh()
    id = submit(api, "lipsync_studio", callback=url, faults="unknown_status:0.3")
    assert settled(api, "lipsync_studio", id, 2) == [("unknown_status", 200), ("verdict", 200)]
    assert [callback.json["status"] for callback in receiver.got(url)] == ["reviewing", "completed"]


@pytest.mark.parametrize("vendor", PATHS)
def test_no_face(api: httpx.Client, vendor: str) -> None:
    answer = finished(api, vendor, submit(api, vendor, faults="no_face"))
    assert "Face detection failed: no faces found" in json.dumps(answer)


def test_seconds(api: httpx.Client) -> None:
    id = submit(api, "kitta", faults="seconds:0")
    assert ask(api, "kitta", id)["status"] == "succeeded"


@pytest.mark.parametrize("vendor", PATHS)
def test_link_expired(api: httpx.Client, vendor: str) -> None:
    id = submit(api, vendor, faults="link_expired,seconds:0")
    links = [link(vendor, ask(api, vendor, id)) for _ in range(3)]
    assert links[0] != links[1] == links[2]
    assert [api.get(str(url)).status_code for url in links[:2]] == [410, 200]


def test_link_expired_in_a_callback(api: httpx.Client, receiver: Receiver) -> None:
    url = receiver.fresh()
    id = submit(api, "apimodels", callback=url, faults="link_expired")
    [callback] = eventually(lambda: receiver.got(url))
    [first] = json.loads(callback.json["data"]["resultJson"])["resultUrls"]
    assert api.get(first).status_code == 410
    assert api.get(str(link("apimodels", ask(api, "apimodels", id)))).status_code == 200


def test_link_dead(api: httpx.Client) -> None:
    id = submit(api, "kitta", faults="link_dead,seconds:0")
    links = [str(link("kitta", ask(api, "kitta", id))) for _ in range(3)]
    assert [api.get(url).status_code for url in links] == [410] * 3


def test_download_500(api: httpx.Client) -> None:
    url = str(link("kitta", ask(api, "kitta", submit(api, "kitta", faults="download_500,seconds:0"))))
    assert [api.get(url).status_code for _ in range(2)] == [500, 200]


def test_download_broken(api: httpx.Client) -> None:
    id = submit(api, "kitta", faults="download_broken,seconds:0")
    url = str(link("kitta", ask(api, "kitta", id)))
    chunks: list[bytes] = []
    with api.stream("GET", url) as answer, pytest.raises(httpx.RemoteProtocolError):
        chunks.extend(answer.iter_raw())
    got = b"".join(chunks)
    assert 0 < len(got) < int(answer.headers["content-length"])
    rest = api.get(url, headers={"Range": f"bytes={len(got)}-"})
    [output] = entry(api, "kitta", id)["outputs"]
    assert hashlib.sha256(got + rest.content).hexdigest() == output["sha256"]
    assert (output["attempts"], output["downloads"]) == (2, 1)


@pytest.mark.parametrize(("faults", "seconds"), [("download_slow", 5 / SPEED), ("download_slow:0.5", 0.5)])
def test_download_slow(api: httpx.Client, faults: str, seconds: float) -> None:
    url = str(link("kitta", ask(api, "kitta", submit(api, "kitta", faults=f"{faults},seconds:0"))))
    began = time.monotonic()
    with api.stream("GET", url) as answer:
        chunks = list(answer.iter_raw())
    assert seconds * 0.9 < time.monotonic() - began < seconds + 1
    assert len(chunks) > 5


@pytest.mark.parametrize("vendor", PATHS)
@pytest.mark.parametrize(
    ("word", "problem", "timeout"),
    [("submit_lost", httpx.RemoteProtocolError, 5), ("submit_hangs", httpx.ReadTimeout, 0.3), ("submit_500", None, 5)],
)
def test_a_submission_without_a_good_answer_is_a_job_all_the_same(
    api: httpx.Client, receiver: Receiver, vendor: str, word: str, problem: type[Exception] | None, timeout: float
) -> None:
    url = receiver.fresh() if vendor in CALLING else None
    body = body_of(vendor, callback=url, faults=word)
    with pytest.raises(problem) if problem else nullcontext():
        answer = api.post(PATHS[vendor], json=body, headers=headers(vendor), timeout=timeout)
        assert (answer.status_code, answer.headers["content-type"]) == (500, "text/html; charset=utf-8")
    [job] = api.get("/_sandbox/jobs").json()["data"]
    assert link(vendor, finished(api, vendor, job["id"]))
    assert url is None or settled(api, vendor, job["id"], 1) == [("verdict", 200)]
    assert api.get("/_sandbox/calls").json()["data"][vendor]["submit"] == 1


@pytest.mark.parametrize("vendor", PATHS)
def test_submit_refused(api: httpx.Client, vendor: str) -> None:
    order(api, "submit_refused", vendor=vendor, count=1)
    assert_refused(vendor, api.post(PATHS[vendor], json=BODIES[vendor], headers=headers(vendor)), 400, 40000)
    assert api.get("/_sandbox/jobs").json() == {"data": []}
    assert api.get("/_sandbox/calls").json() == {"data": {vendor: {"refused": 1}}}
    submit(api, vendor)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_faces(api: httpx.Client, receiver: Receiver, count: int) -> None:
    """Each can be synced in its session; what the session does not have cannot."""
    url = receiver.fresh()
    body = {"model": "kling-identify-face", "video_url": f"{VIDEO}?sandbox=faces:{count}", "callback_url": url}
    id = job_id("apimodels", api.post(APIMODELS, json=body, headers=BEARER).json())
    found = finished(api, "apimodels", id)["data"]["faceData"]
    [callback] = eventually(lambda: receiver.got(url))
    assert (callback.json["data"]["state"], json.loads(callback.json["data"]["resultJson"])) == ("completed", found)
    faces = [f"face_00{number}" for number in range(1, count + 1)]
    assert [face.keys() for face in found["face_list"]] == [{"face_id", "face_reference"}] * count
    assert [face["face_id"] for face in found["face_list"]] == faces
    body = BODIES["apimodels"] | {"session_id": found["session_id"]}
    answers = [api.post(APIMODELS, json=body | {"face_id": f"face_00{n}"}, headers=BEARER) for n in range(1, count + 2)]
    assert [answer.status_code for answer in answers] == [200] * count + [400]


# -- ordered faults ---------------------------------------------------------------------------------------


def test_ordered_faults_hit_the_next_submissions_of_their_vendor(api: httpx.Client) -> None:
    order(api, "job_failed", vendor="kitta", count=2)
    order(api, "seconds:0")
    ids = [submit(api, "kitta") for _ in range(3)]
    assert [ask(api, "kitta", id)["status"] for id in ids] == ["failed", "failed", "succeeded"]
    assert entry(api, "apimodels", submit(api, "apimodels"))["faults"] == ["seconds:0"]
    standing = {"data": [{"vendor": None, "faults": ["seconds:0"], "count": None}]}
    assert api.get("/_sandbox/faults").json() == standing
    assert api.delete("/_sandbox/faults").json() == {"data": []}
    assert entry(api, "kitta", submit(api, "kitta"))["faults"] == []


def test_a_refused_submission_uses_up_no_order(api: httpx.Client) -> None:
    order(api, "job_failed", count=1)
    assert api.post(KITTA, json={}, headers=BEARER).status_code == 400
    assert entry(api, "kitta", submit(api, "kitta"))["faults"] == ["job_failed"]


@pytest.mark.parametrize("vendor", PATHS)
@pytest.mark.parametrize(
    ("word", "status", "code"),
    [
        ("vendor_down", 503, None),
        ("vendor_500", 500, 50000),
        ("vendor_rate_limited", 429, 40001),
        ("vendor_garbage", 200, None),
    ],
)
def test_faults_of_a_whole_vendor(api: httpx.Client, vendor: str, word: str, status: int, code: int | None) -> None:
    id = submit(api, vendor)
    order(api, word, vendor=vendor)
    answers = [
        api.post(PATHS[vendor], json=BODIES[vendor], headers=headers(vendor)),
        api.get(
            {"kitta": f"{KITTA}/{id}", "chanjing": DETAIL, "apimodels": APIMODELS}.get(vendor, f"{LIPSYNC}/jobs/{id}")
        ),
    ]
    for answer in answers:
        if code is None:
            assert answer.status_code == status
            with pytest.raises(json.JSONDecodeError):
                answer.json()
        else:
            assert_refused(vendor, answer, status, code)
        assert answer.headers.get("retry-after") == ("2" if word == "vendor_rate_limited" else None)
    assert api.get("/_sandbox/calls").json()["data"][vendor] == {"faulted": 2, "submit": 1}
    other = next(name for name in PATHS if name != vendor)
    submit(api, other)
    api.delete("/_sandbox/faults")
    submit(api, vendor)


def test_vendor_hangs_for_so_many_calls(api: httpx.Client) -> None:
    order(api, "vendor_hangs", vendor="kitta", count=1)
    with pytest.raises(httpx.ReadTimeout):
        api.get(KITTA, headers=BEARER, timeout=0.2)
    assert api.get(KITTA, headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    "asked",
    [
        {"faults": ["calback_lost"]},
        {"faults": ["seconds"]},
        {"faults": ["faces"]},
        {"faults": ["job_failed:3"]},
        {"faults": []},
        {"faults": "callback_lost"},
        {"faults": ["callback_lost"], "count": 0},
        {"faults": ["callback_lost"], "times": 1},
        {"faults": ["callback_lost"], "vendor": "nobody"},
    ],
)
def test_orders_that_cannot_be_understood_are_refused(api: httpx.Client, asked: dict[str, Any]) -> None:
    answer = api.post("/_sandbox/faults", json=asked)
    assert answer.status_code == 400
    assert answer.json()["allowed"] == (sorted(WORDS) if "vendor" not in asked else list(PATHS))
    assert api.get("/_sandbox/faults").json() == {"data": []}


def test_faults_are_found_in_any_text(api: httpx.Client) -> None:
    body = BODIES["chanjing"] | {"tts_config": TTS | {"text": ["你好", "请 sandbox:job_failed, 谢谢"]}}
    id = api.post(CREATE, json=body, headers=TOKEN).json()["data"]
    assert entry(api, "chanjing", id)["faults"] == ["job_failed"]
    body = BODIES["kitta"] | {"videoUrl": "http://sandbox:8900/face.mp4?a=1&sandbox=seconds%3A0%2Cno_face&b=2"}
    id = api.post(KITTA, json=body, headers=BEARER).json()["taskId"]
    assert entry(api, "kitta", id)["faults"] == ["seconds:0", "no_face"]
