"""Sent, and not answered: looked for, told by its callback, resolved by the operator; never sent again blindly."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from service.jobs import tasks
from service.model import JobError, Observation, Source, Status
from tests.support.processes import eventually
from tests.support.sandbox import Desk, Sandbox
from tests.support.submissions import CALLING, LISTED, Crew, bought, check_nobody_sends_it, expire, order, resolve
from tests.support.web import Web
from workers import vendor_client
from workers.submit import SKEW
from workers.vendor_client import CALL_SECONDS, VendorClient


def sent_to(sandbox: Sandbox, vendor: str) -> int:
    """How often the vendor was asked for a job, and had no reason to refuse."""
    found: dict[str, dict[str, int]] = sandbox.http.get("/_sandbox/calls").json()["data"]
    return found.get(vendor, {}).get("submit", 0)


@pytest.mark.parametrize("fault", ["submit_lost", "submit_500", "submit_hangs"])
@pytest.mark.parametrize("vendor", CALLING)
async def test_a_callback_tells_what_the_answer_did_not(
    desk: Desk, crew: Crew, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, vendor: str, fault: str
) -> None:
    monkeypatch.setattr(vendor_client, "CALL_SECONDS", 0.05)
    sandbox.order(vendor, fault, "seconds:0.1")
    job_id = order(desk, vendor)
    await crew.send(job_id)
    assert desk.timeline(job_id)[1]["status"] == "unconfirmed"

    eventually(lambda: desk.job(job_id).status is Status.SUCCEEDED, "the callback")
    assert desk.job(job_id).vendor_job_id == bought(sandbox, vendor)[0]["id"]
    assert desk.announced(job_id) == ["job.submitted", "job.succeeded"]
    assert crew.due() == []
    assert sent_to(sandbox, vendor) == 1


@pytest.mark.parametrize("vendor", ["lipsync_studio", "kitta"])
async def test_the_operator_resolves_what_nobody_else_can(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox, vendor: str
) -> None:
    adopted, failed = (lost_at(desk, order(desk, vendor)) for _ in range(2))
    taken = sandbox.submit(vendor, "job_stuck")
    resolve(callsheet, adopted, action="adopt", vendor_job_id=taken)
    resolve(callsheet, failed, action="fail")
    await crew.settle()
    assert (desk.job(adopted).status, desk.job(adopted).vendor_job_id) == (Status.QUEUED, taken)
    assert desk.due_in(adopted, "polls", vendor) is not None
    assert desk.job(failed).status is Status.FAILED
    assert len(bought(sandbox, vendor)) == 1


def lost_at(desk: Desk, job_id: str, ago: float = 0.0) -> str:
    """As if the job had been sent so many seconds ago, by a process that did not live to hear the answer."""
    seen = Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED)
    vendor = desk.job(job_id).vendor
    assert desk.record(seen, vendor=vendor, job_id=job_id, sending="a sending").outcome == "apply"
    desk.redis.hset(desk.key("job", job_id), "_sent_at", desk.now_ms() - int(ago * 1000))
    return job_id


# -- looked for in the vendor's list --------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["submit_lost", "submit_500"])
@pytest.mark.parametrize("vendor", LISTED)
async def test_a_job_that_the_vendor_has_is_found_in_its_list(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str, fault: str
) -> None:
    known = [order(desk, vendor) for _ in range(3)]
    sandbox.order(vendor, "job_stuck", "callback_lost")
    for job_id in known[:2]:
        await crew.send(job_id)
    sandbox.order(vendor, fault, count=1)
    job_id = order(desk, vendor)
    await crew.send(job_id)
    await crew.send(known[2])
    assert desk.job(job_id).status is Status.UNCONFIRMED
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(tasks.LOOKS[0], abs=1)
    assert await crew.send(job_id) == "apply"
    job = desk.job(job_id)
    assert job.status in (Status.QUEUED, Status.PROCESSING)
    assert job.vendor_job_id == bought(sandbox, vendor)[2]["id"]
    assert job.submitted_at is not None
    assert desk.due_in(job_id, "polls", vendor) is not None
    assert crew.due() == []
    assert len(bought(sandbox, vendor)) == 4
    # The rows of one vendor are sparse: when a job was made is asked for, of those that nobody knows.
    assert sandbox.calls(vendor) == {"list": 1} | ({"status": 1} if vendor == "kitta" else {})


async def test_a_job_that_failed_meanwhile_is_found_with_its_reason(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    sandbox.order("kitta", "submit_lost", "job_failed", "seconds:0")
    job_id = order(desk, "kitta")
    await crew.send(job_id)
    assert await crew.send(job_id) == "apply"
    job = desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (Status.FAILED, bought(sandbox, "kitta")[0]["id"])
    assert job.error is not None
    assert job.error.code == "generation_failed"


@pytest.mark.parametrize("vendor", LISTED)
async def test_two_that_were_lost_at_about_the_same_time_are_not_guessed_at(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox, vendor: str
) -> None:
    sandbox.order(vendor, "submit_lost", "job_stuck", "callback_lost")
    first, second = (order(desk, vendor) for _ in range(2))
    for job_id in (first, second):
        await crew.send(job_id)
    for job_id in (first, second) * 2:
        await crew.send(job_id)
        assert desk.job(job_id).vendor_job_id is None
        assert "other jobs" in desk.timeline(job_id)[-1]["detail"]
    # Once one of them is known, there is nothing left to guess.
    resolve(callsheet, first, action="adopt", vendor_job_id=bought(sandbox, vendor)[0]["id"])
    await crew.settle()
    assert desk.job(second).vendor_job_id == bought(sandbox, vendor)[1]["id"]
    assert len(bought(sandbox, vendor)) == 2


#: How long ago our job was sent, with a stranger's job made just now, and whether that can be ours.
STRANGERS: Final = {
    "made long before": (-SKEW.seconds - 5, False),
    "made just before": (-SKEW.seconds + 2, True),
    "made just after": (CALL_SECONDS + SKEW.seconds - 3, True),
    "made long after": (CALL_SECONDS + SKEW.seconds + 5, False),
}


@pytest.mark.parametrize("when", STRANGERS)
@pytest.mark.parametrize("vendor", LISTED)
async def test_a_stranger_s_job_made_at_another_time_is_not_taken_for_ours(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str, when: str
) -> None:
    ago, fits = STRANGERS[when]
    job_id = lost_at(desk, order(desk, vendor), ago)
    stranger = sandbox.submit(vendor, "job_stuck")
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id == (stranger if fits else None)
    if not fits:
        assert "none of the vendor's jobs" in desk.timeline(job_id)[-1]["detail"]


async def test_a_stranger_s_job_that_was_asked_something_else_is_not_taken_for_ours(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    image = {"image_url": "https://example.com/face.png", "audio_url": "https://example.com/voice.mp3"}
    job_id = lost_at(desk, order(desk, "kitta", image))
    sandbox.submit("kitta", "job_stuck")  # in video mode
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id is None
    assert "none of the vendor's jobs" in desk.timeline(job_id)[-1]["detail"]


async def test_beside_a_job_that_failed_for_an_error_of_the_vendor_s_none_is_taken(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    """The vendor may have made that one all the same, and then it is the stranger."""
    failed, job_id = (lost_at(desk, order(desk, "kitta")) for _ in range(2))
    error = JobError(code="vendor_error", message="database error", retryable=True)
    desk.record(Observation(source=Source.SUBMIT, status=Status.FAILED, error=error), vendor="kitta", job_id=failed)
    sandbox.submit("kitta", "job_stuck")
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id is None
    assert "other jobs" in desk.timeline(job_id)[-1]["detail"]


async def test_of_two_strangers_that_fit_none_is_taken(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    job_id = lost_at(desk, order(desk, "kitta"))
    for _ in range(2):
        sandbox.submit("kitta", "job_stuck")
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id is None
    assert "2 of the vendor's jobs could be this one" in desk.timeline(job_id)[-1]["detail"]


async def test_a_job_that_is_being_sent_while_the_list_is_read_is_not_taken_for_the_lost_one(
    desk: Desk, crew: Crew, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = lost_at(desk, order(desk, "kitta")), order(desk, "kitta")
    sandbox.order("kitta", "submit_hangs", "job_stuck", count=1)
    list_page, sending = VendorClient.list_page, list[asyncio.Task[str]]()

    async def listed(client: VendorClient, slug: str, page: int) -> Any:
        sending.append(asyncio.create_task(crew.send(other)))
        await asyncio.to_thread(eventually, lambda: len(bought(sandbox, "kitta")) == 1, "the other job at the vendor")
        return await list_page(client, slug, page)

    monkeypatch.setattr(VendorClient, "list_page", listed)
    await crew.send(lost)
    assert desk.job(lost).vendor_job_id is None
    assert "other jobs" in desk.timeline(lost)[-1]["detail"]
    sending[0].cancel()
    await asyncio.gather(*sending, return_exceptions=True)


async def test_a_list_that_cannot_be_read_is_read_later_and_then_it_is_the_operator_s(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox
) -> None:
    sandbox.order("kitta", "submit_lost", "job_stuck", count=2)
    job_id = order(desk, "kitta")
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    sandbox.order("kitta", "vendor_500")
    for wait in tasks.LOOKS[1:]:
        await crew.send(job_id)
        assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(wait, abs=1)
    await crew.send(job_id)
    check_nobody_sends_it(desk, callsheet, job_id)
    assert "cannot be read" in desk.timeline(job_id)[-1]["detail"]
    sandbox.clear()
    assert callsheet.api.post(f"/v1/jobs/{job_id}/refresh").status_code == 202
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id == bought(sandbox, "kitta")[0]["id"]


async def test_a_second_search_has_all_its_looks_before_it(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox
) -> None:
    job_id = lost_at(desk, order(desk, "kitta"))
    await crew.settle()
    check_nobody_sends_it(desk, callsheet, job_id)
    assert callsheet.api.post(f"/v1/jobs/{job_id}/refresh").status_code == 202
    await crew.send(job_id)
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(tasks.LOOKS[0], abs=1)


# -- deadlines ------------------------------------------------------------------------------------------


async def test_a_job_that_nobody_could_send_in_time_expires(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    job_id = order(desk, "chanjing")
    sandbox.order("chanjing", "vendor_down")
    await crew.send(job_id)
    await expire(desk, crew)
    job = desk.job(job_id)
    assert (job.status, job.scheduled_at) == (Status.EXPIRED, None)
    assert desk.announced(job_id) == ["job.expired"]
    sandbox.clear()
    assert await crew.send(job_id) == "nothing to do"
    assert (crew.due(), bought(sandbox, "chanjing")) == ([], [])
    assert desk.redis.zcard(desk.key("turns", "chanjing")) == 0


async def test_a_job_that_nobody_heard_of_in_time_expires_and_its_verdict_lands(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    sandbox.order("lipsync_studio", "submit_lost", "callback_late:0.3")
    job_id = order(desk, "lipsync_studio")
    await crew.send(job_id)
    await expire(desk, crew)
    assert desk.job(job_id).status is Status.EXPIRED
    assert desk.announced(job_id) == ["job.expired"]

    eventually(lambda: desk.job(job_id).status is Status.SUCCEEDED, "the callback")
    assert desk.announced(job_id) == ["job.expired", "job.succeeded"]
    assert crew.due() == []
