"""Letters in quarantine: listed, shown, replayed."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain
from typing import Any

import pytest

from service.deployment import opened
from service.jobs.scripts import pack_body
from service.model import Observation, Problem, Source
from tests.support.api import READABLE, letter_for, problem
from tests.support.web import Web


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
    told = [shown[name] for name in ("vendor", "job_id", "problem", "count")]
    assert told == ["apimodels", job["id"], "bad_json", 2]
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
