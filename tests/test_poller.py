"""The poller: every verdict is found without a callback, no vendor is asked too often, and none harms the others.

One turn at a time where that says it all, and real processes for what happens between processes. The vendors are the
sandbox's; time passes by ageing what Redis has scored by time.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from service.deployment import opened
from service.model import Archive, Observation, Output, Problem, Source, Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.files import Answer, Files, Wire, raw, run_fast, status, whole
from tests.support.processes import BIN, Process, Processes, eventually, eventually_async
from tests.support.sandbox import Desk, Sandbox
from tests.support.servers import valkey_server
from workers import outbound
from workers import poller as poller_module
from workers.poller import ENOUGH_ERRORS, IN_FLIGHT, Poller
from workers.vendor_client import VendorClient

SLUGS: Final = ("apimodels", "chanjing", "kitta", "lipsync_studio")
LISTED: Final = ("chanjing", "kitta")  # the vendors with a list call


@pytest.fixture
def settings(redis_url: str, sandbox: Sandbox) -> Settings:
    return deployments.settings(redis_url, accounts=sandbox.accounts())


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with closing(Desk(settings)) as made:
        yield made


@asynccontextmanager
async def poller_of(settings: Settings) -> AsyncIterator[Poller]:
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        yield Poller(deployment, VendorClient(deployment, http))


@pytest.fixture
async def poller(settings: Settings) -> AsyncIterator[Poller]:
    async with poller_of(settings) as made:
        yield made


class Pollers:
    """Starts pollers as processes, which are killed when the test ends."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._started: list[Process] = []

    def start(self, settings: Settings) -> Process:
        """A poller that has said that it works."""
        name = f"poller-{len(self._started)}"
        variables = deployments.environment(settings)
        process = self._processes.start(name, [BIN / "python", "-m", "workers.poller"], env=variables)
        self._started.append(process)
        process.wait_until(lambda: "poller started" in process.output(), "its start")
        return process

    def kill(self) -> None:
        for process in self._started:
            process.kill()


@pytest.fixture
def pollers(processes: Processes) -> Iterator[Pollers]:
    made = Pollers(processes)
    yield made
    made.kill()


def lines(process: Process, event: str) -> list[dict[str, object]]:
    """What a process has logged under this name."""
    whole_lines = process.output().split("\n")[:-1]
    found = (json.loads(line) for line in whole_lines if line.startswith("{"))
    return [line for line in found if line["event"] == event]


def first_look(vendor: str) -> float:
    """Seconds until a vendor is asked about a new job."""
    rhythm = VENDORS[vendor].RHYTHM
    return rhythm.every if rhythm.grace is None else rhythm.grace


async def look(poller: Poller, desk: Desk, vendor: str) -> None:
    """One turn, with everything due."""
    desk.make_due("polls", vendor)
    await poller.look_after(vendor)


def let_try_again(desk: Desk, vendor: str) -> None:
    """As if the time had passed for which an unwell vendor is left alone."""
    desk.redis.hset(desk.key("vendor", vendor), "retry_at", 0)
    desk.make_due("polls", vendor)


# -- verdicts without a callback --------------------------------------------------------------------------------


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


# -- when -------------------------------------------------------------------------------------------------------


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
    with closing(Desk(replace(settings, poll_grace=600))) as desk:
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


async def test_there_is_a_last_look_just_before_the_deadline(settings: Settings, sandbox: Sandbox) -> None:
    short = replace(settings, job_deadline=200)
    with closing(Desk(short)) as desk:
        job_id = desk.track("lipsync_studio", sandbox.submit("lipsync_studio", "job_stuck"))
        desk.redis.hset(desk.key("job", job_id), "_since", desk.now_ms() - 10**7)
        async with poller_of(short) as poller:
            await look(poller, desk, "lipsync_studio")
        assert desk.due_in(job_id, "polls", "lipsync_studio") == pytest.approx(199, abs=1)


async def test_what_was_not_understood_is_asked_about_at_once(poller: Poller, desk: Desk, sandbox: Sandbox) -> None:
    job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
    seen = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON, detail="not JSON")
    desk.record(seen, vendor="lipsync_studio", job_id=job_id, raw=b"{")
    await poller.look_after("lipsync_studio")
    assert desk.job(job_id).status is Status.SUCCEEDED


