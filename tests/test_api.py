"""The API as its users meet it: the web process of the Procfile, a real Valkey, real files and a real S3 server."""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import pytest

from service.api.jobs import MAX_METADATA
from service.api.problems import MAX_BODY
from service.deployment import opened
from service.jobs.scripts import pack_body
from service.model import Archive, Job, Observation, Output, Problem, Source, Status, Stored
from service.storage import UNKNOWN_TYPE, Storage, object_key
from service.vendors import VENDORS
from tests.support.files import MP4
from tests.support.processes import free_port
from tests.support.servers import S3, valkey_server
from tests.support.web import (
    API_KEY,
    OTHER_API_KEY,
    Web,
    environment_of,
    start_web,
    web_process,
)

NO_SUCH_JOB: Final = "job_000000000000000000000000"
PROBLEM: Final = "application/problem+json"


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem in an answer, which has to be a whole one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = dict(answer.json())
    assert body["status"] == status
    assert all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail"))
    return body


def bad_fields(answer: httpx.Response) -> list[str]:
    """The fields that a 422 names, each of which says what would be right."""
    errors = problem(answer, 422)["errors"]
    assert all(error["detail"] for error in errors)
    return sorted(error["field"] for error in errors)


def secret_of(job: dict[str, Any]) -> str:
    return str(job["callback_url"].rpartition(".")[2])


# -- who may use it -----------------------------------------------------------------------------------

ROUTES: Final = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", f"/v1/jobs/{NO_SUCH_JOB}"),
    ("PATCH", f"/v1/jobs/{NO_SUCH_JOB}"),
    ("GET", f"/v1/jobs/{NO_SUCH_JOB}/timeline"),
    ("GET", f"/v1/jobs/{NO_SUCH_JOB}/outputs/0"),
    ("POST", f"/v1/jobs/{NO_SUCH_JOB}/refresh"),
    ("GET", "/v1/quarantine"),
    ("GET", f"/v1/quarantine/qua_{'0' * 24}"),
    ("POST", f"/v1/quarantine/qua_{'0' * 24}/replay"),
    ("GET", "/v1/vendors"),
    ("GET", "/v1/no-such-thing"),
    ("DELETE", "/v1/jobs"),
]

REFUSED: Final = [
    None,
    "",
    "Bearer",
    "Bearer wrong",
    f"Bearer {API_KEY}x",
    f"Bearer {API_KEY[:-1]}",
    f"Bearer studio:{API_KEY}",
    f"Bearer {API_KEY} {API_KEY}",
    f"Basic {API_KEY}",
    f"Token {API_KEY}",
    API_KEY,
]


def test_without_a_key_every_route_gives_the_same_refusal(web: Web) -> None:
    answers = set()
    asked = [(route, given) for route in ROUTES for given in REFUSED[:3]] + [(ROUTES[0], given) for given in REFUSED]
    for (method, path), given in asked:
        answer = web.http.request(method, path, headers={} if given is None else {"Authorization": given})
        problem(answer, 401)
        answers.add((answer.content, answer.headers["www-authenticate"], answer.headers["content-length"]))
    [(_, challenge, _)] = answers
    assert challenge.startswith("Bearer")
    assert web.redis.keys("callsheet:job*") == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", [API_KEY, OTHER_API_KEY])
def test_every_key_opens_the_api(web: Web, scheme: str, key: str) -> None:
    answer = web.http.get("/v1/jobs", headers={"Authorization": f"{scheme} {key}"})
    assert (answer.status_code, answer.json()) == (200, {"data": [], "next_cursor": None})


# -- track --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", list(VENDORS))
def test_a_job_that_somebody_else_submitted_is_tracked(web: Web, vendor: str) -> None:
    answer = web.api.post("/v1/jobs", json={"vendor": vendor, "vendor_job_id": "task-1", "metadata": {"shot": 7}})
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert job.pop("callback_url").startswith(f"{web.url}/callbacks/{vendor}/{job['id']}.")
    assert (job["vendor"], job["vendor_job_id"], job["status"]) == (vendor, "task-1", "queued")
    assert (job["metadata"], job["archive"], job["outputs"]) == ({"shot": 7}, "none", [])
    assert job["created_at"] == job["submitted_at"] < job["expires_at"]
    assert set(job) == set(Job.__struct_fields__)
    assert web.api.get(answer.headers["location"]).json() == job
    assert [event["type"] for event in web.events()] == ["job.submitted"]
    assert web.redis.zscore(web.key("polls", vendor), job["id"]), "the vendor is asked, sooner or later"


def test_a_job_that_is_yet_to_be_submitted_waits_for_its_vendors_id(web: Web) -> None:
    job = web.track("apimodels", model="kling-identify-face")
    assert (job["status"], job["vendor_job_id"], job["submitted_at"]) == ("pending", None, None)
    assert job["model"] == "kling-identify-face"
    assert web.events() == []
    assert web.redis.zscore(web.key("polls", "apimodels"), job["id"]) is None


def test_a_job_of_a_vendor_that_cannot_be_asked_says_so(blind: Web) -> None:
    job = blind.track("apimodels", vendor_job_id="task-1")
    [entry] = blind.timeline(job["id"])
    assert "APIMODELS_API_KEY" in entry["detail"]


