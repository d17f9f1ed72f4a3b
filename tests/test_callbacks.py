"""The vendors' door bell, rung for real: the web process of the Procfile in front of a real Valkey.

What is sent are the pages' own samples (the fixtures in `vendors/`) and everything that nobody should ever send.
"""

from __future__ import annotations

import bisect
import json
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest

from service.jobs.tokens import Tokens
from service.vendors import VENDORS
from tests.support.processes import eventually
from tests.support.servers import valkey_server
from tests.support.web import SECRET_KEYS, Web, web_process

FIXTURES: Final = Path(__file__).parent / "vendors"
RECEIVED: Final = {"received": True}

#: A job's id that no service has ever given out, in the form of one.
NEVER_GIVEN: Final = "job_000000000000000000000000"


every_vendor = pytest.mark.parametrize("vendor", list(VENDORS))


# -- what vendors send ------------------------------------------------------------------------------


class Sample:
    """A callback from a vendor's fixtures."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        self.name = path.stem
        self.vendor = path.parent.name
        self.source = str(data["source"])
        self.body: Any = data["body"] if "body" in data else data["raw"].encode("utf-8", "surrogateescape")
        self.expected: dict[str, Any] = data["expected"]

    @property
    def vendor_job_id(self) -> str | None:
        return self.expected.get("vendor_job_id")


def samples(vendor: str) -> list[Sample]:
    """Every callback that the vendor's fixtures have."""
    return [Sample(path) for path in sorted((FIXTURES / vendor).glob("callback-*.json"))]


def success(vendor: str) -> Sample:
    """The success that the vendor's page shows; for a vendor whose page shows none, the one that it would send."""
    honest = [sample for sample in samples(vendor) if not sample.source.startswith("hostile")]
    shown = [sample for sample in honest if sample.expected.get("status") == "succeeded" and sample.vendor_job_id]
    return min(shown, key=lambda sample: " page" not in sample.source)


def apimodels(vendor_job_id: str, state: str, **task: object) -> dict[str, object]:
    """A callback as apimodels words it."""
    result = json.dumps({"resultUrls": ["https://cdn.example.com/film.mp4"]}) if state == "completed" else None
    return {"code": 200, "data": {"taskId": vendor_job_id, "state": state, "resultJson": result, **task}}


def token_of(url: str) -> str:
    return url.rpartition("/")[2]


def mac_of(url: str) -> str:
    return url.rpartition(".")[2]


# -- understood -------------------------------------------------------------------------------------


@every_vendor
def test_the_success_on_a_vendors_page_finishes_the_tracked_job(web: Web, vendor: str) -> None:
    sample = success(vendor)
    job = web.track(vendor, vendor_job_id=sample.vendor_job_id)
    answer = web.callback(job["callback_url"], sample.body)
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert answer.headers["content-type"] == "application/json"

    job = web.job(job["id"])
    assert (job["status"], job["progress"], job["archive"]) == ("succeeded", 100, "waiting")
    assert [output["url"] for output in job["outputs"]] == [output["url"] for output in sample.expected["outputs"]]
    assert job["completed_at"]
    assert [event["type"] for event in web.events()] == ["job.submitted", "job.succeeded"]
    assert web.events()[-1]["data"] == job
    assert [(entry["source"], entry["applied"]) for entry in web.timeline(job["id"])] == [
        ("submit", True),
        ("callback", True),
    ]
    assert web.redis.lrange(f"rq:queue:{web.settings.queue('archive')}", 0, -1) == [f"archive-{job['id']}".encode()]


@every_vendor
def test_every_fixture_of_a_vendor_is_answered_as_it_reads(web: Web, vendor: str) -> None:
    statuses = {None: 200, "bad_json": 400}
    wrong = []
    for sample in samples(vendor):
        job = web.track(vendor)
        answer = web.callback(job["callback_url"], sample.body)
        problem = sample.expected.get("problem")
        known = web.job(job["id"])
        kept = [letter["problem"] for letter in web.letters() if letter["job_id"] == job["id"]]
        met = (answer.status_code, known["status"], kept)
        meant = (statuses.get(problem, 422), sample.expected.get("status", "pending"), [problem] if problem else [])
        if met != meant:
            wrong.append((sample.name, met, meant))
        if sample.vendor_job_id and not problem:
            assert known["vendor_job_id"] == sample.vendor_job_id
        web.redis.delete(web.key("vendor_jobs", vendor))  # the next sample may be about the same job of the vendor's
        web.redis.delete(web.key("quarantine"))
    assert wrong == []


