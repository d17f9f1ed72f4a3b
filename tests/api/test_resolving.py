"""Jobs that were sent and not answered: the operator's word, and what it may not do."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest

from service.jobs.tasks import PATIENCE
from service.model import Observation, Problem, Source, Status
from tests.support.api import AUDIO, FILES, VIDEO, bad_fields, line, noted, problem, submit, types
from tests.support.web import Web


def lost(web: Web, vendor: str = "kitta", **fields: Any) -> dict[str, Any]:
    """A job that a worker has sent, and of which nobody knows whether the vendor has taken it."""
    job = submit(web, vendor, **{"input_": VIDEO | AUDIO, **fields})
    web.redis.delete("rq:queue:callsheet-submit")  # the worker has taken it
    for seen, how in (
        (Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED), {"sending": f"sending {job['id']}"}),
        (Observation(source=Source.SUBMIT, problem=Problem.NO_ANSWER, detail="time is up"), {"task": "submit"}),
    ):
        web.record(seen, vendor=vendor, job_id=job["id"], **cast("dict[str, Any]", how))
    assert web.job(job["id"])["status"] == "unconfirmed"
    assert noted(web) == {}
    return job


def resolve(web: Web, job: Mapping[str, Any], action: str, **fields: object) -> httpx.Response:
    return web.api.post(f"/v1/jobs/{job['id']}/resolve", json={"action": action, **fields})


def test_a_lost_job_that_the_vendor_has_is_adopted(web: Web) -> None:
    job = lost(web)
    answer = resolve(web, job, "adopt", vendor_job_id="task-1")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["vendor_job_id"]) == ("queued", "task-1")
    assert answer.json()["submitted_at"]
    assert answer.json() == web.job(job["id"])
    assert types(web) == ["job.submitted"]
    assert web.redis.zscore(web.key("polls", "kitta"), job["id"]), "and the vendor will be asked"
    assert (line(web), noted(web)) == ([], {})
    entry = web.timeline(job["id"])[-1]
    assert (entry["status"], entry["applied"], entry["vendor_job_id"]) == ("queued", True, "task-1")
    assert "operator" in entry["detail"]


def test_what_came_for_a_lost_job_before_it_was_adopted_counts(web: Web) -> None:
    job = lost(web, "apimodels", input_=VIDEO)
    echo = {"data": {"taskId": "task-1", "state": "processing"}}
    assert web.callback(web.shared_url("apimodels"), echo).status_code == 200
    assert resolve(web, job, "adopt", vendor_job_id="task-1").json()["status"] == "processing"
    assert types(web) == ["job.submitted", "job.processing"]


def test_an_id_that_another_job_has_is_not_adopted(web: Web) -> None:
    other = web.track("kitta", vendor_job_id="task-1")
    job = lost(web)
    before = (web.job(job["id"]), web.timeline(job["id"]))
    answer = problem(resolve(web, job, "adopt", vendor_job_id="task-1"), 409)
    assert answer["job_id"] == other["id"]
    assert [error["field"] for error in answer["errors"]] == ["vendor_job_id"]
    assert (web.job(job["id"]), web.timeline(job["id"])) == before


def test_a_lost_job_whose_id_is_known_by_now_is_neither_adopted_under_another_nor_sent_again(web: Web) -> None:
    """A callback that could not be understood has told the vendor's id; the job is as unconfirmed as before.

    The vendor has it, by its own word: it would be paid for twice, and one of the two would have no job here.
    """
    job = lost(web, "apimodels", input_=VIDEO)
    assert web.callback(job["callback_url"], {"data": {"taskId": "task-1", "state": "paused"}}).status_code == 422
    assert [web.job(job["id"])[name] for name in ("status", "vendor_job_id")] == ["unconfirmed", "task-1"]
    problem(resolve(web, job, "adopt", vendor_job_id="task-2"), 409)
    problem(resolve(web, job, "resend"), 409)
    assert (web.job(job["id"])["status"], line(web)) == ("unconfirmed", [])
    assert resolve(web, job, "adopt", vendor_job_id="task-1").json()["status"] == "queued"


def test_a_lost_job_that_the_vendor_has_not_taken_is_sent_again(web: Web) -> None:
    job = lost(web)
    answer = resolve(web, job, "resend")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    assert line(web) == [f"submit-{job['id']}"]
    assert [0 < wait <= PATIENCE for wait in noted(web).values()] == [True]
    assert types(web) == []
    assert "operator" in web.timeline(job["id"])[-1]["detail"]
    problem(resolve(web, job, "resend"), 409)
    assert len(line(web)) == 1


def test_a_lost_job_that_the_vendor_has_not_taken_is_given_up(web: Web) -> None:
    job = lost(web)
    answer = resolve(web, job, "fail")
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert (answer.json()["error"]["code"], answer.json()["error"]["retryable"]) == ("not_taken", True)
    assert answer.json()["error"]["message"]
    assert (answer.json()["submitted_at"], answer.json()["vendor_job_id"]) == (None, None)
    assert answer.json()["completed_at"]
    assert types(web) == ["job.failed"], "it was never submitted"
    assert (line(web), noted(web)) == ([], {})
    assert web.redis.zscore(web.key("deadlines"), job["id"]) is None


def test_of_many_who_resolve_a_lost_job_at_once_one_does(web: Web) -> None:
    job = lost(web)
    asked = [("resend", {}), ("fail", {}), ("adopt", {"vendor_job_id": "task-1"})] * 8
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda asked: resolve(web, job, asked[0], **asked[1]).status_code, asked))
    assert sorted(answers) == [200] + [409] * (len(asked) - 1)
    after = {"resend": "pending", "fail": "failed", "adopt": "queued"}[asked[answers.index(200)][0]]
    assert web.job(job["id"])["status"] == after
    assert len(line(web)) == (after == "pending")


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.UNCONFIRMED])
@pytest.mark.parametrize("action", ["adopt", "resend", "fail"])
def test_only_a_lost_job_can_be_resolved(web: Web, status: Status, action: str) -> None:
    job = submit(web, "kitta", VIDEO | AUDIO)
    if status is not Status.PENDING:
        source = Source.DEADLINE if status is Status.EXPIRED else Source.POLL
        web.record(Observation(source=source, status=status), vendor="kitta", job_id=job["id"])
    before = (web.job(job["id"]), web.timeline(job["id"]), line(web), web.events())
    assert before[0]["status"] == status
    answer = problem(resolve(web, job, action, **({"vendor_job_id": "task-1"} if action == "adopt" else {})), 409)
    assert status.value in answer["detail"]
    assert (web.job(job["id"]), web.timeline(job["id"]), line(web), web.events()) == before


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["action"]),
        ({"action": None}, ["action"]),
        ({"action": "forget"}, ["action"]),
        ({"action": ["fail"]}, ["action"]),
        ({"action": "adopt"}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": None}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": ""}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": "a b"}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": "x" * 201}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": 7}, ["vendor_job_id"]),
        ({"action": "resend", "vendor_job_id": "task-1"}, ["vendor_job_id"]),
        ({"action": "fail", "vendor_job_id": "task-1"}, ["vendor_job_id"]),
        ({"action": 1, "vendor_job_id": 2, "why": 3}, ["action", "vendor_job_id", "why"]),
    ],
)
def test_a_resolution_that_cannot_be_used_is_refused(web: Web, body: object, fields: list[str]) -> None:
    job = lost(web)
    assert bad_fields(web.api.post(f"/v1/jobs/{job['id']}/resolve", json=body)) == fields
    assert web.job(job["id"])["status"] == "unconfirmed"
    assert line(web) == []


def test_a_lost_job_is_looked_for_again_when_asked(web: Web) -> None:
    job = lost(web)
    answer = web.api.post(f"/v1/jobs/{job['id']}/refresh")
    assert (answer.status_code, answer.json()["status"]) == (202, "unconfirmed")
    assert line(web) == [f"submit-{job['id']}"]
    assert [0 < wait <= PATIENCE for wait in noted(web).values()] == [True]


def test_a_job_that_was_not_sent_yet_cannot_be_looked_for(web: Web) -> None:
    job = submit(web, "kitta", VIDEO | AUDIO)
    problem(web.api.post(f"/v1/jobs/{job['id']}/refresh"), 409)
    assert len(line(web)) == 1


def test_the_vendors_id_of_a_job_that_still_waits_to_be_sent_takes_it_out_of_the_line(web: Web) -> None:
    """Somebody has sent it by hand: it is not ordered a second time."""
    first, second = (submit(web, "chanjing", {}, vendor_input=FILES) for _ in range(2))
    answer = web.api.patch(f"/v1/jobs/{first['id']}", json={"vendor_job_id": "task-1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert (answer.json()["vendor_job_id"], answer.json()["scheduled_at"]) == ("task-1", None)
    assert list(noted(web)) == [f"submit-{second['id']}"]
    assert web.redis.zrange(web.key("turns", "chanjing"), 0, -1) == [second["id"].encode()]
    assert types(web) == ["job.submitted"]