def test_a_vendors_job_is_tracked_once(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    answer = web.api.post("/v1/jobs", json={"vendor": "apimodels", "vendor_job_id": "task-1"})
    body = problem(answer, 409)
    assert body["job_id"] == job["id"]
    assert [error["field"] for error in body["errors"]] == ["vendor_job_id"]
    assert web.track("kitta", vendor_job_id="task-1")["id"] != job["id"], "another vendor may use the same id"
    assert len(web.api.get("/v1/jobs").json()["data"]) == 2


# -- what cannot be tracked -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["vendor"]),
        ({"vendor": "nobody"}, ["vendor"]),
        ({"vendor": None}, ["vendor"]),
        ({"vendor": ["apimodels"]}, ["vendor"]),
        ({"vendor": "apimodels", "vendor_job_id": ""}, ["vendor_job_id"]),
        ({"vendor": "apimodels", "vendor_job_id": "a b"}, ["vendor_job_id"]),
        ({"vendor": "apimodels", "vendor_job_id": "a\n"}, ["vendor_job_id"]),
        ({"vendor": "apimodels", "vendor_job_id": "x" * 201}, ["vendor_job_id"]),
        ({"vendor": "apimodels", "vendor_job_id": 7}, ["vendor_job_id"]),
        ({"vendor": "apimodels", "model": 7}, ["model"]),
        ({"vendor": "apimodels", "metadata": []}, ["metadata"]),
        ({"vendor": "apimodels", "metadata": None}, ["metadata"]),
        ({"vendor": "apimodels", "metadata": {"a": "x" * MAX_METADATA}}, ["metadata"]),
        ({"vendor": "apimodels", "Vendor": "apimodels", "colour": "red"}, ["Vendor", "colour"]),
        (
            {"vendor": 1, "vendor_job_id": 2, "model": 3, "metadata": 4, "é": 5},
            ["metadata", "model", "vendor", "vendor_job_id", "é"],
        ),
        ({"vendor": "nobody", "metadata": {"a": "x" * MAX_METADATA}}, ["metadata", "vendor"]),
        ({"vendor": "nobody", "vendor_job_id": 7, "colour": "red"}, ["colour", "vendor", "vendor_job_id"]),
    ],
    ids=lambda value: json.dumps(value, ensure_ascii=False)[:60],
)
def test_every_field_that_cannot_be_used_is_named_at_once(web: Web, body: object, fields: list[str]) -> None:
    assert bad_fields(web.api.post("/v1/jobs", json=body)) == sorted(fields)
    assert web.api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(("field", "value"), [("vendor_job_id", "a b"), ("metadata", 7), ("vendor", "kitta")])
def test_what_cannot_be_attached_is_named(web: Web, field: str, value: object) -> None:
    job = web.track("apimodels")
    assert bad_fields(web.api.patch(f"/v1/jobs/{job['id']}", json={field: value})) == [field]


NOT_OBJECTS: Final = {
    "nothing": b"",
    "bad JSON": b"{'vendor': 'apimodels'}",
    "cut short": b'{"vendor": "apimod',
    "a list": b"[]",
    "a string": b'"apimodels"',
    "null": b"null",
    "NaN": b'{"vendor": "apimodels", "metadata": {"a": NaN}}',
    "two documents": b'{"vendor": "apimodels"}{}',
    "a form": b"vendor=apimodels",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "random": bytes(range(256)),
}


@pytest.mark.parametrize("name", list(NOT_OBJECTS))
def test_a_body_that_is_no_json_object_is_refused(web: Web, name: str) -> None:
    job = web.track("apimodels")
    for method, path in (("POST", "/v1/jobs"), ("PATCH", f"/v1/jobs/{job['id']}")):
        problem(web.api.request(method, path, content=NOT_OBJECTS[name]), 400)


ODD_VALUES: Final = {
    "a float beyond a float": b"1e999",
    "an integer of 40 digits": b"9" * 40,
    "an integer of 5000 digits": b"9" * 5000,
    "a lone surrogate": rb'"\ud800"',
    "bad UTF-8": b'"\xff"',
    "an encoded surrogate": b'"\xed\xa0\x80"',
    "a NUL": rb'"\u0000"',
    "deep": b"[" * 900 + b"]" * 900,
    "too deep": b"[" * 100_000 + b"]" * 100_000,
    "duplicate keys": b'{"a": 1, "a": 2}',
    "markup": b'"<script>alert(1)</script>\\u2028"',
}


@pytest.mark.parametrize("name", list(ODD_VALUES))
def test_odd_metadata_is_kept_as_it_is_or_refused(web: Web, name: str) -> None:
    answer = web.api.post("/v1/jobs", content=b'{"vendor": "apimodels", "metadata": {"odd": %s}}' % ODD_VALUES[name])
    assert answer.status_code in (201, 400, 422), answer.text
    if answer.status_code != 201:
        problem(answer, answer.status_code)
        return
    job = answer.json()
    merged = web.api.patch(f"/v1/jobs/{job['id']}", json={"metadata": {"more": 1}})
    assert merged.status_code == 200
    assert merged.json()["metadata"] == {**job["metadata"], "more": 1}
    assert web.api.post(f"/v1/jobs/{job['id']}/refresh").status_code == 409


def test_metadata_nested_as_deep_as_is_taken_can_be_used(web: Web) -> None:
    def tracked(depth: int) -> int:
        nested = b"[" * depth + b"]" * depth
        content = b'{"vendor": "apimodels", "metadata": {"odd": %s}}' % nested
        return web.api.post("/v1/jobs", content=content, headers={"Connection": "close"}).status_code

    #: Where reading ends depends on the interpreter, and on how deep its stack is by then.
    limit = bisect.bisect_left(range(10_000), True, key=lambda depth: tracked(depth) != 201)
    answers = {depth - limit: tracked(depth) for depth in range(limit - 5, limit + 5)}
    assert {away: answer for away, answer in answers.items() if answer not in (201, 400, 422)} == {}


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_body_over_the_limit_is_refused(web: Web, method: str, chunked: bool) -> None:
    path = "/v1/jobs" if method == "POST" else f"/v1/jobs/{web.track('apimodels')['id']}"
    whole = b" " * (MAX_BODY + 1)
    content = iter([whole[: 2**16]] * 17) if chunked else whole
    problem(web.api.request(method, path, content=content), 413)