# -- list calls -------------------------------------------------------------------------------------------------


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


# -- vendors that are unwell --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["vendor_down", "vendor_rate_limited"])
@pytest.mark.parametrize("vendor", SLUGS)
async def test_an_unwell_vendor_is_left_alone_for_a_while(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str, fault: str
) -> None:
    jobs = [desk.track(vendor, sandbox.finished(vendor)) for _ in range(3)]
    sandbox.order(vendor, fault)
    await look(poller, desk, vendor)
    asked = sandbox.calls(vendor)["faulted"]
    assert asked <= len(jobs)
    await look(poller, desk, vendor)  # they are due, but their vendor is not
    assert sandbox.calls(vendor) == {"faulted": asked}
    assert {desk.job(job_id).status for job_id in jobs} == {Status.QUEUED}
    assert {len(desk.timeline(job_id)) for job_id in jobs} == {1}

    let_try_again(desk, vendor)
    await poller.look_after(vendor)
    assert sandbox.calls(vendor) == {"faulted": asked + 1}  # with one job

    sandbox.clear()
    let_try_again(desk, vendor)
    for _ in range(2):
        await poller.look_after(vendor)
    assert {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}
    assert desk.redis.exists(desk.key("vendor", vendor)) == 0


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
    with closing(Desk(refused)) as desk:
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


@pytest.mark.parametrize("fault", ["vendor_500", "vendor_garbage"])
@pytest.mark.parametrize("vendor", SLUGS)
async def test_a_vendor_that_has_only_errors_is_unwell(
    poller: Poller, desk: Desk, sandbox: Sandbox, vendor: str, fault: str
) -> None:
    jobs = [desk.track(vendor, sandbox.finished(vendor)) for _ in range(3)]
    sandbox.order(vendor, fault)
    await look(poller, desk, vendor)
    asked = sandbox.calls(vendor)["faulted"]
    assert desk.redis.exists(desk.key("vendor", vendor))
    await look(poller, desk, vendor)
    assert sandbox.calls(vendor) == {"faulted": asked}
    assert {desk.job(job_id).status for job_id in jobs} == {Status.QUEUED}

    let_try_again(desk, vendor)
    await look(poller, desk, vendor)
    assert sandbox.calls(vendor) == {"faulted": asked + 1}  # with one job, and it is still unwell
    assert desk.redis.exists(desk.key("vendor", vendor))

    sandbox.clear()
    let_try_again(desk, vendor)
    for _ in range(2):
        await look(poller, desk, vendor)
    assert {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}
    assert not desk.redis.exists(desk.key("vendor", vendor))