def test_progress_comes_before_the_verdict(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    web.callback(job["callback_url"], apimodels("task-1", "processing"))
    assert web.job(job["id"])["status"] == "processing"
    web.callback(job["callback_url"], apimodels("task-1", "failed", failCode="E7", failMsg="no face in the video"))
    job = web.job(job["id"])
    assert job["status"] == "failed"
    assert job["error"] == {"code": "E7", "message": "no face in the video", "retryable": False}
    assert [event["type"] for event in web.events()] == ["job.submitted", "job.processing", "job.failed"]


def test_duplicates_and_stale_facts_are_answered_as_news_is(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    done = apimodels("task-1", "completed")
    first = web.callback(job["callback_url"], done)
    after_first = web.job(job["id"])
    again = [web.callback(job["callback_url"], body) for body in (done, apimodels("task-1", "processing"), done)]
    assert [answer.status_code for answer in (first, *again)] == [200] * 4
    assert {answer.content for answer in (first, *again)} == {first.content}
    assert first.json() == RECEIVED
    assert web.job(job["id"]) == after_first
    assert [event["type"] for event in web.events()] == ["job.submitted", "job.succeeded"]
    assert [entry["applied"] for entry in web.timeline(job["id"])] == [True, True, False, False, False]


def test_the_same_callback_many_times_at_once_is_one_event(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    bodies = [apimodels("task-1", "processing"), apimodels("task-1", "completed")] * 20
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda body: web.callback(job["callback_url"], body).status_code, bodies))
    assert answers == [200] * 40
    types = [event["type"] for event in web.events()]
    assert sorted(types) == sorted(set(types)), "each once"
    assert {"job.submitted", "job.succeeded"} <= set(types)
    assert web.job(job["id"])["status"] == "succeeded"
    assert web.redis.llen(f"rq:queue:{web.settings.queue('archive')}") == 1


def test_a_second_verdict_that_contradicts_the_first_makes_the_poller_ask(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    web.callback(job["callback_url"], apimodels("task-1", "completed"))
    assert not web.is_due(job)
    assert web.callback(job["callback_url"], apimodels("task-1", "failed")).json() == RECEIVED
    assert web.job(job["id"])["status"] == "succeeded"
    assert web.is_due(job)
    assert [(entry["status"], entry["applied"]) for entry in web.timeline(job["id"])[1:]] == [
        ("succeeded", True),
        ("failed", False),
    ]


def test_the_end_that_the_vendor_tells_is_the_jobs_in_utc(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    web.callback(job["callback_url"], apimodels("task-1", "completed", completeTime=1705123500000))
    assert web.job(job["id"])["completed_at"] == "2024-01-13T05:25:00Z"


# -- the vendor's shared URL --------------------------------------------------------------------------


@every_vendor
def test_a_verdict_by_the_shared_url_waits_for_the_vendors_own_answer(web: Web, vendor: str) -> None:
    sample = success(vendor)
    job = web.track(vendor, vendor_job_id=sample.vendor_job_id)
    answer = web.callback(web.shared_url(vendor), sample.body)
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert web.job(job["id"])["status"] == "queued"
    assert web.is_due(job)
    last = web.timeline(job["id"])[-1]
    assert (last["status"], last["applied"]) == ("succeeded", False)


def test_progress_by_the_shared_url_counts_at_once(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    web.callback(web.shared_url("apimodels"), apimodels("task-1", "processing"))
    assert web.job(job["id"])["status"] == "processing"


@every_vendor
def test_a_verdict_by_the_shared_url_counts_and_is_marked_where_the_vendor_cannot_be_asked(
    blind: Web, vendor: str
) -> None:
    sample = success(vendor)
    job = blind.track(vendor, vendor_job_id=sample.vendor_job_id)
    assert blind.callback(blind.shared_url(vendor), sample.body).json() == RECEIVED
    assert blind.job(job["id"])["status"] == "succeeded"
    last = blind.timeline(job["id"])[-1]
    assert last["applied"]
    assert "unconfirmed" in last["detail"]
    assert not blind.is_due(job)


@pytest.mark.parametrize(
    ("body", "http_status", "problem"),
    [
        (b"nope", 400, "bad_json"),
        (b'{"code": 200, "data": {"state": "completed", "resultUrls": ["https://a.example/b.mp4"]}}', 422, "no_job_id"),
        (b'{"code": 200, "data": {"taskId": "task-1", "state": "paused"}}', 422, "unknown_status"),
    ],
)
def test_what_came_by_the_shared_url_and_is_not_understood_is_kept(
    web: Web, body: bytes, http_status: int, problem: str
) -> None:
    assert web.callback(web.shared_url("apimodels"), body).status_code == http_status
    [letter] = web.letters()
    assert (letter["vendor"], letter["job_id"], letter["problem"]) == ("apimodels", None, problem)


def test_an_unknown_word_by_the_shared_url_makes_the_poller_ask_about_the_job_it_names(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    assert web.callback(web.shared_url("apimodels"), apimodels("task-1", "paused")).status_code == 422
    assert web.is_due(job)
    assert [letter["job_id"] for letter in web.letters()] == [job["id"]]


@pytest.mark.parametrize("body", [b"", b"[" + b" " * (16 * 2**20)], ids=["empty", "too large"])
def test_what_names_no_job_is_not_parked_for_one(web: Web, body: bytes) -> None:
    assert web.callback(web.shared_url("apimodels"), body).status_code in (400, 413)
    assert web.redis.keys(web.key("parked") + "*") == []


# -- before the job is known, before its vendor's id is known ---------------------------------------------


def test_a_callback_for_a_job_that_nobody_registered_is_applied_when_somebody_does(web: Web) -> None:
    answer = web.callback(web.shared_url("apimodels"), apimodels("task-1", "processing"))
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert web.events() == []
    job = web.track("apimodels", vendor_job_id="task-1")
    assert job["status"] == "processing"
    assert [event["type"] for event in web.events()] == ["job.submitted", "job.processing"]
    parked = web.timeline(job["id"])[-1]
    assert (parked["source"], parked["applied"]) == ("callback", True)
    assert parked["received_at"] <= parked["at"]


def test_a_parked_verdict_is_confirmed_when_its_job_is_registered(web: Web) -> None:
    web.callback(web.shared_url("apimodels"), apimodels("task-1", "completed"))
    job = web.track("apimodels", vendor_job_id="task-1")
    assert job["status"] == "queued"
    assert web.is_due(job)


def test_parked_callbacks_are_applied_in_their_order_where_the_vendor_cannot_be_asked(blind: Web) -> None:
    for state in ("processing", "completed"):
        blind.callback(blind.shared_url("apimodels"), apimodels("task-1", state))
    job = blind.track("apimodels")
    answer = blind.api.patch(f"/v1/jobs/{job['id']}", json={"vendor_job_id": "task-1"})
    assert answer.json()["status"] == "succeeded"
    assert [event["type"] for event in blind.events()] == ["job.submitted", "job.processing", "job.succeeded"]


def test_a_parked_callback_of_one_vendor_is_not_another_vendors(web: Web) -> None:
    web.callback(web.shared_url("apimodels"), apimodels("task-1", "processing"))
    assert web.track("lipsync_studio", vendor_job_id="task-1")["status"] == "queued"


def test_a_callback_that_overtakes_the_vendors_answer_tells_the_vendors_id(web: Web) -> None:
    job = web.track("apimodels")
    assert (job["status"], job["vendor_job_id"]) == ("pending", None)
    assert web.callback(job["callback_url"], apimodels("task-1", "completed")).json() == RECEIVED
    assert [web.job(job["id"])[name] for name in ("vendor_job_id", "status")] == ["task-1", "succeeded"]
    assert [event["type"] for event in web.events()] == ["job.submitted", "job.succeeded"]

    answer = web.api.patch(f"/v1/jobs/{job['id']}", json={"vendor_job_id": "task-1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert web.api.patch(f"/v1/jobs/{job['id']}", json={"vendor_job_id": "task-2"}).status_code == 409


# -- not understood: kept, and the vendor is asked ----------------------------------------------------


@pytest.mark.parametrize(
    ("body", "http_status", "problem"),
    [
        pytest.param(b"{'state': 'completed'}", 400, "bad_json", id="not JSON"),
        pytest.param(b"[]", 422, "bad_shape", id="not a task"),
        pytest.param(apimodels("task-1", "paused"), 422, "unknown_status", id="unknown word"),
        pytest.param(apimodels("task-1", "completed", resultJson="{}"), 422, "no_output", id="success without a URL"),
        pytest.param(apimodels("task-2", "completed"), 422, "other_job", id="another job"),
    ],
)
def test_what_is_not_understood_is_kept_and_the_vendor_is_asked_at_once(
    web: Web, body: object, http_status: int, problem: str
) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    before = web.job(job["id"])
    assert not web.is_due(job)
    answer = web.callback(job["callback_url"], body)
    assert answer.status_code == http_status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == http_status

    assert web.is_due(job)
    assert web.job(job["id"]) == before, "neither finished nor failed"
    [letter] = web.letters()
    assert (letter["vendor"], letter["job_id"], letter["problem"]) == ("apimodels", job["id"], problem)
    raw = web.api.get(f"/v1/quarantine/{letter['id']}").json()["raw"]
    assert raw == (body.decode() if isinstance(body, bytes) else json.dumps(body))
    last = web.timeline(job["id"])[-1]
    assert (last["source"], last["applied"], last["problem"]) == ("callback", False, problem)


def test_the_same_callback_that_is_not_understood_is_one_letter(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    for _ in range(3):
        web.callback(job["callback_url"], b"nope")
    assert [letter["count"] for letter in web.letters()] == [3]


def test_a_callback_with_the_id_of_a_job_that_is_already_tracked_moves_neither(web: Web) -> None:
    first, second = web.track("apimodels", vendor_job_id="task-1"), web.track("apimodels")
    assert web.callback(second["callback_url"], apimodels("task-1", "completed")).status_code == 422
    assert [web.job(job["id"])["status"] for job in (first, second)] == ["queued", "pending"]
    assert [(letter["job_id"], letter["problem"]) for letter in web.letters()] == [(second["id"], "other_job")]


# -- garbage ------------------------------------------------------------------------------------------


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def garbage() -> dict[str, bytes]:
    """Bodies by name. Many have junk in the place of a task's values, so that it reaches behind the first look."""
    chance = random.Random(20)
    task = (
        b'{"id": "x", "taskId": "x", "status": %s, "state": %s, "resultJson": %s, "progress": %s, "executionTime": %s}'
    )

    def with_value(value: bytes) -> bytes:
        return b'{"code": %s, "data": %s}' % (value, task % ((value,) * 5))

    found = {f"{size} random bytes": chance.randbytes(size) for size in (1, 2, 16, 1000, 100_000)}
    found |= {f"nested {depth} deep": deep(depth) for depth in (900, 1000, 100_000)}
    found |= {f"nested {depth} deep in a task": with_value(deep(depth)) for depth in (900, 1000, 100_000)}
    found |= {f"objects nested {depth} deep": b'{"data":' * depth + b"{}" + b"}" * depth for depth in (900, 100_000)}
    found |= {
        f"{name} in a task": with_value(value)
        for name, value in {
            "NaN": b"NaN",
            "Infinity": b"-Infinity",
            "a float beyond a float": b"1e999",
            "an integer of 20 digits": b"9" * 20,
            "an integer of 400 digits": b"9" * 400,
            "an integer of 5000 digits": b"9" * 5000,
            "minus zero": b"-0",
            "a lone surrogate": rb'"\ud800"',
            "two surrogates in the wrong order": rb'"\udc00\ud800"',
            "a NUL": rb'"\u0000"',
            "bad UTF-8": b'"\xff\xfe\xfd"',
            "an encoded surrogate": b'"\xed\xa0\x80"',
            "an overlong slash": b'"\xc0\xaf"',
            "a long word": b'"' + b"w" * 100_000 + b'"',
            "null": b"null",
            "true": b"true",
            "an empty object": b"{}",
        }.items()
    }
    found |= {
        "nothing": b"",
        "white space": b" \r\n\t ",
        "a byte order mark": b"\xef\xbb\xbf{}",
        "UTF-16": '{"status": "completed"}'.encode("utf-16"),
        "duplicate keys": b'{"id": "a", "id": "x", "taskId": "a", "taskId": "x", "status": "failed", "status": []}',
        "bad UTF-8 as a key": b'{"\xff": 1, "status": "processing"}',
        "an empty key": b'{"": {"": ""}}',
        "two documents": b"{}{}",
        "cut short": b'{"status": "comple',
        "a form": b"status=completed&id=1",
        "a multipart form": b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
        "HTML": b"<!doctype html><h1>502</h1>",
        "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        "50,000 keys": b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(50_000)) + b"}",
    }
    return found


GARBAGE: Final = garbage()


@every_vendor
@pytest.mark.parametrize("name", list(GARBAGE))
def test_garbage_is_refused_or_read_and_never_an_error_of_ours(web: Web, vendor: str, name: str) -> None:
    job = web.track(vendor, vendor_job_id="x")
    for url in (job["callback_url"], web.shared_url(vendor)):
        answer = web.callback(url, GARBAGE[name])
        assert answer.status_code in (200, 400, 422), answer.text
        assert answer.status_code == 200 or answer.headers["content-type"] == "application/problem+json"
    answers = [web.api.get(path).status_code for path in (f"/v1/jobs/{job['id']}", "/v1/jobs", "/v1/quarantine")]
    assert answers == [200, 200, 200]
    assert web.api.get(f"/v1/jobs/{job['id']}/timeline").status_code == 200
    assert web.process.exit_code is None


def test_a_job_whose_result_is_nested_as_deep_as_is_read_can_still_be_used(web: Web) -> None:
    def job_nested(depth: int) -> tuple[str, int]:
        """A job that was given a result of this depth, and how the callback was answered."""
        job = web.track("apimodels")
        found = f'{{"session_id": "s", "face_list": [{deep(depth).decode()}]}}'
        body = apimodels(job["id"], "completed", model="kling-video/kling-identify-face", faceData=found)
        return job["id"], web.callback(job["callback_url"], body).status_code

    #: Where reading ends depends on the interpreter, and on how deep its stack is by then.
    limit = bisect.bisect_left(range(10_000), True, key=lambda depth: job_nested(depth)[1] != 200)
    unusable = {}
    for depth in range(limit - 20, limit + 2):
        job_id, answer = job_nested(depth)
        # An error of ours ends its connection.
        once = {"Connection": "close"}
        attached = web.api.patch(f"/v1/jobs/{job_id}", json={"metadata": {"a": 1}}, headers=once)
        if answer not in (200, 422) or attached.status_code != 200:
            unusable[depth - limit] = (answer, attached.status_code)
    assert unusable == {}


# -- limits -------------------------------------------------------------------------------------------


def pieces(size: int) -> Iterator[bytes]:
    """A body of `size` bytes that does not say how long it is."""
    piece = b" " * 2**16
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_callback_over_the_limit_is_refused_and_the_vendor_is_asked(web: Web, chunked: bool) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    size = web.settings.max_callback_bytes + 1
    answer = web.http.post(job["callback_url"], content=pieces(size) if chunked else b" " * size)
    assert ("transfer-encoding" in answer.request.headers) == chunked
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert web.is_due(job)
    assert web.timeline(job["id"])[-1]["problem"] == "too_large"
    assert web.letters() == [], "nothing of it is kept"


def test_a_callback_of_exactly_the_limit_is_read(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    body = json.dumps(apimodels("task-1", "processing")).encode()
    answer = web.callback(job["callback_url"], body.ljust(web.settings.max_callback_bytes))
    assert answer.json() == RECEIVED


def test_a_callback_that_echoes_megabytes_of_audio_is_read(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    echo = json.dumps({"model": "kling-advanced-lip-sync", "audio": "QUFB" * (2 * 2**20)})
    answer = web.callback(job["callback_url"], apimodels("task-1", "completed", param=echo))
    assert int(answer.request.headers["content-length"]) > 8 * 2**20
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert web.job(job["id"])["status"] == "succeeded"
    assert len(web.timeline(job["id"])[-1]["raw"]) <= 64 * 1024


def test_a_callback_that_breaks_off_is_nothing(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    connection = begin(web, job["callback_url"], {"Content-Length": "1000"}, b'{"code": 200, ')
    connection.close()
    web.process.wait_until(lambda: job["id"] in str(web.lines("callback cut short")), "a line about it")
    assert len(web.timeline(job["id"])) == 1
    assert web.letters() == []
    assert not web.is_due(job)


# -- who may ring ---------------------------------------------------------------------------------------


def forged(web: Web) -> dict[str, str]:
    """Callback URLs that are not ours, by what is wrong with them."""
    job, other = web.track("apimodels", vendor_job_id="task-1"), web.track("apimodels", vendor_job_id="task-2")
    url, token = job["callback_url"], token_of(job["callback_url"])
    base = f"{web.url}/callbacks"
    return {
        "unknown vendor": f"{base}/nobody/{token}",
        "unknown vendor, well signed": Tokens(SECRET_KEYS, web.url).url("nobody", job["id"]),
        "another vendor's": f"{base}/kitta/{token}",
        "another job's": f"{base}/apimodels/{job['id']}.{mac_of(other['callback_url'])}",
        "the shared one's": f"{base}/apimodels/{job['id']}.{mac_of(web.shared_url('apimodels'))}",
        "a job's as the shared one": f"{base}/apimodels/shared.{mac_of(url)}",
        "signed by a stranger": Tokens(("a stranger's key",), web.url).url("apimodels", job["id"]),
        "one letter off": url[:-5] + ("A" if url[-5] != "A" else "B") + url[-4:],
        "one letter short": url[:-1],
        "padded": url + "=",
        "nothing after the dot": f"{base}/apimodels/{job['id']}.",
        "no dot": f"{base}/apimodels/{job['id']}",
        "no token": f"{base}/apimodels/",
        "no vendor": f"{base}/",
        "more after it": f"{url}/more",
        "two dots": f"{base}/apimodels/{job['id']}..{mac_of(url)}",
        "another case": url[: -len(token)] + token.swapcase(),
        "no UTF-8": f"{base}/apimodels/%ff%fe.{mac_of(url)}",
        "no ASCII": f"{base}/apimodels/{job['id']}.%E4%B8%AD",
        "NUL": f"{base}/apimodels/{job['id']}%00.{mac_of(url)}",
        "a job that never was": Tokens(SECRET_KEYS, web.url).url("apimodels", NEVER_GIVEN),
    }


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_whatever_is_wrong_with_a_url_the_answer_is_the_same(web: Web, method: str) -> None:
    answers = {}
    body = json.dumps(apimodels("task-1", "completed")).encode()
    for wrong, url in forged(web).items():
        if method == "POST" or wrong != "a job that never was":
            answer = web.http.request(method, url, content=body)
            headers = {name: value for name, value in answer.headers.items() if name != "date"}
            answers[wrong] = (answer.status_code, headers, answer.content)
    expected = answers["signed by a stranger"]
    assert expected[0] == 404
    assert expected[1]["content-type"] == "application/problem+json"
    assert {wrong for wrong, answer in answers.items() if answer != expected} == set()
    assert {job["status"] for job in web.api.get("/v1/jobs").json()["data"]} == {"queued"}
    assert web.letters() == []


def test_every_secret_key_verifies_and_the_first_signs(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    by_first, by_second = (Tokens((key,), web.url).url("apimodels", job["id"]) for key in SECRET_KEYS)
    assert job["callback_url"] == by_first
    assert web.callback(by_second, apimodels("task-1", "processing")).json() == RECEIVED
    assert web.job(job["id"])["status"] == "processing"


def begin(web: Web, url: str, headers: dict[str, str], body: bytes = b"") -> HTTPConnection:
    """A request of which only the head and the first bytes of the body are sent."""
    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port or 80, timeout=5)
    connection.putrequest("POST", parts.path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection


def test_the_body_behind_a_forged_url_is_not_waited_for(web: Web) -> None:
    url = forged(web)["signed by a stranger"]
    connection = begin(web, url, {"Content-Length": "1000000"}, b'{"code": 200, ')
    answer: HTTPResponse = connection.getresponse()
    assert answer.status == 404
    connection.close()


@pytest.mark.parametrize(("good", "first_line"), [(True, b"HTTP/1.1 100 "), (False, b"HTTP/1.1 404 ")])
def test_only_a_good_url_is_told_to_go_on(web: Web, good: bool, first_line: bytes) -> None:
    urls = forged(web)
    url = web.shared_url("apimodels") if good else urls["signed by a stranger"]
    connection = begin(web, url, {"Content-Length": "1000000", "Expect": "100-continue"})
    assert connection.sock is not None
    assert connection.sock.recv(4096).startswith(first_line)
    connection.close()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_good_url_takes_nothing_but_post(web: Web, method: str) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    answer = web.http.request(method, job["callback_url"])
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(web.timeline(job["id"])) == 1


# -- the log --------------------------------------------------------------------------------------------


def test_every_callback_has_one_line_that_says_whose_it_was_and_what_became_of_it(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    sent = [
        ("apply", 200, apimodels("task-1", "completed")),
        ("same", 200, apimodels("task-1", "completed")),
        ("stale", 200, apimodels("task-1", "processing")),
        ("ask", 422, apimodels("task-1", "paused")),
        ("ask", 400, b"nope"),
        ("ask", 422, apimodels("task-2", "completed")),
    ]
    for _, _, body in sent:
        web.callback(job["callback_url"], body)

    def lines() -> list[dict[str, Any]]:
        return [line for line in web.lines("callback") if line.get("job_id") == job["id"]]

    web.process.wait_until(lambda: len(lines()) == len(sent), "a line for each")
    assert [(line["outcome"], line["http_status"]) for line in lines()] == [(word, status) for word, status, _ in sent]
    assert {line["vendor"] for line in lines()} == {"apimodels"}
    assert all(line["ms"] >= 0 for line in lines())


def test_a_parked_callback_has_a_line_without_a_job(web: Web) -> None:
    seen = len(web.lines("callback"))
    web.callback(web.shared_url("lipsync_studio"), {"id": "nobody-s", "status": "processing"})
    web.process.wait_until(lambda: len(web.lines("callback")) == seen + 1, "its line")
    line = web.lines("callback")[-1]
    assert (line["vendor"], line["job_id"], line["outcome"]) == ("lipsync_studio", None, "parked")


def test_no_token_is_ever_logged(web: Web) -> None:
    logged_before = len(web.process.output())
    job = web.track("apimodels", vendor_job_id="task-1")
    url, shared = job["callback_url"], web.shared_url("apimodels")
    path = urlsplit(url).path
    for target in (url, shared, f"{url}?token={token_of(url)}", f"{url}/", url.replace("/job_", "/%6Aob_")):
        for body in (b"nope", url.encode(), {"data": {"taskId": url, "state": url}}, apimodels(url, "failed")):
            web.callback(target, body)
        web.http.get(target)
    web.api.get(f"/v1/jobs/{token_of(url)}")
    web.api.get(f"/v1{path}")
    web.api.post("/v1/jobs", json={"vendor": url, "vendor_job_id": url, "metadata": {"callback": url}})
    for request in (f"POST {path}\r\n\r\n", f"POST {path} HTTP/9.9\r\n\r\n", f"POST {path}\xff HTTP/1.1\r\n\r\n"):
        send_raw(web, request.encode("latin-1"))
    web.callback(url, apimodels("task-1", "processing"))
    web.process.wait_until(
        lambda: [line for line in web.lines("callback") if line.get("status") == "processing"], "the last line"
    )
    macs = {mac_of(url), mac_of(shared)}
    assert {mac for mac in macs if mac in web.process.output()} == set()
    assert "Traceback" not in web.process.output()[logged_before:]


def send_raw(web: Web, request: bytes) -> None:
    """Send what no client library would, and wait until the server has hung up or answered."""
    parts = urlsplit(web.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=5) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(4096).startswith(b"HTTP/1.1 5")


def test_an_error_that_quotes_the_callback_url_does_not_publish_its_token(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    words = f"could not deliver to {job['callback_url']}"
    web.callback(job["callback_url"], apimodels("task-1", "failed", failMsg=words))
    secret = mac_of(job["callback_url"])
    assert secret not in json.dumps(web.job(job["id"]))
    assert secret not in json.dumps(web.events())
    assert secret not in json.dumps(web.timeline(job["id"]))


# -- when Redis goes away ---------------------------------------------------------------------------------


#: Not `everysec`: while a background fsync is under way, the next write waits for it in memory, answered already.
DURABLE: Final = {"appendfsync": "always"}


def test_what_was_acknowledged_survives_the_death_of_redis(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=DURABLE) as valkey, web_process(tmp_path, {"REDIS_URL": valkey.url}) as web:
        job = web.track("apimodels", vendor_job_id="task-1")
        answer = web.callback(job["callback_url"], apimodels("task-1", "completed"))
        valkey.process.send(signal.SIGKILL)
        assert answer.json() == RECEIVED
        assert valkey.process.wait() == -signal.SIGKILL
        with valkey_server(tmp_path, port=valkey.port, config=DURABLE):
            eventually(lambda: web.api.get("/readyz").status_code == 200, "readiness")
            assert web.job(job["id"])["status"] == "succeeded"
            assert [event["type"] for event in web.events()] == ["job.submitted", "job.succeeded"]
            assert web.redis.zscore(web.key("tasks"), f"archive-{job['id']}"), "its outputs are still to be stored"


def test_while_redis_is_away_callbacks_are_asked_to_come_again_and_then_taken(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=DURABLE) as valkey, web_process(tmp_path, {"REDIS_URL": valkey.url}) as web:
        job = web.track("apimodels", vendor_job_id="task-1")
        valkey.process.kill()
        began = time.monotonic()
        answers = [
            web.callback(job["callback_url"], apimodels("task-1", "completed")),
            web.callback(job["callback_url"], b"nope"),
            web.callback(web.shared_url("apimodels"), apimodels("task-1", "completed")),
            web.api.get(f"/v1/jobs/{job['id']}"),
            web.api.get("/v1/jobs"),
            web.api.post("/v1/jobs", json={"vendor": "apimodels"}),
            web.api.get("/v1/quarantine"),
        ]
        assert time.monotonic() - began < 5
        assert [answer.status_code for answer in answers] == [503] * len(answers)
        assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert web.http.get("/healthz").status_code == 200
        not_ready = web.http.get("/readyz")
        assert (not_ready.status_code, int(not_ready.headers["retry-after"]) > 0) == (503, True)
        assert web.callback(f"{web.url}/callbacks/apimodels/{job['id']}.forged", b"{}").status_code == 404
        web.process.wait_until(lambda: [line for line in web.lines("callback") if line["http_status"] == 503], "a line")
        assert mac_of(job["callback_url"]) not in web.process.output()

        with valkey_server(tmp_path, port=valkey.port, config=DURABLE):

            def taken() -> httpx.Response | None:
                answer = web.callback(job["callback_url"], apimodels("task-1", "completed"))
                return answer if answer.status_code != 503 else None

            assert eventually(taken, "another answer than 503").json() == RECEIVED
            assert web.http.get("/readyz").status_code == 200
            assert web.job(job["id"])["status"] == "succeeded"
            assert len(web.timeline(job["id"])) == 2, "what was refused left nothing behind"


def test_while_redis_is_full_callbacks_are_asked_to_come_again(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as valkey, web_process(tmp_path, {"REDIS_URL": valkey.url}) as web:
        job = web.track("apimodels", vendor_job_id="task-1")
        web.redis.config_set("maxmemory", "1")
        assert web.callback(job["callback_url"], apimodels("task-1", "completed")).status_code == 503
        assert web.http.get("/readyz").status_code == 503
        assert web.job(job["id"])["status"] == "queued", "it can still be read"
        web.redis.config_set("maxmemory", "0")
        assert web.callback(job["callback_url"], apimodels("task-1", "completed")).json() == RECEIVED
        assert web.job(job["id"])["status"] == "succeeded"