# -- the same request, again ------------------------------------------------------------------------------


def test_the_same_request_with_the_same_key_gets_the_same_answer(web: Web) -> None:
    request: dict[str, Any] = {"json": {"vendor": "apimodels"}, "headers": {"Idempotency-Key": "order-1"}}
    first, second = (web.api.post("/v1/jobs", **request) for _ in range(2))
    assert first.status_code == 201
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["location"] == first.headers["location"]
    assert [job["id"] for job in web.api.get("/v1/jobs").json()["data"]] == [first.json()["id"]]
    assert len(web.timeline(first.json()["id"])) == 1


def test_another_request_with_the_same_key_is_a_conflict(web: Web) -> None:
    headers = {"Idempotency-Key": "order-1"}
    job = web.api.post("/v1/jobs", json={"vendor": "apimodels"}, headers=headers).json()
    body = problem(web.api.post("/v1/jobs", json={"vendor": "kitta"}, headers=headers), 409)
    assert body["job_id"] == job["id"]
    assert len(web.api.get("/v1/jobs").json()["data"]) == 1


def test_an_idempotency_key_belongs_to_the_api_key_that_used_it(web: Web) -> None:
    headers = {"Idempotency-Key": "order-1"}
    ours = web.api.post("/v1/jobs", json={"vendor": "apimodels"}, headers=headers)
    headers["Authorization"] = f"Bearer {OTHER_API_KEY}"
    theirs = web.http.post("/v1/jobs", json={"vendor": "apimodels"}, headers=headers)
    assert (ours.status_code, theirs.status_code) == (201, 201)
    assert ours.json()["id"] != theirs.json()["id"]
    assert web.http.post("/v1/jobs", json={"vendor": "kitta"}, headers=headers).status_code == 409


def test_a_request_that_was_refused_does_not_use_its_key_up(web: Web) -> None:
    headers = {"Idempotency-Key": "order-1"}
    web.track("apimodels", vendor_job_id="task-1")
    taken = web.api.post("/v1/jobs", json={"vendor": "apimodels", "vendor_job_id": "task-1"}, headers=headers)
    assert taken.status_code == 409
    assert web.api.post("/v1/jobs", json={"vendor": "nobody"}, headers=headers).status_code == 422
    assert web.api.post("/v1/jobs", json={"vendor": "apimodels"}, headers=headers).status_code == 201


def test_the_same_request_many_times_at_once_is_one_job(web: Web) -> None:
    def track(_: int) -> tuple[int, str]:
        body = {"vendor": "apimodels", "vendor_job_id": "task-1"}
        answer = web.api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "order-1"})
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(track, range(32)))
    [(status, job_id)] = answers
    assert status == 201
    assert [job["id"] for job in web.api.get("/v1/jobs").json()["data"]] == [job_id]
    assert [event["type"] for event in web.events()] == ["job.submitted"]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_a_length(web: Web, key: str) -> None:
    problem(web.api.post("/v1/jobs", json={"vendor": "apimodels"}, headers={"Idempotency-Key": key}), 400)


# -- attach -------------------------------------------------------------------------------------------


def test_the_vendors_id_is_attached_once_it_is_known(web: Web) -> None:
    job = web.track("apimodels")
    answer = web.api.patch(f"/v1/jobs/{job['id']}", json={"vendor_job_id": "task-1"})
    assert answer.status_code == 200
    assert (answer.json()["vendor_job_id"], answer.json()["status"]) == ("task-1", "queued")
    assert answer.json()["submitted_at"]
    assert [event["type"] for event in web.events()] == ["job.submitted"]
    assert web.redis.zscore(web.key("polls", "apimodels"), job["id"])
    again = web.api.patch(f"/v1/jobs/{job['id']}", json={"vendor_job_id": "task-1"})
    assert (again.status_code, again.json()) == (200, answer.json())


def test_a_job_keeps_the_vendors_id_that_it_has(web: Web) -> None:
    job, other = web.track("apimodels", vendor_job_id="task-1"), web.track("apimodels")
    body = {"vendor_job_id": "task-2", "metadata": {"a": 1}}
    problem(web.api.patch(f"/v1/jobs/{job['id']}", json=body), 409)
    assert [web.job(job["id"])[name] for name in ("vendor_job_id", "metadata")] == ["task-1", {}], "all or nothing"
    taken = problem(web.api.patch(f"/v1/jobs/{other['id']}", json={"vendor_job_id": "task-1"}), 409)
    assert taken["job_id"] == job["id"]
    assert web.job(other["id"])["vendor_job_id"] is None


def test_metadata_is_added_to_what_is_there(web: Web) -> None:
    job = web.track("apimodels", metadata={"shot": 7, "take": {"n": 1}})
    answer = web.api.patch(f"/v1/jobs/{job['id']}", json={"metadata": {"take": {"m": 2}, "scene": None}})
    assert answer.json()["metadata"] == {"shot": 7, "take": {"m": 2}, "scene": None}
    assert answer.json()["status"] == "pending"


