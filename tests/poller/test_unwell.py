"""Vendors that are unwell are left alone for a while, and harm no other."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from service.model import Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support.files import Answer, Files, Wire, raw, run_fast, status, whole
from tests.support.pollers import LISTED, SLUGS, by_wire, let_try_again, look, poller_of
from tests.support.processes import eventually, eventually_async
from tests.support.sandbox import Desk, Sandbox, desk_of
from workers import poller as poller_module
from workers.poller import ENOUGH_ERRORS, IN_FLIGHT, Poller


@pytest.mark.parametrize("fault", ["vendor_down", "vendor_rate_limited", "vendor_500", "vendor_garbage"])
@pytest.mark.parametrize("vendor", SLUGS)
async def test_an_unwell_vendor_is_left_alone_for_a_while(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str, fault: str
) -> None:
    jobs = [desk.track(vendor, sandbox.finished(vendor)) for _ in range(3)]
    sandbox.order(vendor, fault)
    await look(poller, desk, vendor)
    asked = sandbox.calls(vendor)["faulted"]
    assert desk.redis.exists(desk.key("vendor", vendor))
    await look(poller, desk, vendor)  # they are due, but their vendor is not
    assert sandbox.calls(vendor) == {"faulted": asked}
    assert {desk.job(job_id).status for job_id in jobs} == {Status.QUEUED}
    if fault in ("vendor_down", "vendor_rate_limited"):  # which is no word about a job
        assert asked <= len(jobs)
        assert {len(desk.timeline(job_id)) for job_id in jobs} == {1}

    let_try_again(desk, vendor)
    await poller.look_after(vendor)
    assert sandbox.calls(vendor) == {"faulted": asked + 1}  # with one job, and it is still unwell
    assert desk.redis.exists(desk.key("vendor", vendor))

    sandbox.clear()
    let_try_again(desk, vendor)
    for _ in range(2):
        await look(poller, desk, vendor)
    assert {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}
    assert not desk.redis.exists(desk.key("vendor", vendor))


async def test_what_fails_at_the_same_time_is_one_failure(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    """The wait doubles with every failure in a row. Calls that were in flight together are not in a row."""
    jobs = [desk.track("lipsync_studio", sandbox.submit("lipsync_studio")) for _ in range(IN_FLIGHT)]
    sandbox.order("lipsync_studio", "vendor_down")
    await look(poller, desk, "lipsync_studio")
    health = desk.redis.hgetall(desk.key("vendor", "lipsync_studio"))
    assert health[b"failures"] == b"1"
    assert int(health[b"retry_at"]) - desk.now_ms() <= 1000
    waits = [desk.due_in(job_id, "polls", "lipsync_studio") or 99 for job_id in jobs]
    assert max(waits) <= 1.5


async def test_a_vendor_that_asks_to_be_left_alone_is(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    job_id = desk.track("kitta", sandbox.submit("kitta"))
    sandbox.order("kitta", "vendor_rate_limited")  # it says: Retry-After: 2
    await look(poller, desk, "kitta")
    retry_at = int(desk.redis.hget(desk.key("vendor", "kitta"), "retry_at") or 0)
    assert 1000 < retry_at - desk.now_ms() <= 2000
    assert desk.due_in(job_id, "polls", "kitta") == pytest.approx(2, abs=0.5)


async def test_a_refused_credential_is_not_tried_over_and_over(settings: Settings, sandbox: Sandbox) -> None:
    bad = replace(settings.accounts["lipsync_studio"], credentials={"LIPSYNC_STUDIO_API_KEY": "invalid"})
    refused = replace(settings, accounts=settings.accounts | {"lipsync_studio": bad})
    with desk_of(refused) as desk:
        job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
        other = desk.track("apimodels", sandbox.finished("apimodels"))
        async with poller_of(refused) as poller:
            for _ in range(3):
                await look(poller, desk, "lipsync_studio")
            await look(poller, desk, "apimodels")
        assert sandbox.calls("lipsync_studio") == {"refused": 1}
        assert desk.job(job_id).status is Status.QUEUED
        assert desk.job(other).status is Status.SUCCEEDED


@pytest.mark.parametrize("vendor", SLUGS)
async def test_garbage_is_no_verdict_and_noted_once(poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str) -> None:
    job_id = desk.track(vendor, sandbox.finished(vendor))
    sandbox.order(vendor, "vendor_garbage")
    for _ in range(3):
        await look(poller, desk, vendor)
    assert desk.job(job_id).status is Status.QUEUED
    assert [seen["problem"] for seen in desk.timeline(job_id)[1:]] == ["bad_json"]
    sandbox.clear()
    await look(poller, desk, vendor)
    assert desk.job(job_id).status is Status.SUCCEEDED


@pytest.mark.parametrize("vendor", LISTED)
async def test_without_a_list_that_can_be_read_each_job_is_asked_for(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    jobs = [desk.track(vendor, sandbox.finished(vendor)) for _ in range(3)]
    sandbox.order(vendor, "vendor_garbage", count=1)
    await look(poller, desk, vendor)
    assert {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}
    assert not desk.redis.exists(desk.key("vendor", vendor))


@by_wire
async def test_jobs_that_only_errors_kept_from_being_asked_about_are_due_at_once(
    poller: Poller, desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors stop the asking; then an answer that was on its way shows that the vendor is well."""
    monkeypatch.setattr(poller_module, "IN_FLIGHT", 4)
    path, names = "/lipsync_studio/api/v1/jobs/", [f"v{number}" for number in range(8)]
    jobs = [desk.track("lipsync_studio", name) for name in names]

    def after_the_errors(wire: Wire) -> None:
        eventually(lambda: sum(len(desk.timeline(job_id)) > 1 for job_id in jobs) >= ENOUGH_ERRORS)
        whole(b'{"id":"v0","status":"processing"}', media_type="application/json")(wire)

    files.serve(f"{path}v0", after_the_errors)
    for name in names[1:]:
        files.serve(f"{path}{name}", status(500))
    desk.redis.zadd(desk.key("polls", "lipsync_studio"), {job_id: number for number, job_id in enumerate(jobs)})
    await poller.look_after("lipsync_studio")
    assert not desk.redis.exists(desk.key("vendor", "lipsync_studio"))
    left = [job_id for job_id, name in zip(jobs, names, strict=True) if not files.requests(f"{path}{name}")]
    assert left
    due = [desk.due_in(job_id, "polls", "lipsync_studio") for job_id in left]
    assert all(seconds is not None and seconds <= 0 for seconds in due)


