"""What can be read of jobs: lists, timelines, stored outputs; and asking for a fresh look."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from service.model import Archive, Observation, Output, Problem, Source, Status
from tests.support.api import FILM, NO_SUCH_JOB, PICTURE, bad_fields, problem, stored_job
from tests.support.servers import S3
from tests.support.web import Web, web_process

# -- read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", [NO_SUCH_JOB, "job_", "x", "..%2F..", "job_" + "0" * 5000, "%00", "%ff", "shared"])
def test_a_job_that_is_not_there_is_not_found(web: Web, job_id: str) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {}),
        ("GET", "/timeline", None),
        ("GET", "/outputs/0", None),
        ("POST", "/refresh", None),
        ("POST", "/resolve", {"action": "fail"}),
    ):
        problem(web.api.request(method, f"/v1/jobs/{job_id}{path}", json=body), 404)


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
    for limit in (100, 12, 5, 1):
        assert listed(web, limit=limit, **query) == expected


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


# -- refresh --------------------------------------------------------------------------------------------


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