def test_metadata_has_a_limit_in_all(web: Web) -> None:
    job = web.track("apimodels", metadata={"a": "x" * (MAX_METADATA // 2)})
    answer = web.api.patch(f"/v1/jobs/{job['id']}", json={"metadata": {"b": "x" * (MAX_METADATA // 2)}})
    assert bad_fields(answer) == ["metadata"]


def test_metadata_that_many_add_at_once_is_all_there(web: Web) -> None:
    job = web.track("apimodels")

    def add(number: int) -> int:
        """How often it took; who is told of a conflict comes again."""
        for attempt in range(1, 100):
            answer = web.api.patch(f"/v1/jobs/{job['id']}", json={"metadata": {f"key-{number}": number}})
            if answer.status_code == 200:
                assert answer.json()["metadata"][f"key-{number}"] == number
                return attempt
            problem(answer, 409)
        raise AssertionError("never taken")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert web.job(job["id"])["metadata"] == {f"key-{number}": number for number in range(40)}


# -- read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", [NO_SUCH_JOB, "job_", "x", "..%2F..", "job_" + "0" * 5000, "%00", "%ff", "shared"])
def test_a_job_that_is_not_there_is_not_found(web: Web, job_id: str) -> None:
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("GET", "/timeline"),
        ("GET", "/outputs/0"),
        ("POST", "/refresh"),
    ):
        problem(web.api.request(method, f"/v1/jobs/{job_id}{path}", content=b"{}" if method == "PATCH" else None), 404)


def listed(web: Web, **query: object) -> list[str]:
    """The ids on all pages, page by page."""
    found: list[str] = []
    for _ in range(50):
        page = web.api.get("/v1/jobs", params={name: str(value) for name, value in query.items()})
        assert page.status_code == 200, page.text
        assert len(page.json()["data"]) <= int(str(query.get("limit", 20)))
        found += [job["id"] for job in page.json()["data"]]
        if (cursor := page.json()["next_cursor"]) is None:
            return found
        query["cursor"] = cursor
    raise AssertionError(f"there is always a next page: {found[:5]}…")


@pytest.fixture
def cast(web: Web) -> dict[str, str]:
    """Jobs in several states: a name for each → its id, oldest first."""
    film = (Output(url="https://cdn.example.com/film.mp4"),)
    ids = {}
    for vendor in ("apimodels", "kitta"):
        for name in ("pending", "queued", "processing", "failed", "succeeded", "stored"):
            known = {} if name == "pending" else {"vendor_job_id": f"task-{name}"}
            job = web.track(vendor, **known)
            ids[f"{vendor} {name}"] = job["id"]
            facts = {
                "processing": [Observation(source=Source.POLL, status=Status.PROCESSING)],
                "failed": [Observation(source=Source.POLL, status=Status.FAILED)],
                "succeeded": [Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=film)],
                "stored": [
                    Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=film),
                    Observation(source=Source.ARCHIVE, archive=Archive.STORED),
                ],
            }
            for fact in facts.get(name, []):
                web.record(fact, vendor=vendor, job_id=job["id"])
    return ids


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ({}, ["apimodels", "kitta"]),
        ({"vendor": "kitta"}, ["kitta"]),
        ({"vendor": "chanjing"}, []),
        ({"status": "processing"}, [" processing"]),
        ({"status": "succeeded"}, [" succeeded", " stored"]),
        ({"status": "expired"}, []),
        ({"archive": "none"}, [" pending", " queued", " processing", " failed"]),
        ({"archive": "waiting"}, [" succeeded"]),
        ({"archive": "stored"}, [" stored"]),
        ({"vendor": "kitta", "status": "succeeded", "archive": "waiting"}, ["kitta succeeded"]),
        ({"vendor_job_id": "task-stored"}, [" stored"]),
        ({"vendor_job_id": "task-stored", "vendor": "kitta"}, ["kitta stored"]),
        ({"vendor_job_id": "task-stored", "status": "queued"}, []),
        ({"vendor_job_id": "task-failed", "archive": "none"}, [" failed"]),
        ({"vendor_job_id": "nobody-s"}, []),
    ],
    ids=lambda value: "&".join(f"{name}={word}" for name, word in value.items()) if isinstance(value, dict) else None,
)
def test_jobs_are_listed_newest_first_page_by_page(
    web: Web, cast: dict[str, str], query: dict[str, str], chosen: list[str]
) -> None:
    expected = [job_id for name, job_id in cast.items() if any(part in name for part in chosen)][::-1]
    assert {limit: listed(web, limit=limit, **query) for limit in (100, 12, 5, 1)} == dict.fromkeys(
        (100, 12, 5, 1), expected
    )


def test_a_list_holds_whole_jobs_and_pages_of_twenty(web: Web) -> None:
    ids = [web.track("apimodels", metadata={"n": n})["id"] for n in range(21)]
    page = web.api.get("/v1/jobs").json()
    assert [job["id"] for job in page["data"]] == ids[:0:-1]
    assert page["data"][0] == web.job(ids[-1])
    assert web.api.get("/v1/jobs", params={"cursor": page["next_cursor"]}).json() == {
        "data": [web.job(ids[0])],
        "next_cursor": None,
    }


def test_jobs_that_come_meanwhile_do_not_shift_the_pages(web: Web) -> None:
    ids = [web.track("apimodels")["id"] for _ in range(4)]
    first = web.api.get("/v1/jobs", params={"limit": 2}).json()
    web.track("apimodels")
    second = web.api.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/quarantine"])
@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["limit"]),
        ("limit=101", ["limit"]),
        ("limit=-1", ["limit"]),
        ("limit=1e1", ["limit"]),
        ("limit=%D9%A1", ["limit"]),
        ("limit=", ["limit"]),
        ("limit=1%0A", ["limit"]),
        ("cursor=x", ["cursor"]),
        ("cursor=%ff", ["cursor"]),
        ("colour=red&limit=x&cursor=", ["colour", "cursor", "limit"]),
        ("limit=x&limit=5", ["limit", "limit"]),  # wrong, and said twice
    ],
)
def test_every_parameter_that_cannot_be_used_is_named(web: Web, path: str, query: str, fields: list[str]) -> None:
    assert bad_fields(web.api.get(f"{path}?{query}")) == fields


def test_every_filter_that_cannot_be_used_is_named(web: Web) -> None:
    answer = web.api.get("/v1/jobs?vendor=nobody&status=done&archive=&vendor_job_id=a%20b&Status=queued")
    assert bad_fields(answer) == ["Status", "archive", "status", "vendor", "vendor_job_id"]