async def test_jobs_that_only_errors_kept_from_being_asked_about_are_due_at_once(
    settings: Settings, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors stop the asking; then an answer that was on its way shows that the vendor is well."""
    monkeypatch.setattr(poller_module, "IN_FLIGHT", 4)
    made = replace(settings, accounts=deployments.accounts(files.url))
    path, names = "/lipsync_studio/api/v1/jobs/", [f"v{number}" for number in range(8)]
    with closing(Desk(made)) as desk:
        jobs = [desk.track("lipsync_studio", name) for name in names]

        def after_the_errors(wire: Wire) -> None:
            eventually(lambda: sum(len(desk.timeline(job_id)) > 1 for job_id in jobs) >= ENOUGH_ERRORS)
            whole(b'{"id":"v0","status":"processing"}', media_type="application/json")(wire)

        files.serve(f"{path}v0", after_the_errors)
        for name in names[1:]:
            files.serve(f"{path}{name}", status(500))
        desk.redis.zadd(desk.key("polls", "lipsync_studio"), {job_id: number for number, job_id in enumerate(jobs)})
        async with poller_of(made) as poller:
            await poller.look_after("lipsync_studio")
        assert not desk.redis.exists(desk.key("vendor", "lipsync_studio"))
        left = [job_id for job_id, name in zip(jobs, names, strict=True) if not files.requests(f"{path}{name}")]
        assert left
        due = [desk.due_in(job_id, "polls", "lipsync_studio") for job_id in left]
        assert all(seconds is not None and seconds <= 0 for seconds in due)


async def test_an_error_about_one_job_holds_up_no_other(settings: Settings, files: Files) -> None:
    """A vendor may stumble over a single task for ever: that one is noted, and keeps to its rhythm."""
    made = replace(settings, accounts=deployments.accounts(files.url))
    path = "/lipsync_studio/api/v1/jobs/"
    files.serve(f"{path}poison", status(500))
    for number in range(3):
        body = b'{"id":"v%d","status":"failed","error":"x"}' % number
        files.serve(f"{path}v{number}", whole(body, media_type="application/json"))
    with closing(Desk(made)) as desk:
        poison = desk.track("lipsync_studio", "poison")
        async with poller_of(made) as poller:
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
    with closing(Desk(settings)) as desk:
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


async def test_a_turn_that_stumbles_ends_no_watch(settings: Settings, files: Files) -> None:
    """Whatever one vendor answers, the loop over it goes on, and what it has claimed is asked about again."""
    answers: list[Answer] = [
        raw(b"HTTP/1.1 429 Slow down\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n"),
        whole(b'{"id":"42","status":"failed","error":"at last"}', media_type="application/json"),
    ]
    files.serve("/lipsync_studio/api/v1/jobs/42", *answers)
    made = replace(settings, accounts=deployments.accounts(files.url))
    with closing(Desk(made)) as desk:
        job_id = desk.track("lipsync_studio", "42")
        async with poller_of(made) as poller:
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


# -- several pollers ------------------------------------------------------------------------------------------------


def test_pollers_share_the_jobs_and_ask_about_each_once(
    pollers: Pollers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    jobs = [desk.track("lipsync_studio", sandbox.submit("lipsync_studio", "job_stuck")) for _ in range(20)]
    running = [pollers.start(settings) for _ in range(2)]
    began = desk.now_ms()
    desk.make_due("polls", "lipsync_studio")

    def all_asked() -> bool:
        return all(job["status_calls"] for job in sandbox.jobs("lipsync_studio"))

    eventually(all_asked, "every job asked about", timeout=10)
    if desk.now_ms() - began < VENDORS["lipsync_studio"].RHYTHM.every * 1000:
        assert sandbox.calls("lipsync_studio") == {"status": len(jobs)}
    eventually(lambda: sum(len(lines(process, "poll")) for process in running) >= len(jobs), "every answer recorded")
    assert not any(lines(process, "vendor unwell") for process in running)


def test_a_killed_poller_s_jobs_are_taken_over(
    pollers: Pollers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
    sandbox.order("lipsync_studio", "vendor_hangs")
    first = pollers.start(settings)
    desk.make_due("polls", "lipsync_studio")
    eventually(lambda: sandbox.calls("lipsync_studio") == {"faulted": 1}, "the first poller's question")
    first.kill()
    sandbox.clear()
    lease = desk.due_in(job_id, "polls", "lipsync_studio")
    assert lease is not None
    assert 10 < lease <= poller_module.LEASE_MS / 1000
    second = pollers.start(settings)
    other = desk.track("kitta", sandbox.finished("kitta"))
    desk.make_due("polls", "kitta")
    second.wait_until(lambda: desk.job(other).status is Status.SUCCEEDED, "the second poller's work")
    assert sandbox.calls("lipsync_studio") == {"faulted": 1}  # the first one's claim still holds
    desk.make_due("polls", "lipsync_studio")
    second.wait_until(lambda: desk.job(job_id).status is Status.SUCCEEDED, "the job taken over")


async def test_a_claim_is_held_for_as_long_as_its_poller_is_at_it(
    poller: Poller, desk: Desk, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller_module, "LEASE_MS", 600)
    job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
    sandbox.order("lipsync_studio", "vendor_hangs")
    looking = asyncio.create_task(look(poller, desk, "lipsync_studio"))
    for _ in range(3):
        await asyncio.to_thread(desk.make_due, "polls", "lipsync_studio")
        await asyncio.to_thread(
            eventually, lambda: (desk.due_in(job_id, "polls", "lipsync_studio") or 0) > 0.3, "a sign of life"
        )
    assert not looking.done()
    looking.cancel()
    await asyncio.wait([looking])


def test_a_vendor_s_limit_holds_for_all_pollers_together(
    pollers: Pollers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    """Chanjing allows 10 in a second, and the sandbox counts: one more is a 40001, which makes the vendor unwell."""
    running = [pollers.start(settings) for _ in range(2)]
    jobs = [desk.track("chanjing", f"unknown-{number}") for number in range(30)]
    desk.redis.zadd(desk.key("polls", "chanjing"), dict.fromkeys(jobs[:15], 0))
    running[0].wait_until(lambda: sandbox.calls("chanjing").get("list"), "the first turn")
    desk.redis.zadd(desk.key("polls", "chanjing"), dict.fromkeys(jobs[15:], 0))

    def all_asked() -> bool:
        return all(len(desk.timeline(job_id)) > 1 for job_id in jobs)

    eventually(all_asked, "every job asked about", timeout=15)
    assert not any(lines(process, "vendor unwell") for process in running)


def test_a_token_is_made_once_by_several_pollers_and_replaced_once(
    pollers: Pollers, settings: Settings, sandbox: Sandbox
) -> None:
    minting = replace(settings, accounts=sandbox.accounts(minting=True))
    with closing(Desk(minting)) as desk:
        first, second = (desk.track("chanjing", sandbox.submit("chanjing", "job_stuck")) for _ in range(2))
        polls = desk.key("polls", "chanjing")
        running = [pollers.start(minting) for _ in range(2)]
        desk.redis.zadd(polls, {first: 0})
        desk.redis.zadd(polls, {second: 0})
        eventually(lambda: sum(len(lines(each, "poll")) for each in running) >= 2, "both asked about")
        assert sandbox.calls("chanjing")["token"] == 1
        sandbox.new_token()
        before = sum(len(lines(each, "poll")) for each in running)
        desk.make_due("polls", "chanjing")
        eventually(lambda: sum(len(lines(each, "poll")) for each in running) >= before + 2, "both asked about again")
        assert sandbox.calls("chanjing")["token"] == 1 + 1 + 1
        assert not any(lines(each, "vendor unwell") for each in running)


# -- credentials ----------------------------------------------------------------------------------------------------


def test_a_vendor_without_credentials_is_never_called(pollers: Pollers, settings: Settings, sandbox: Sandbox) -> None:
    made = replace(settings, accounts=sandbox.accounts(without=("lipsync_studio", "chanjing")))
    with closing(Desk(made)) as desk:
        silent = [desk.track(vendor, sandbox.finished(vendor)) for vendor in ("lipsync_studio", "chanjing")]
        asked = desk.track("kitta", sandbox.finished("kitta"))
        seen = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON)
        for vendor, job_id in zip(("lipsync_studio", "chanjing"), silent, strict=True):
            desk.record(seen, vendor=vendor, job_id=job_id)
            desk.record(Observation(source=Source.OPERATOR), vendor=vendor, job_id=job_id, poll_now=True)
        poller = pollers.start(made)
        desk.make_due("polls", "kitta")
        poller.wait_until(lambda: desk.job(asked).status is Status.SUCCEEDED, "the other vendor's verdict")
        assert (sandbox.calls("lipsync_studio"), sandbox.calls("chanjing")) == ({}, {})
        assert {desk.job(job_id).status for job_id in silent} == {Status.QUEUED}
        (line,) = lines(poller, "poller started")
        assert line["vendors"] == ["apimodels", "kitta"]


def test_jobs_from_before_the_credentials_are_looked_after(
    pollers: Pollers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    before = replace(settings, accounts=sandbox.accounts(without=SLUGS))
    with closing(Desk(before)) as old_desk:
        jobs = [old_desk.track(vendor, sandbox.finished(vendor)) for vendor in SLUGS]
    assert all(desk.due_in(job_id, "polls", vendor) is None for job_id, vendor in zip(jobs, SLUGS, strict=True))
    poller = pollers.start(settings)
    poller.wait_until(lambda: {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}, "the verdicts")


# -- deadlines, and the sweep ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("vendor_job_id", [None, "42"])
async def test_a_job_of_a_vendor_that_cannot_be_asked_expires_too(
    settings: Settings, sandbox: Sandbox, vendor_job_id: str | None
) -> None:
    made = replace(settings, accounts=sandbox.accounts(without=SLUGS))
    with closing(Desk(made)) as desk:
        job_id = desk.track("kitta", vendor_job_id)
        desk.make_due("deadlines")
        async with poller_of(made) as poller:
            await poller.expire()
        assert desk.job(job_id).status is Status.EXPIRED


async def test_a_job_with_a_verdict_does_not_expire(poller: Poller, desk: Desk) -> None:
    job_id = desk.made("http://127.0.0.1/a")
    desk.redis.zadd(desk.key("deadlines"), {job_id: 0})  # as if the two had crossed
    await poller.expire()
    assert desk.job(job_id).status is Status.SUCCEEDED
    assert "job.expired" not in desk.announced(job_id)


def test_a_running_poller_expires_polls_and_sweeps(
    pollers: Pollers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    late = desk.track("apimodels", sandbox.submit("apimodels", "job_stuck"))
    desk.redis.zadd(desk.key("deadlines"), {late: 0})
    lost = desk.track("lipsync_studio", sandbox.finished("lipsync_studio", "callback_lost"))
    desk.make_due("polls", "lipsync_studio")
    stored_by_nobody = desk.made("http://127.0.0.1/a")
    desk.redis.delete(f"rq:queue:{settings.queue('archive')}", f"rq:job:archive-{stored_by_nobody}")  # RQ has lost it
    desk.make_due("tasks")
    poller = pollers.start(settings)
    poller.wait_until(lambda: desk.job(late).status is Status.EXPIRED, "the deadline")
    poller.wait_until(lambda: desk.job(lost).status is Status.SUCCEEDED, "the verdict")
    queue = f"rq:queue:{settings.queue('archive')}"
    poller.wait_until(lambda: desk.redis.llen(queue) == 2, "both tasks in the queue")
    due_in = desk.due_in(f"archive-{stored_by_nobody}", "tasks")
    assert due_in is not None
    assert due_in > 30
    assert "Traceback" not in poller.output()


# -- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_poller_stops_at_once(pollers: Pollers, settings: Settings, number: signal.Signals) -> None:
    poller = pollers.start(settings)
    poller.send(number)
    assert poller.wait(timeout=15) == 0
    assert "Traceback" not in poller.output()


def test_a_restart_of_redis_is_survived(
    pollers: Pollers, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("valkey")
    with valkey_server(folder) as server:
        settings = deployments.settings(server.url, accounts=sandbox.accounts())
        with closing(Desk(settings)) as desk:
            job_id = desk.track("kitta", sandbox.finished("kitta"))
        poller = pollers.start(settings)
    poller.wait_until(lambda: lines(poller, "the store does not answer"), "its complaint")
    with valkey_server(folder, port=server.port), closing(Desk(settings)) as desk:
        desk.make_due("polls", "kitta")
        poller.wait_until(lambda: desk.job(job_id).status is Status.SUCCEEDED, "the verdict")
        assert poller.stop() == 0


def test_no_secret_is_in_the_log(pollers: Pollers, settings: Settings, desk: Desk, sandbox: Sandbox) -> None:
    jobs = {vendor: desk.track(vendor, sandbox.finished(vendor)) for vendor in SLUGS}
    sandbox.order("kitta", "vendor_500", count=1)
    poller = pollers.start(settings)
    for vendor in SLUGS:
        desk.make_due("polls", vendor)

    def all_done() -> bool:
        let_try_again(desk, "kitta")
        return {desk.job(job_id).status for job_id in jobs.values()} == {Status.SUCCEEDED}

    poller.wait_until(all_done, "the verdicts")
    secrets = [value for account in settings.accounts.values() for value in account.credentials.values()]
    assert not re.search("|".join(map(re.escape, secrets)), poller.output())