@by_wire
async def test_an_error_about_one_job_holds_up_no_other(poller: Poller, desk: Desk, files: Files) -> None:
    """A vendor may stumble over a single task for ever: that one is noted, and keeps to its rhythm."""
    path = "/lipsync_studio/api/v1/jobs/"
    files.serve(f"{path}poison", status(500))
    for number in range(3):
        body = b'{"id":"v%d","status":"failed","error":"x"}' % number
        files.serve(f"{path}v{number}", whole(body, media_type="application/json"))
    poison = desk.track("lipsync_studio", "poison")
    await look(poller, desk, "lipsync_studio")
    assert not desk.redis.exists(desk.key("vendor", "lipsync_studio"))  # one error says nothing of the vendor
    others = [desk.track("lipsync_studio", f"v{number}") for number in range(3)]
    await look(poller, desk, "lipsync_studio")
    assert {desk.job(job_id).status for job_id in others} == {Status.FAILED}
    assert not desk.redis.exists(desk.key("vendor", "lipsync_studio"))
    assert [entry.get("problem") for entry in desk.timeline(poison)] == [None, "vendor_error"]
    due = desk.due_in(poison, "polls", "lipsync_studio")
    assert due is not None
    assert due > 3


@pytest.mark.parametrize("vendor", SLUGS)
async def test_a_job_that_the_vendor_does_not_know_is_noted_once_and_asked_about_on(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str
) -> None:
    job_id = desk.track(vendor, "a-job-of-somebody-else")
    for _ in range(3):
        await look(poller, desk, vendor)
    assert [seen["problem"] for seen in desk.timeline(job_id)[1:]] == ["unknown_job"]
    assert desk.job(job_id).status is Status.QUEUED
    assert desk.due_in(job_id, "polls", vendor) == pytest.approx(VENDORS[vendor].RHYTHM.every, abs=1)
    assert desk.redis.exists(desk.key("vendor", vendor)) == 0
    assert sandbox.calls(vendor) == {"refused": 3}


async def test_an_unknown_word_is_noted_once_and_the_verdict_lands(
    poller: Poller, desk: Desk, sandbox: Sandbox
) -> None:
    vendor_job_id = sandbox.finished("lipsync_studio", "unknown_status:0.4")
    job_id = desk.track("lipsync_studio", vendor_job_id)
    for _ in range(2):
        await look(poller, desk, "lipsync_studio")
    assert desk.job(job_id).status is Status.QUEUED
    assert [seen["problem"] for seen in desk.timeline(job_id)[1:]] == ["unknown_status"]

    async def succeeded() -> bool:
        await look(poller, desk, "lipsync_studio")
        return desk.job(job_id).status is Status.SUCCEEDED

    await eventually_async(succeeded, "the verdict")


def test_a_vendor_that_hangs_holds_up_no_other_and_not_the_stop_either(settings: Settings, sandbox: Sandbox) -> None:
    """By a clock that runs 20 times faster: the time that the platform gives is 30 s."""
    times = 20
    with desk_of(settings) as desk:
        stuck = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
        others = [desk.track(vendor, sandbox.finished(vendor)) for vendor in ("apimodels", "chanjing", "kitta")]
        sandbox.order("lipsync_studio", "vendor_hangs")

        async def run() -> float:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            async with poller_of(settings) as poller:
                for vendor in SLUGS:
                    desk.make_due("polls", vendor)
                running = asyncio.create_task(poller.run(stop))

                async def others_done() -> bool:
                    return {desk.job(job_id).status for job_id in others} == {Status.SUCCEEDED}

                await eventually_async(others_done, "the others' verdicts", timeout=10)
                assert sandbox.calls("lipsync_studio") == {"faulted": 1}
                stop.set()
                began = loop.time()
                await running
                return loop.time() - began

        assert run_fast(run(), times=times) < 30
        assert desk.job(stuck).status is Status.QUEUED
        assert desk.due_in(stuck, "polls", "lipsync_studio") is not None


@by_wire
async def test_a_turn_that_stumbles_ends_no_watch(poller: Poller, desk: Desk, files: Files) -> None:
    """Whatever one vendor answers, the loop over it goes on, and what it has claimed is asked about again."""
    answers: list[Answer] = [
        raw(b"HTTP/1.1 429 Slow down\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n"),
        whole(b'{"id":"42","status":"failed","error":"at last"}', media_type="application/json"),
    ]
    files.serve("/lipsync_studio/api/v1/jobs/42", *answers)
    job_id = desk.track("lipsync_studio", "42")
    stop = asyncio.Event()
    desk.make_due("polls", "lipsync_studio")
    running = asyncio.create_task(poller.run(stop))

    async def over() -> bool:
        if len(files.requests("/lipsync_studio/api/v1/jobs/42")) == 1:
            desk.make_due("polls", "lipsync_studio")
        return desk.job(job_id).status is Status.FAILED

    await eventually_async(over, "the verdict")
    stop.set()
    await running
