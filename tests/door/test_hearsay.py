"""What comes by the vendor's shared URL, before its job is known, or cannot be understood."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import msgspec
import pytest

from service.jobs.scripts import PARKED_LENGTH, PARKED_SECONDS
from service.model import VERDICTS, Archive, Problem, Source, Status
from tests.support.desk import ASK, CHARGE, MUTE, PROBLEM, VENDOR, VIDEO, Desk, about, fact, polled, told


def ms(moment: str) -> int:
    """An ISO-8601 time in milliseconds."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


@pytest.mark.parametrize("confirmed", [Status.SUCCEEDED, Status.PROCESSING])
async def test_a_hinted_verdict_is_not_counted_until_the_asked_vendor_confirms_it(
    desk: Desk, confirmed: Status
) -> None:
    job_id = await desk.track("v-1")
    before = await desk.store.job_json(job_id)
    hint = told(Status.SUCCEEDED, vendor_job_id="v-1", outputs=VIDEO, result={"faces": 1}, progress=100, cost=CHARGE)
    assert await desk.hint(hint) == "ask"
    assert await desk.store.job_json(job_id) == before
    assert about(await desk.due(job_id), 0)
    entry = await desk.last(job_id)
    assert (entry["applied"], entry["why"]) == (False, "not counted until the vendor is asked")
    await desk.tell(job_id, polled(confirmed, outputs=VIDEO if confirmed in VERDICTS else None))
    assert (await desk.job(job_id)).status is confirmed


async def test_a_hint_on_the_way_to_a_verdict_is_believed(desk: Desk) -> None:
    job_id = await desk.track("v-1")
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=30)) == "apply"
    assert (await desk.job(job_id)).status is Status.PROCESSING


async def test_a_hinted_verdict_is_counted_and_marked_where_the_vendor_cannot_be_asked(desk: Desk) -> None:
    job_id = await desk.track("c-1", MUTE)
    assert await desk.hint(told(Status.SUCCEEDED, vendor_job_id="c-1", outputs=VIDEO), MUTE) == "apply"
    assert (await desk.job(job_id)).status is Status.SUCCEEDED
    entry = await desk.last(job_id)
    assert entry["applied"]
    assert "unconfirmed" in entry["detail"]
    assert "shared URL" in entry["detail"]


async def test_a_fact_about_a_job_that_nobody_has_registered_is_parked_until_somebody_does(desk: Desk) -> None:
    began = await desk.store.now_ms()
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=5), raw=b"first") == "parked"
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=9), raw=b"second") == "parked"
    ended = await desk.store.now_ms()
    assert await desk.stream() == []
    job_id = await desk.track("v-1")
    job = await desk.job(job_id)
    assert (job.status, job.progress) == (Status.PROCESSING, 9)
    assert await desk.types(job_id) == ["job.submitted", "job.processing"]
    created, *applied = await desk.timeline(job_id)
    assert "received_at" not in created
    assert [entry["raw"] for entry in applied] == ["first", "second"]
    assert all(began <= ms(entry["received_at"]) <= ended <= ms(entry["at"]) for entry in applied)
    assert not await desk.redis.exists(desk.store.key("parked", VENDOR, "v-1"))


@pytest.mark.parametrize("by", ["attaching", "a callback"])
async def test_parked_facts_are_applied_by_whatever_tells_the_vendor_id(desk: Desk, by: str) -> None:
    await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=9))
    job_id = await desk.track(None)
    source = Source.SUBMIT if by == "attaching" else Source.CALLBACK
    await desk.tell(job_id, fact(source, Status.QUEUED, vendor_job_id="v-1"))
    assert (await desk.job(job_id)).status is Status.PROCESSING


async def test_a_parked_verdict_counts_where_the_vendor_cannot_be_asked_and_else_makes_us_ask(desk: Desk) -> None:
    for vendor in (VENDOR, MUTE):
        await desk.hint(told(Status.SUCCEEDED, vendor_job_id="v-1", outputs=VIDEO), vendor)
    asked, counted = await desk.track("v-1"), await desk.track("v-1", MUTE)
    assert (await desk.job(asked)).status is Status.QUEUED
    assert about(await desk.due(asked), 0)
    job = await desk.job(counted)
    assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.WAITING)
    assert await desk.types(counted) == ["job.submitted", "job.succeeded"]


async def test_what_is_parked_has_its_limits(desk: Desk) -> None:
    key = desk.store.key("parked", VENDOR, "v-1")
    facts = [told(Status.PROCESSING, vendor_job_id="v-1", detail=str(n)) for n in range(PARKED_LENGTH + 5)]
    await asyncio.gather(*(desk.hint(seen) for seen in facts))
    assert await desk.redis.llen(key) == PARKED_LENGTH
    assert PARKED_SECONDS - 10 < await desk.redis.ttl(key) <= PARKED_SECONDS
    job_id = await desk.track("v-1")
    details = [entry["detail"] for entry in (await desk.timeline(job_id))[1:]]
    assert details == [str(n) for n in range(5, PARKED_LENGTH + 5)], "the latest"