def test_a_timeline_has_every_fact_in_order_and_whether_it_counted(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    task = {"taskId": "task-1", "state": "completed", "resultJson": '{"resultUrls": ["https://a.example/b.mp4"]}'}
    web.callback(job["callback_url"], {"code": 200, "data": task})
    web.callback(job["callback_url"], {"code": 200, "data": {**task, "state": "processing"}})
    web.callback(job["callback_url"], b"nope")
    web.record(
        Observation(source=Source.ARCHIVE, problem=Problem.NOT_STORED, detail="attempt 1: the link answers 500"),
        vendor="apimodels",
        job_id=job["id"],
        task="archive",
        retry_in=2,
    )
    web.api.post(f"/v1/jobs/{job['id']}/refresh")
    timeline = web.timeline(job["id"])
    shown = [[entry.get(name) for name in ("source", "status", "applied", "problem")] for entry in timeline]
    assert shown == [
        ["submit", "queued", True, None],
        ["callback", "succeeded", True, None],
        ["callback", "processing", False, None],
        ["callback", None, False, "bad_json"],
        ["archive", None, False, "not_stored"],
        ["operator", None, True, None],
    ]
    times = [datetime.fromisoformat(entry["at"]) for entry in timeline]
    assert times == sorted(times)
    assert all(entry["at"].endswith("Z") for entry in timeline)
    assert json.loads(timeline[1]["raw"]) == {"code": 200, "data": task}


# -- outputs ------------------------------------------------------------------------------------------

FILM: Final = MP4 + bytes(range(256)) * 40
PICTURE: Final = b"<svg onload=alert(1)>"


def stored_job(web: Web, *, keep: bool = True, content_type: str | None = None) -> dict[str, Any]:
    """A job with two outputs that the archive says it has stored, and which are in `storage` unless `keep` is False.

    The record calls them what the storage does, or else `content_type`.
    """
    job = web.track("apimodels", vendor_job_id="task-1")
    outputs = (Output(url="https://cdn.example.com/film.mp4"), Output(url="https://cdn.example.com/picture.svg"))
    web.record(
        Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=outputs), vendor="apimodels", job_id=job["id"]
    )
    storage, copies = Storage(web.settings.storage_url), []
    for number, (output, content) in enumerate(zip(outputs, (FILM, PICTURE), strict=True)):
        key = object_key("apimodels", job["id"], number, output)
        sniffed = asyncio.run(storage.put(key, one(content))) if keep else UNKNOWN_TYPE
        stored = Stored(
            url=f"{web.url}/v1/jobs/{job['id']}/outputs/{number}",
            key=key,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            content_type=content_type or sniffed,
        )
        copies.append(msgspec.structs.replace(output, stored=stored))
    web.record(
        Observation(source=Source.ARCHIVE, archive=Archive.STORED, outputs=tuple(copies)),
        vendor="apimodels",
        job_id=job["id"],
    )
    return job


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


def test_an_output_is_not_found_before_it_is_stored(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    path = f"/v1/jobs/{job['id']}/outputs/0"
    assert "none" in problem(web.api.get(path), 404)["detail"]
    outputs = (Output(url="https://cdn.example.com/film.mp4"),)
    fact = Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=outputs)
    web.record(fact, vendor="apimodels", job_id=job["id"])
    assert "waiting" in problem(web.api.get(path), 404)["detail"]


def test_a_stored_output_is_handed_out_as_a_download(web: Web) -> None:
    job = web.job(stored_job(web)["id"])
    assert (job["status"], job["archive"]) == ("succeeded", "stored")
    assert job["stored_at"]
    for number, (content, media_type) in enumerate(((FILM, "video/mp4"), (PICTURE, "application/octet-stream"))):
        stored = job["outputs"][number]["stored"]
        answer = web.api.get(stored["url"])
        assert (answer.status_code, answer.content) == (200, content)
        assert hashlib.sha256(answer.content).hexdigest() == stored["sha256"]
        assert int(answer.headers["content-length"]) == stored["bytes"]
        assert answer.headers["content-type"] == stored["content_type"] == media_type
        assert answer.headers["content-disposition"] == f'attachment; filename="{job["id"]}-{number}.mp4"'
        assert inert(answer)
        assert answer.headers["accept-ranges"] == "bytes"


def inert(answer: httpx.Response) -> bool:
    """Whether a browser runs nothing of it, here or in another origin's page."""
    return {
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
        "cross-origin-resource-policy": "same-origin",
    }.items() <= dict(answer.headers).items()


