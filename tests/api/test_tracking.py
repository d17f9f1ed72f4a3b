"""`POST` and `PATCH` `/v1/jobs`: jobs that somebody else has submitted, and what can be told of them later."""

from __future__ import annotations

import bisect
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from service.api.jobs import MAX_METADATA
from service.api.problems import MAX_BODY
from service.model import Job
from service.vendors import VENDORS
from tests.support.api import bad_fields, problem
from tests.support.web import Web

# -- track ----------------------------------------------------------------------------------------------


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
    at = f"/v1/jobs/{job['id']}"
    for method, path in (("POST", "/v1/jobs"), ("PATCH", at), ("POST", f"{at}/resolve")):
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


# -- attach ---------------------------------------------------------------------------------------------


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
