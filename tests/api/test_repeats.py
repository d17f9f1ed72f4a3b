"""The same request again: with one idempotency key it makes one job, tracked or submitted, whatever happens between."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest

from service.model import JobError, Observation, Source, Status
from tests.support import state
from tests.support.api import AUDIO, FILES, IMAGE, VIDEO, keyed, line, noted, nothing_written, problem, submit
from tests.support.web import API_KEY, OTHER_API_KEY, Web

TRACKED: Final[dict[str, Any]] = {"vendor": "apimodels", "vendor_job_id": "task-1"}
#: One that takes a place in its vendor's line.
SUBMITTED: Final[dict[str, Any]] = {"vendor": "chanjing", "input": {}, "vendor_input": FILES}

each_request = pytest.mark.parametrize(
    ("request_", "status"), [(TRACKED, 201), (SUBMITTED, 202)], ids=["tracked", "submitted"]
)


def check_there_is_one(web: Web, job: dict[str, Any]) -> None:
    """One job, which is sent once if it is to be sent."""
    submitted = job["status"] == "pending"
    assert [listed["id"] for listed in web.api.get("/v1/jobs").json()["data"]] == [job["id"]]
    assert line(web) == list(noted(web)) == ([f"submit-{job['id']}"] if submitted else [])
    assert web.redis.zcard(web.key("turns", "chanjing")) == submitted
    assert len(web.timeline(job["id"])) == 1
    assert len(web.events()) == (not submitted)


@each_request
def test_the_same_request_with_the_same_key_gets_the_same_answer(
    web: Web, request_: dict[str, Any], status: int
) -> None:
    first, second = (web.api.post("/v1/jobs", json=request_, headers=keyed()) for _ in range(2))
    assert first.status_code == second.status_code == status
    assert first.content == second.content
    assert first.headers["location"] == second.headers["location"]
    check_there_is_one(web, first.json())
    assert 86_390 < web.redis.ttl(web.key("idempotency", "studio:order-1")) <= 86_400


@each_request
def test_the_same_request_many_times_at_once_is_one_job(web: Web, request_: dict[str, Any], status: int) -> None:
    def post(_: int) -> tuple[int, bytes]:
        answer = web.api.post("/v1/jobs", json=request_, headers=keyed())
        return answer.status_code, answer.content

    with ThreadPoolExecutor(16) as pool:
        [(found, content)] = set(pool.map(post, range(64)))
    assert found == status
    check_there_is_one(web, json.loads(content))


def test_the_same_request_again_after_the_job_is_done_gets_the_job_as_it_is(web: Web) -> None:
    job = web.api.post("/v1/jobs", json=SUBMITTED, headers=keyed()).json()
    error = JobError(code="no_face", message="no face")
    web.record(
        Observation(source=Source.CALLBACK, status=Status.FAILED, error=error), vendor="chanjing", job_id=job["id"]
    )
    again = web.api.post("/v1/jobs", json=SUBMITTED, headers=keyed())
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, job["id"], "failed")
    assert again.json()["callback_url"] == job["callback_url"]
    assert len(line(web)) == 1
    assert noted(web) == {}


def test_of_different_requests_with_one_key_at_once_one_is_sent(web: Web) -> None:
    def post(number: int) -> tuple[int, str]:
        answer = web.api.post("/v1/jobs", json=SUBMITTED | {"metadata": {"n": number}}, headers=keyed())
        body = answer.json()
        return answer.status_code, body["id"] if answer.status_code == 202 else body["job_id"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(24)))
    assert sorted(status for status, _ in answers) == [202] + [409] * 23
    assert {job_id for _, job_id in answers} == {line(web)[0].removeprefix("submit-")}
    assert len(line(web)) == 1


@pytest.mark.parametrize(
    ("request_", "other"),
    [
        (SUBMITTED, SUBMITTED | {"metadata": {"take": 2}}),
        (SUBMITTED, SUBMITTED | {"vendor_input": FILES | {"volume": 7}}),
        (SUBMITTED, {"vendor": "kitta", "input": VIDEO | AUDIO}),
        (SUBMITTED, {"vendor": "chanjing"}),
        (TRACKED, TRACKED | {"vendor": "kitta"}),
        ({"vendor": "chanjing"}, SUBMITTED),
    ],
    ids=["metadata", "input", "vendor", "tracking", "a tracked job's vendor", "submitting"],
)
def test_another_request_with_the_same_key_is_a_conflict(
    web: Web, request_: dict[str, Any], other: dict[str, Any]
) -> None:
    job = web.api.post("/v1/jobs", json=request_, headers=keyed()).json()
    before = state.keys(web.redis), line(web)
    assert problem(web.api.post("/v1/jobs", json=other, headers=keyed()), 409)["job_id"] == job["id"]
    assert (state.keys(web.redis), line(web)) == before
    assert web.api.post("/v1/jobs", json=other, headers=keyed("order-2")).status_code in (201, 202)


@pytest.mark.parametrize("request_", [{"vendor": "apimodels"}, SUBMITTED], ids=["tracked", "submitted"])
def test_an_idempotency_key_belongs_to_the_api_key_that_used_it(web: Web, request_: dict[str, Any]) -> None:
    def post(request_: dict[str, Any], api_key: str) -> httpx.Response:
        return web.http.post("/v1/jobs", json=request_, headers=keyed(api_key=api_key))

    ours, theirs = (post(request_, api_key) for api_key in (API_KEY, OTHER_API_KEY))
    assert ours.status_code == theirs.status_code == (202 if request_ is SUBMITTED else 201)
    assert ours.json()["id"] != theirs.json()["id"]
    assert len(line(web)) == (2 if request_ is SUBMITTED else 0)
    assert post({"vendor": "kitta"}, OTHER_API_KEY).status_code == 409


def test_a_request_that_was_refused_does_not_use_its_key_up(web: Web, blind: Web) -> None:
    for refused in ({"input": IMAGE}, {"model": "kling-3"}, {"vendor": "nobody"}, {"colour": "red"}):
        problem(web.api.post("/v1/jobs", json=SUBMITTED | refused, headers=keyed()), 422)
    problem(blind.api.post("/v1/jobs", json=SUBMITTED, headers=keyed()), 409)
    problem(web.api.post("/v1/jobs", json={"vendor": "nobody"}, headers=keyed()), 422)
    assert nothing_written(web)
    web.track(**TRACKED)
    problem(web.api.post("/v1/jobs", json=TRACKED, headers=keyed()), 409)
    assert web.api.post("/v1/jobs", json=SUBMITTED, headers=keyed()).status_code == 202


def test_without_a_key_each_request_is_a_job(web: Web) -> None:
    jobs = [submit(web, "kitta", VIDEO | AUDIO) for _ in range(3)]
    assert len({job["id"] for job in jobs}) == len(set(line(web))) == 3


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_a_length(web: Web, key: str) -> None:
    problem(web.api.post("/v1/jobs", json={"vendor": "apimodels"}, headers={"Idempotency-Key": key}), 400)