@pytest.mark.parametrize(
    "content_type", ["text/html", "image/svg+xml", "video/mp4\r\nset-cookie: a=b", "Video/MP4", "video/mp4; a=b", "?"]
)
def test_a_record_that_calls_a_stored_output_what_it_may_not_be_is_not_believed(web: Web, content_type: str) -> None:
    job = stored_job(web, content_type=content_type)
    answer = web.api.get(f"/v1/jobs/{job['id']}/outputs/0")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert inert(answer)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-99", 0, 99), ("bytes=100-", 100, len(FILM) - 1), ("bytes=-7", len(FILM) - 7, len(FILM) - 1)],
)
def test_a_part_of_a_stored_output_is_handed_out(web: Web, asked: str, first: int, last: int) -> None:
    job = stored_job(web)
    answer = web.api.get(f"/v1/jobs/{job['id']}/outputs/0", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, FILM[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(FILM)}"
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert inert(answer)


def test_a_part_beyond_the_end_of_a_stored_output_is_a_problem(web: Web) -> None:
    job = stored_job(web)
    answer = web.api.get(f"/v1/jobs/{job['id']}/outputs/0", headers={"Range": f"bytes={len(FILM)}-"})
    assert answer.headers["content-range"].endswith(f"*/{len(FILM)}")
    problem(answer, 416)


@pytest.mark.parametrize("number", ["2", "-1", "x", "1.0", "9" * 30, "9" * 5000])
def test_an_output_that_a_job_does_not_have_is_not_found(web: Web, number: str) -> None:
    job = stored_job(web)
    problem(web.api.get(f"/v1/jobs/{job['id']}/outputs/{number}"), 404)


def test_a_stored_file_that_is_gone_is_not_found(web: Web) -> None:
    job = stored_job(web, keep=False)
    assert "gone" in problem(web.api.get(f"/v1/jobs/{job['id']}/outputs/0"), 404)["detail"]


def test_an_output_in_a_bucket_is_a_link_that_needs_no_key(
    redis_url: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    env = {"REDIS_URL": redis_url, "STORAGE_URL": s3.storage_url("api"), **s3.environment}
    with web_process(tmp_path, env) as web:
        job = stored_job(web)
        path = f"/v1/jobs/{job['id']}/outputs/0"
        answer = web.api.get(path)
        assert (answer.status_code, answer.content) == (302, b"")
        assert answer.headers["cache-control"] == "no-store"
        link = answer.headers["location"]
        assert link.startswith(f"{s3.endpoint}/{s3.bucket}/api/apimodels/{job['id']}/0.mp4?")
        film = httpx.get(link)
        assert (film.content, film.headers["content-type"]) == (FILM, "video/mp4")
        assert film.headers["content-disposition"] == f'attachment; filename="{job["id"]}-0.mp4"'
        picture = httpx.get(web.api.get(f"/v1/jobs/{job['id']}/outputs/1").headers["location"])
        assert (picture.content, picture.headers["content-type"]) == (PICTURE, "application/octet-stream")
        assert picture.headers["content-disposition"].startswith("attachment")
        assert httpx.get(link.partition("?")[0]).is_client_error, "only the signature opens it"
        assert s3.secret not in link
        assert web.http.get(path).status_code == 401
        problem(web.api.get(f"/v1/jobs/{job['id']}/outputs/2"), 404)


# -- refresh ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["queued", "succeeded"])
def test_a_refresh_makes_the_poller_ask_now(web: Web, status: str) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    fact = Observation(source=Source.POLL, status=Status(status), result={"faces": 1})
    web.record(fact, vendor="apimodels", job_id=job["id"])
    assert not web.is_due(job)
    answer = web.api.post(f"/v1/jobs/{job['id']}/refresh")
    assert (answer.status_code, answer.json()) == (202, web.job(job["id"]))
    assert answer.json()["status"] == status
    assert web.is_due(job)


def test_a_job_whose_vendor_cannot_be_asked_cannot_be_refreshed(blind: Web) -> None:
    job = blind.track("apimodels", vendor_job_id="task-1")
    assert "APIMODELS_API_KEY" in problem(blind.api.post(f"/v1/jobs/{job['id']}/refresh"), 409)["detail"]


def test_a_job_without_the_vendors_id_cannot_be_refreshed(web: Web) -> None:
    job = web.track("apimodels")
    assert "vendor_job_id" in problem(web.api.post(f"/v1/jobs/{job['id']}/refresh"), 409)["detail"]
    assert not web.is_due(job)


def test_a_refresh_lets_a_failed_archive_try_again(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    film = (Output(url="https://cdn.example.com/film.mp4"),)
    for fact in (
        Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=film),
        Observation(source=Source.ARCHIVE, archive=Archive.FAILED, detail="the link is dead"),
    ):
        web.record(fact, vendor="apimodels", job_id=job["id"])
    assert [web.job(job["id"])[name] for name in ("status", "archive")] == ["succeeded", "failed"]
    web.redis.delete(f"rq:queue:{web.settings.queue('archive')}")

    answer = web.api.post(f"/v1/jobs/{job['id']}/refresh")
    assert answer.status_code == 202
    assert [answer.json()[name] for name in ("status", "archive")] == ["succeeded", "waiting"]
    assert web.is_due(job)
    assert web.redis.lrange(f"rq:queue:{web.settings.queue('archive')}", 0, -1) == [f"archive-{job['id']}".encode()]


# -- quarantine ---------------------------------------------------------------------------------------

READABLE: Final = b'{"code": 200, "data": {"taskId": "task-1", "state": "processing"}}'


def letter_for(web: Web, job: dict[str, Any], body: bytes = b"nope") -> dict[str, Any]:
    """The letter that an unreadable callback becomes."""
    assert web.callback(job["callback_url"], body).status_code in (400, 422)
    [letter] = [letter for letter in web.letters() if letter["job_id"] == job["id"]]
    return letter


def make_readable(web: Web, letter: dict[str, Any]) -> None:
    """Stands in for code that has learned to read it."""
    web.redis.hset(web.key("quarantine", letter["id"]), "body", pack_body(READABLE))


def test_a_letter_says_whose_it_was_and_what_was_wrong(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    letter = letter_for(web, job, b'{"state": "paused \xff\xe4\xb8\xad"}')
    web.callback(job["callback_url"], b'{"state": "paused \xff\xe4\xb8\xad"}')
    shown = web.api.get(f"/v1/quarantine/{letter['id']}").json()
    assert shown.pop("raw") == '{"state": "paused \ufffd中"}'
    assert shown.pop("reads") == {"source": "callback", "problem": "bad_json", "detail": "not JSON"}
    assert shown == web.letters()[0]
    assert (shown["vendor"], shown["job_id"], shown["problem"], shown["count"]) == (
        "apimodels",
        job["id"],
        "bad_json",
        2,
    )
    assert shown["detail"]
    assert shown["received_at"] == letter["received_at"] <= shown["last_received_at"]


def test_letters_are_listed_newest_first_page_by_page(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    for number in range(5):
        web.callback(job["callback_url"], b"nope %d" % number)
    # As if a minute apart: how fast they came is not what this is about.
    quarantine = web.key("quarantine")
    for letter in web.letters():
        number = int(web.api.get(f"/v1/quarantine/{letter['id']}").json()["raw"][-1])
        web.redis.zincrby(quarantine, number * 60_000, letter["id"])
    assert pages_of_letters(web, 2) == [[4, 3], [2, 1], [0]]


def test_letters_that_came_at_the_same_moment_are_all_listed(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")

    async def arrive_together() -> None:
        async with opened(web.settings) as deployment:
            bodies = [b"nope %d" % number for number in range(5)]
            seen = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON, detail="not JSON")
            record = partial(deployment.tracker.record, seen, vendor="apimodels", job_id=job["id"])
            await asyncio.gather(*(record(raw=body, quarantine=(job["id"], body)) for body in bodies))

    asyncio.run(arrive_together())  # what is committed in one round trip has one time
    assert sorted(chain.from_iterable(pages_of_letters(web, 2))) == [0, 1, 2, 3, 4]


def pages_of_letters(web: Web, limit: int) -> list[list[int]]:
    """The numbers that the letters' bodies end with, a list for each page."""
    pages: list[list[int]] = []
    query = {"limit": str(limit)}
    for _ in range(10):
        page = web.api.get("/v1/quarantine", params=query).json()
        raws = [web.api.get(f"/v1/quarantine/{letter['id']}").json()["raw"] for letter in page["data"]]
        pages.append([int(raw[-1]) for raw in raws])
        if page["next_cursor"] is None:
            return pages
        query["cursor"] = page["next_cursor"]
    raise AssertionError(f"there is always a next page: {pages[:5]}…")


def test_a_letter_that_is_still_not_understood_stays(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    letter = letter_for(web, job)
    assert "bad_json" in problem(web.api.post(f"/v1/quarantine/{letter['id']}/replay"), 422)["detail"]
    assert web.letters() == [letter]
    assert web.job(job["id"])["status"] == "queued"


def test_a_letter_that_has_become_readable_is_applied_and_gone(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    letter = letter_for(web, job)
    make_readable(web, letter)
    answer = web.api.post(f"/v1/quarantine/{letter['id']}/replay")
    assert answer.status_code == 200
    assert answer.json() == {"id": letter["id"], "outcome": "apply", "job_id": job["id"]}
    assert web.job(job["id"])["status"] == "processing"
    assert web.letters() == []
    problem(web.api.get(f"/v1/quarantine/{letter['id']}"), 404)
    problem(web.api.post(f"/v1/quarantine/{letter['id']}/replay"), 404)


def test_a_letter_by_the_shared_url_is_applied_to_the_job_it_names(web: Web) -> None:
    web.callback(web.shared_url("apimodels"), b"nope")
    [letter] = web.letters()
    assert letter["job_id"] is None
    make_readable(web, letter)
    job = web.track("apimodels", vendor_job_id="task-1")
    answer = web.api.post(f"/v1/quarantine/{letter['id']}/replay")
    assert answer.json() == {"id": letter["id"], "outcome": "apply", "job_id": job["id"]}
    assert web.job(job["id"])["status"] == "processing"


def test_a_letter_for_another_job_than_its_urls_stays(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-2")
    letter = letter_for(web, job, READABLE)
    assert letter["problem"] == "other_job"
    assert "other_job" in problem(web.api.post(f"/v1/quarantine/{letter['id']}/replay"), 409)["detail"]
    assert web.letters() == [letter]


@pytest.mark.parametrize("letter_id", [f"qua_{'0' * 24}", "qua_", "x", "%00", "..%2F.."])
def test_a_letter_that_is_not_there_is_not_found(web: Web, letter_id: str) -> None:
    problem(web.api.get(f"/v1/quarantine/{letter_id}"), 404)
    problem(web.api.post(f"/v1/quarantine/{letter_id}/replay"), 404)


# -- the callback URL is a secret ---------------------------------------------------------------------------


def test_nothing_but_the_answer_to_its_making_holds_a_jobs_token(web: Web) -> None:
    with web.redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.psubscribe("*")
        job = stored_job(web)
        secret, path = secret_of(job), f"/v1/jobs/{job['id']}"
        url = job["callback_url"]
        echo = {"code": 200, "data": {"taskId": "task-1", "state": "failed", "param": json.dumps({"callback": url})}}
        for body in (url.encode(), json.dumps(echo).encode(), json.dumps({"data": {"taskId": url}}).encode()):
            web.callback(url, body)
        letters = [web.api.get(f"/v1/quarantine/{letter['id']}") for letter in web.letters()]
        assert len(letters) == 2
        answers = [
            web.api.get(path),
            web.api.get("/v1/jobs"),
            web.api.get("/v1/jobs", params={"vendor_job_id": "task-1"}),
            web.api.get(f"{path}/timeline"),
            web.api.get(f"{path}/outputs/1"),
            web.api.get(f"{path}/outputs/7"),
            web.api.patch(path, json={"metadata": {"a": 1}}),
            web.api.post(f"{path}/refresh"),
            web.api.get("/v1/quarantine"),
            *letters,
            *[web.api.post(f"/v1/quarantine/{letter.json()['id']}/replay") for letter in letters],
        ]
        heard = []
        while message := listener.get_message():
            heard.append(str(message["data"]))
    assert any("job.stored" in message for message in heard)
    assert secret in url
    assert [answer.url for answer in answers if secret in answer.text + str(answer.headers)] == []
    assert [message for message in heard if secret in message] == []
    assert [event for event in web.events() if secret in str(event)] == []
    assert [key for key, value in everything(web) if secret.encode() in value] == []


def everything(web: Web) -> Iterator[tuple[bytes, bytes]]:
    """All that Redis holds: a key, and a value of it as it lies there."""
    client: Any = web.redis  # its types are unions over how it could have been opened
    for key in client.keys("*"):
        yield key, key
        match client.type(key):
            case b"string":
                found = [client.get(key)]
            case b"hash":
                found = list(chain.from_iterable(client.hgetall(key).items()))
            case b"list":
                found = client.lrange(key, 0, -1)
            case b"set":
                found = client.smembers(key)
            case b"zset":
                found = client.zrange(key, 0, -1)
            case _:
                found = [str(entry).encode() for entry in client.xrange(key)]
        for value in found:
            yield key, value


# -- every route --------------------------------------------------------------------------------------------


def test_a_route_that_is_not_there_is_not_found(web: Web) -> None:
    for path in ("/nope", "/v1/nope", "/v1/jobs/a/b/c", "/v1/", "/callbacks", "/callbacks/", "/%ff", "/%00", "/.env"):
        problem(web.api.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
        ("DELETE", "/v1/jobs", "POST"),
        ("PUT", f"/v1/jobs/{NO_SUCH_JOB}", "GET"),
        ("POST", f"/v1/jobs/{NO_SUCH_JOB}/timeline", "GET"),
        ("POST", f"/v1/jobs/{NO_SUCH_JOB}/outputs/0", "GET"),
        ("GET", f"/v1/jobs/{NO_SUCH_JOB}/refresh", "POST"),
        ("POST", "/v1/quarantine", "GET"),
        ("DELETE", f"/v1/quarantine/qua_{'0' * 24}", "GET"),
        ("GET", f"/v1/quarantine/qua_{'0' * 24}/replay", "POST"),
    ],
)
def test_a_method_that_a_route_does_not_take_is_refused_with_those_that_it_takes(
    web: Web, method: str, path: str, allowed: str
) -> None:
    answer = web.api.request(method, path)
    problem(answer, 405)
    assert allowed in answer.headers["allow"]


def test_head_answers_as_get_does_without_the_body(web: Web) -> None:
    job = stored_job(web)
    path = f"/v1/jobs/{job['id']}"
    letter = letter_for(web, job)
    for target in (
        "/healthz",
        "/readyz",
        "/v1/jobs",
        path,
        f"{path}/timeline",
        f"{path}/outputs/0",
        "/v1/quarantine",
        f"/v1/quarantine/{letter['id']}",
        f"/v1/jobs/{NO_SUCH_JOB}",
    ):
        get, head = web.api.get(target), web.api.head(target)
        assert (head.status_code, head.content) == (get.status_code, b""), target
        for name in ("content-type", "content-length"):
            assert head.headers[name] == get.headers[name], target


# -- health, and the start ------------------------------------------------------------------------------------


def test_health_and_readiness_need_no_key(web: Web) -> None:
    assert web.http.get("/healthz").json() == {"status": "ok"}
    assert web.http.get("/readyz").json() == {"status": "ready"}


def test_it_is_alive_and_not_ready_while_redis_is_away(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as valkey, web_process(tmp_path, {"REDIS_URL": valkey.url}) as web:
        assert web.http.get("/readyz").status_code == 200
        valkey.process.kill()
        answer = web.http.get("/readyz")
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
        assert web.http.get("/healthz").status_code == 200
        with valkey_server(tmp_path, port=valkey.port):
            web.process.wait_until(lambda: web.http.get("/readyz").status_code == 200, "readiness")


def test_it_starts_without_redis_and_is_ready_when_redis_comes(tmp_path: Path) -> None:
    port = free_port()
    with web_process(tmp_path, {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}) as web:
        assert web.http.get("/readyz").status_code == 503
        with valkey_server(tmp_path, port=port):
            web.process.wait_until(lambda: web.http.get("/readyz").status_code == 200, "readiness")


def refusal_to_start(folder: Path, env: dict[str, str]) -> str:
    """What the web process says when it cannot start with these settings."""
    with start_web(folder, env) as process:
        assert process.wait() not in (0, None)
        return process.output()


def test_without_settings_it_names_all_that_are_missing_and_does_not_start(tmp_path: Path) -> None:
    said = refusal_to_start(tmp_path, {})
    required = ["REDIS_URL", "STORAGE_URL", "PUBLIC_URL", "SECRET_KEYS", "API_KEYS"]
    assert [name for name in required if f"{name} is missing" not in said] == []
    assert "Traceback" not in said


def test_it_names_every_setting_that_cannot_be_used_and_shows_no_secret(tmp_path: Path) -> None:
    wrong = {
        "REDIS_URL": "http://user:pass-word@localhost",
        "STORAGE_URL": "ftp://pass-word@localhost",
        "PUBLIC_URL": "localhost:8000",
        "API_KEYS": "pass-word,studio:a,studio:b",
        "KEY_PREFIX": "a:b",
        "REDIS_TLS_VERIFY": "perhaps",
        "MAX_CALLBACK_BYTES": "16 MB",
        "JOB_DEADLINE_SECONDS": "-1",
        "POLL_GRACE_SECONDS": "nan",
        "LOG_FORMAT": "xml",
        "CHANJING_APP_ID": "half-a-pair",
        "KITTA_BASE_URL": "kitta.example",
    }
    said = refusal_to_start(tmp_path, environment_of(free_port(), tmp_path, wrong))
    named = {*wrong, "CHANJING_SECRET_KEY"} - {"CHANJING_APP_ID"}
    assert [name for name in named if name not in said] == []
    assert "pass-word" not in said
    assert "half-a-pair" not in said
    assert "Traceback" not in said
