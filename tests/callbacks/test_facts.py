"""Callbacks of jobs that are known, or will be: by their own URL or the vendor's shared one, understood or not."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.callbacks import RECEIVED, apimodels, every_vendor, mac_of
from tests.support.processes import eventually
from tests.support.servers import valkey_server
from tests.support.vendors import ALL, Fixture, encoded
from tests.support.web import Web, web_process


def samples(vendor: str) -> list[Fixture]:
    """Every callback that the vendor's fixtures have."""
    return [fixture for fixture in ALL if (fixture.slug, fixture.call) == (vendor, "callback")]


def success(vendor: str) -> tuple[bytes, dict[str, Any]]:
    """The success that the vendor's page shows, and what is read of it; where it shows none, one that would be sent."""
    honest = [sample.data for sample in samples(vendor) if not sample.data["source"].startswith("hostile")]
    shown = [data for data in honest if data["expected"].get("status") == "succeeded"]
    found = min(shown, key=lambda data: ("vendor_job_id" not in data["expected"], " page" not in data["source"]))
    return encoded(found["body"]), found["expected"]


# -- understood -----------------------------------------------------------------------------------------


@every_vendor
def test_the_success_on_a_vendors_page_finishes_the_tracked_job(web: Web, vendor: str) -> None:
    body, expected = success(vendor)
    job = web.track(vendor, vendor_job_id=expected["vendor_job_id"])
    answer = web.callback(job["callback_url"], body)
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert answer.headers["content-type"] == "application/json"

    job = web.job(job["id"])
    assert (job["status"], job["progress"], job["archive"]) == ("succeeded", 100, "waiting")
    assert [output["url"] for output in job["outputs"]] == [output["url"] for output in expected["outputs"]]
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
        job, expected = web.track(vendor), sample.data["expected"]
        answer = web.callback(job["callback_url"], sample.body)
        problem = expected.get("problem")
        known = web.job(job["id"])
        kept = [letter["problem"] for letter in web.letters() if letter["job_id"] == job["id"]]
        met = (answer.status_code, known["status"], kept)
        meant = (statuses.get(problem, 422), expected.get("status", "pending"), [problem] if problem else [])
        if met != meant:
            wrong.append((sample.name, met, meant))
        if not problem:
            assert known["vendor_job_id"] == expected.get("vendor_job_id")
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


# -- the vendor's shared URL ----------------------------------------------------------------------------


@every_vendor
def test_a_verdict_by_the_shared_url_waits_for_the_vendors_own_answer(web: Web, vendor: str) -> None:
    body, expected = success(vendor)
    job = web.track(vendor, vendor_job_id=expected["vendor_job_id"])
    answer = web.callback(web.shared_url(vendor), body)
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
    body, expected = success(vendor)
    job = blind.track(vendor, vendor_job_id=expected["vendor_job_id"])
    assert blind.callback(blind.shared_url(vendor), body).json() == RECEIVED
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


# -- before the job is known, before its vendor's id is known -------------------------------------------


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


# -- not understood: kept, and the vendor is asked ------------------------------------------------------


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


def test_a_callback_with_the_id_of_a_job_that_is_already_tracked_moves_neither(web: Web) -> None:
    first, second = web.track("apimodels", vendor_job_id="task-1"), web.track("apimodels")
    assert web.callback(second["callback_url"], apimodels("task-1", "completed")).status_code == 422
    assert [web.job(job["id"])["status"] for job in (first, second)] == ["queued", "pending"]
    assert [(letter["job_id"], letter["problem"]) for letter in web.letters()] == [(second["id"], "other_job")]


# -- when Redis goes away -------------------------------------------------------------------------------

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