async def test_a_parked_fact_that_cannot_be_applied_spoils_neither_the_registration_nor_the_others(desk: Desk) -> None:
    parked = desk.store.key("parked", VENDOR, "v-1")
    assert await desk.tell(None, told(Status.PROCESSING, vendor_job_id="v-1")) == "parked"
    (good,) = await desk.redis.lrange(parked, 0, -1)
    broken = msgspec.msgpack.encode({"at": 1, "fact": msgspec.msgpack.encode({"vendor": VENDOR}).decode("latin-1")})
    assert await desk.redis.lpush(parked, broken) == 2

    job_id = await desk.track("v-1")
    assert (await desk.job(job_id)).status is Status.PROCESSING
    assert await desk.redis.lrange(parked, 0, -1) == [broken], f"kept, and {good!r} is not"


async def test_what_cannot_be_understood_may_still_name_the_job_that_its_url_belongs_to(desk: Desk) -> None:
    job_id, other = await desk.track(None), await desk.track("taken")
    named = told(problem=Problem.UNKNOWN_STATUS, vendor_job_id="v-9")
    assert await desk.tell(job_id, named, quarantine=(job_id, b"{}")) == "ask"
    assert (await desk.job(job_id)).vendor_job_id == "v-9"
    assert (await desk.job(job_id)).status is Status.PENDING
    due = await desk.due(job_id)
    assert due is not None
    assert due <= 0

    second = await desk.track(None)
    assert await desk.tell(second, told(problem=Problem.NO_OUTPUT, vendor_job_id="taken")) == "ask"
    assert (await desk.job(second)).vendor_job_id is None
    assert await desk.store.find(VENDOR, "taken") == other


async def test_what_was_not_understood_is_kept_whole_and_the_vendor_is_asked_at_once(desk: Desk) -> None:
    job_id = await desk.track()
    row = await desk.store.job_json(job_id)
    body = b'{"status": "paused", "padding": "' + b"x" * 100_000 + b'"}'
    assert await desk.tell(job_id, PROBLEM, raw=body, quarantine=(job_id, body)) == "ask"
    assert await desk.store.job_json(job_id) == row
    assert about(await desk.due(job_id), 0)
    entry = await desk.last(job_id)
    assert (entry["problem"], entry["detail"]) == ("unknown_status", "unknown status 'paused'")
    assert (entry["status"], entry["applied"], entry["why"]) == (None, False, "the vendor is asked")
    letters, _ = await desk.store.quarantined(10)
    letter = await desk.store.letter(letters[0]["id"].decode())
    assert letter
    assert letter["body"] == body
    assert (letter["vendor"], letter["job_id"], letter["subject"]) == (
        VENDOR.encode(),
        job_id.encode(),
        job_id.encode(),
    )
    assert (letter["problem"], json.loads(letter["detail"])) == (b"unknown_status", PROBLEM.detail)


async def test_the_same_letter_again_is_counted_and_another_is_another(desk: Desk) -> None:
    first, second = await desk.track("v-1"), await desk.track("v-2")
    for job_id, body in ((first, b"?"), (first, b"?"), (first, b"!"), (second, b"?"), (first, b"?")):
        await desk.tell(job_id, PROBLEM, quarantine=(job_id, body))
    letters, _ = await desk.store.quarantined(10)
    assert sorted((letter["job_id"].decode(), int(letter["count"])) for letter in letters) == sorted(
        [(first, 3), (first, 1), (second, 1)]
    )
    assert all(letter["received_at"] <= letter["last_received_at"] for letter in letters)


async def test_a_letter_without_a_job_is_kept_too(desk: Desk) -> None:
    seen = told(problem=Problem.NO_JOB_ID, detail="names no job")
    assert await desk.hint(seen, quarantine=("shared", b"{}")) == "quarantined"
    [letter], _ = await desk.store.quarantined(10)
    assert (letter["job_id"], letter["problem"]) == (b"", b"no_job_id")


@pytest.mark.parametrize(
    ("problem", "url", "named"), [(Problem.UNKNOWN_STATUS, "shared", "v-1"), (Problem.OTHER_JOB, "v-1", "v-2")]
)
async def test_what_was_not_understood_is_noted_on_the_job_behind_its_url_else_on_the_one_that_it_names(
    desk: Desk, problem: Problem, url: str, named: str
) -> None:
    job_id, other = await desk.track("v-1"), await desk.track("v-2")
    seen = told(problem=problem, detail="?", vendor_job_id=named)
    weak = url == "shared"
    assert await desk.tell(None if weak else job_id, seen, weak_path=weak, quarantine=("shared", b"{}")) == "ask"
    assert (await desk.last(job_id))["problem"] == problem
    assert about(await desk.due(job_id), 0)
    assert len(await desk.timeline(other)) == 1


async def test_what_is_too_large_to_keep_and_names_no_job_leaves_nothing_behind(desk: Desk) -> None:
    before = await desk.everything()
    await desk.hint(told(problem=Problem.TOO_LARGE, detail="larger than a callback may be"))
    assert await desk.everything() == before


async def test_what_polling_stumbles_over_is_listed_once_until_something_else_is_learned(desk: Desk) -> None:
    job_id = await desk.track()
    lost = polled(problem=Problem.UNKNOWN_JOB, detail="not_found")
    odd = polled(problem=Problem.UNKNOWN_STATUS, detail="unknown status 'paused'")
    for seen in (lost, lost, odd, odd, odd, lost, polled(Status.PROCESSING), lost, lost):
        await desk.tell(job_id, seen)
    listed = [entry.get("problem") for entry in await desk.timeline(job_id)]
    assert listed == [None, "unknown_job", "unknown_status", "unknown_job", None, "unknown_job"]
    assert about(await desk.due(job_id), ASK.every), "and polling goes on"
