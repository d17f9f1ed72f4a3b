"""Every verdict is found without a callback, in a list where there is one; and who is asked when, until its end."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from service.model import Archive, Observation, Output, Problem, Source, Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support.pollers import LISTED, SLUGS, first_look, look, without_credentials
from tests.support.processes import eventually
from tests.support.sandbox import Desk, Sandbox, desk_of
from workers.poller import Poller

# -- verdicts without a callback ------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", SLUGS)
async def test_a_lost_callback_is_made_up_for(poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str) -> None:
    vendor_job_id = sandbox.finished(vendor, "callback_lost")
    job_id = desk.track(vendor, vendor_job_id)
    await look(poller, desk, vendor)
    job = desk.job(job_id)
    known = sandbox.job(vendor, vendor_job_id)["outputs"][0]
    assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.WAITING)
    assert [output.url for output in job.outputs] == [known["url"]]
    assert desk.announced(job_id) == ["job.submitted", "job.succeeded"]
    seen = desk.timeline(job_id)[-1]
    assert (seen["source"], seen["applied"]) == ("poll", True)
    assert seen["raw"]
    assert desk.due_in(job_id, "polls", vendor) is None
    assert desk.due_in(job_id, "deadlines") is None
    assert sandbox.calls(vendor) == {"status": 1}


@pytest.mark.parametrize("vendor", SLUGS)
async def test_a_failure_is_found_with_the_vendor_s_words(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    job_id = desk.track(vendor, sandbox.finished(vendor, "job_failed"))
    await look(poller, desk, vendor)
    job = desk.job(job_id)
    assert (job.status, job.archive) == (Status.FAILED, Archive.NONE)
    assert job.error is not None
    assert job.error.message


@pytest.mark.parametrize("vendor", SLUGS)
async def test_a_job_that_is_not_done_is_asked_about_again(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    vendor_job_id = sandbox.submit(vendor, "job_stuck")
    eventually(lambda: sandbox.job(vendor, vendor_job_id)["status"] == "processing", "the vendor's work on it")
    job_id = desk.track(vendor, vendor_job_id)
    for _ in range(3):
        await look(poller, desk, vendor)
        assert desk.job(job_id).status is Status.PROCESSING
        assert desk.due_in(job_id, "polls", vendor) == pytest.approx(VENDORS[vendor].RHYTHM.every, abs=1)
    # Polls without news leave nothing behind.
    assert [seen["source"] for seen in desk.timeline(job_id)] == ["submit", "poll"]
    assert desk.announced(job_id) == ["job.submitted", "job.processing"]


# -- when -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", SLUGS)
async def test_before_the_grace_is_over_nobody_is_asked(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    job_id = desk.track(vendor, sandbox.finished(vendor))
    assert desk.due_in(job_id, "polls", vendor) == pytest.approx(first_look(vendor), abs=1)
    assert await poller.look_after(vendor) is False
    assert sandbox.calls(vendor) == {}
    assert desk.job(job_id).status is Status.QUEUED


async def test_a_callback_in_time_spares_the_look(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
    seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=(Output(url="http://127.0.0.1/a"),))
    desk.record(seen, vendor="lipsync_studio", job_id=job_id)
    await look(poller, desk, "lipsync_studio")
    assert sandbox.calls("lipsync_studio") == {}


@pytest.mark.parametrize("vendor", SLUGS)
async def test_the_grace_that_is_set_is_for_vendors_that_call_back(
    settings: Settings, sandbox: Sandbox, vendor: str
) -> None:
    """Kitta never calls back: there is nothing to wait for, and it is asked at its own rhythm."""
    with desk_of(replace(settings, poll_grace=600)) as desk:
        job_id = desk.track(vendor, sandbox.submit(vendor))
        wait = first_look(vendor) if vendor == "kitta" else 600
        assert desk.due_in(job_id, "polls", vendor) == pytest.approx(wait, abs=1)


#: A job's age in seconds, and the seconds until it is asked about again.
BACKING_OFF = [(0, 5), (40, 5), (100, 10), (1000, 100), (3000, 300), (50_000, 300)]


@pytest.mark.parametrize(("age", "wait"), BACKING_OFF)
async def test_the_older_a_job_the_rarer_it_is_asked_about(
    poller: Poller, desk: Desk, sandbox: Sandbox, age: int, wait: int
) -> None:
    job_id = desk.track("lipsync_studio", sandbox.submit("lipsync_studio", "job_stuck"))
    desk.redis.hset(desk.key("job", job_id), "_since", desk.now_ms() - age * 1000)
    await look(poller, desk, "lipsync_studio")
    assert desk.due_in(job_id, "polls", "lipsync_studio") == pytest.approx(wait, abs=1)


async def test_what_was_not_understood_is_asked_about_at_once(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
    seen = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON, detail="not JSON")
    desk.record(seen, vendor="lipsync_studio", job_id=job_id, raw=b"{")
    await poller.look_after("lipsync_studio")
    assert desk.job(job_id).status is Status.SUCCEEDED


# -- list calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", LISTED)
async def test_several_due_jobs_are_looked_up_in_one_list(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    ids = [sandbox.finished(vendor) for _ in range(5)]
    jobs = [desk.track(vendor, vendor_job_id) for vendor_job_id in ids]
    await look(poller, desk, vendor)
    assert sandbox.calls(vendor) == {"list": 1}
    for job_id, vendor_job_id in zip(jobs, ids, strict=True):
        job = desk.job(job_id)
        assert job.status is Status.SUCCEEDED
        assert job.outputs[0].url == sandbox.job(vendor, vendor_job_id)["outputs"][0]["url"]


@pytest.mark.parametrize("vendor", LISTED)
async def test_what_the_list_does_not_tell_is_asked_for_by_itself(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    fine = [desk.track(vendor, sandbox.finished(vendor)) for _ in range(2)]
    failed = [desk.track(vendor, sandbox.finished(vendor, "job_failed")) for _ in range(2)]
    odd = desk.track(vendor, sandbox.finished(vendor, "unknown_status"))
    gone = desk.track(vendor, "a-job-that-the-vendor-has-forgotten")
    await look(poller, desk, vendor)
    calls = sandbox.calls(vendor)
    assert calls.pop("list") == 1
    assert calls == {"status": 3, "refused": 1}
    assert [desk.job(job_id).status for job_id in fine] == [Status.SUCCEEDED] * 2
    errors = [desk.job(job_id).error for job_id in failed]
    assert all(error and error.message not in ("", "the vendor gave no reason") for error in errors)
    assert desk.timeline(odd)[-1]["problem"] == "unknown_status"
    assert desk.timeline(gone)[-1]["problem"] == "unknown_job"


async def test_a_list_is_read_as_far_as_the_due_jobs_are_on_it(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    sandbox.order("kitta", "seconds:0")
    old = [desk.track("kitta", sandbox.submit("kitta")) for _ in range(2)]
    for _ in range(VENDORS["kitta"].LIST_PAGE):
        sandbox.submit("kitta")
    new = [desk.track("kitta", sandbox.submit("kitta")) for _ in range(2)]
    due = dict.fromkeys(new, 0) | dict.fromkeys(old, desk.now_ms() + 10**6)
    desk.redis.zadd(desk.key("polls", "kitta"), due)
    await poller.look_after("kitta")
    assert sandbox.calls("kitta") == {"list": 1}
    await look(poller, desk, "kitta")
    assert sandbox.calls("kitta") == {"list": 1 + 2}
    assert {desk.job(job_id).status for job_id in old + new} == {Status.SUCCEEDED}


async def test_no_more_pages_are_read_than_jobs_would_have_to_be_asked_for(
    poller: Poller, desk: Desk, sandbox: Sandbox
) -> None:
    sandbox.order("kitta", "seconds:0")
    old = [desk.track("kitta", sandbox.submit("kitta")) for _ in range(2)]
    for _ in range(3 * VENDORS["kitta"].LIST_PAGE):
        sandbox.submit("kitta")
    await look(poller, desk, "kitta")
    assert sandbox.calls("kitta") == {"list": 2, "status": 2}
    assert {desk.job(job_id).status for job_id in old} == {Status.SUCCEEDED}


async def test_what_is_due_soon_comes_along_in_a_list(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    jobs = [desk.track("kitta", sandbox.finished("kitta")) for _ in range(3)]
    late = desk.track("kitta", sandbox.finished("kitta"))
    for seconds, job_id in zip((-1, 0.5, 2.5, 60), (*jobs, late), strict=True):
        desk.redis.zadd(desk.key("polls", "kitta"), {job_id: desk.now_ms() + seconds * 1000})
    await poller.look_after("kitta")
    assert sandbox.calls("kitta") == {"list": 1}
    assert {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}
    assert desk.job(late).status is Status.QUEUED


async def test_one_due_job_is_asked_for_by_itself(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    desk.track("kitta", sandbox.finished("kitta"))
    await look(poller, desk, "kitta")
    assert sandbox.calls("kitta") == {"status": 1}


# -- deadlines, and the sweep ---------------------------------------------------------------------------


async def test_after_the_deadline_a_job_is_expired_and_a_later_verdict_lands(
    poller: Poller, desk: Desk, sandbox: Sandbox
) -> None:
    job_id = desk.track("lipsync_studio", sandbox.submit("lipsync_studio", "job_stuck"))
    assert desk.due_in(job_id, "deadlines") == pytest.approx(86_400, abs=1)
    await poller.expire()
    assert desk.job(job_id).status is Status.QUEUED
    desk.make_due("deadlines")
    await poller.expire()
    await poller.expire()
    assert desk.job(job_id).status is Status.EXPIRED
    assert desk.announced(job_id) == ["job.submitted", "job.expired"]
    assert desk.due_in(job_id, "deadlines") is None
    assert desk.due_in(job_id, "polls", "lipsync_studio") is None
    await look(poller, desk, "lipsync_studio")
    assert sandbox.calls("lipsync_studio") == {}

    seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=(Output(url="http://127.0.0.1/a"),))
    assert desk.record(seen, vendor="lipsync_studio", job_id=job_id).outcome == "apply"
    job = desk.job(job_id)
    assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.WAITING)
    assert desk.announced(job_id) == ["job.submitted", "job.expired", "job.succeeded"]


@without_credentials
@pytest.mark.parametrize("vendor_job_id", [None, "42"])
async def test_a_job_of_a_vendor_that_cannot_be_asked_expires_too(
    poller: Poller, desk: Desk, vendor_job_id: str | None
) -> None:
    job_id = desk.track("kitta", vendor_job_id)
    desk.make_due("deadlines")
    await poller.expire()
    assert desk.job(job_id).status is Status.EXPIRED


async def test_a_job_with_a_verdict_does_not_expire(poller: Poller, desk: Desk) -> None:
    job_id = desk.made("http://127.0.0.1/a")
    desk.redis.zadd(desk.key("deadlines"), {job_id: 0})  # as if the two had crossed
    await poller.expire()
    assert desk.job(job_id).status is Status.SUCCEEDED
    assert "job.expired" not in desk.announced(job_id)
