"""Sending a job to its vendor: once, by one run of the task at a time, or later where it was not taken for now."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp
import pytest
from msgspec.structs import replace

from service.jobs import tasks
from service.jobs.calls import Calls
from service.jobs.tokens import Tokens
from service.model import Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.sandbox import Desk, Sandbox, desk_of
from tests.support.submissions import CALLING, KLING, PLAIN, Crew, bought, crew_of, order
from tests.support.web import Web

# -- taken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_job_is_taken_at_once(
    desk: Desk, crew: Crew, sandbox: Sandbox, settings: Settings, vendor: str
) -> None:
    sandbox.order(vendor, "job_stuck")
    job_id = order(desk, vendor)
    assert (desk.job(job_id).status, desk.job(job_id).submitted_at) == (Status.PENDING, None)
    assert desk.announced(job_id) == []
    assert await crew.send(job_id) == "apply"
    job, (taken,) = desk.job(job_id), bought(sandbox, vendor)
    processing = vendor == "lipsync_studio"  # says so at once; the others' word is for a queue
    assert job.status is (Status.PROCESSING if processing else Status.QUEUED)
    assert (job.vendor_job_id, job.scheduled_at) == (taken["id"], None)
    assert job.submitted_at is not None
    assert desk.announced(job_id) == ["job.submitted", "job.processing"][: 1 + processing]
    assert [seen["status"] for seen in desk.timeline(job_id)] == [None, "unconfirmed", job.status]
    assert desk.timeline(job_id)[-1]["raw"]
    rhythm = VENDORS[vendor].RHYTHM
    first_look = rhythm.every if rhythm.grace is None else rhythm.grace
    assert desk.due_in(job_id, "polls", vendor) == pytest.approx(first_look, abs=1)
    assert desk.due_in(f"submit-{job_id}", "tasks") is None
    url = Tokens(settings.secret_keys, settings.public_url).url(vendor, job_id)
    assert taken["callback_url"] == (url if vendor in CALLING else None)
    assert await crew.send(job_id) == "nothing to do"
    assert len(bought(sandbox, vendor)) == 1


@pytest.mark.parametrize("vendor", CALLING)
async def test_a_callback_that_overtakes_the_answer_finds_its_job(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str
) -> None:
    sandbox.order(vendor, "callback_early")
    job_id = order(desk, vendor)
    await crew.send(job_id)
    job, (taken,) = desk.job(job_id), bought(sandbox, vendor)
    assert (job.status, job.vendor_job_id) == (Status.SUCCEEDED, taken["id"])
    assert desk.announced(job_id) == ["job.submitted", "job.succeeded"]
    assert desk.due_in(f"submit-{job_id}", "tasks") is None
    assert len(bought(sandbox, vendor)) == 1


# -- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
async def test_an_input_that_the_vendor_refuses_costs_nothing(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str
) -> None:
    sandbox.order(vendor, "submit_refused")
    job_id = order(desk, vendor)
    await crew.send(job_id)
    job = desk.job(job_id)
    assert (job.status, bought(sandbox, vendor)) == (Status.FAILED, [])
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("invalid_input", False)
    assert "the video could not be read" in job.error.message
    assert desk.redis.keys(desk.key("costs", "*")) == []


async def test_what_an_earlier_release_accepted_and_this_one_does_not_know_fails(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    """Else it would be tried until its deadline, at the head of the line."""
    jobs = [order(desk, "chanjing") for _ in range(2)]
    kept = [{"model": "ancient"}, {"input": {"text": "你好", "voice": "v", "colour": "red"}}]
    for job_id, change in zip(jobs, kept, strict=True):
        key = desk.key("job", job_id)
        desk.redis.hset(key, "_order", json.dumps(json.loads(desk.redis.hget(key, "_order") or "") | change))
        assert await crew.send(job_id) == "apply"
        error = desk.job(job_id).error
        assert error is not None
        assert error.code == "invalid_input"
    assert desk.redis.zcard(desk.key("turns", "chanjing")) == 0
    assert crew.due() == []


# -- not taken for now ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_vendor_s_rate_limit_puts_the_job_off(desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str) -> None:
    sandbox.order(vendor, "vendor_rate_limited", count=1)
    job_id = order(desk, vendor)
    assert await crew.send(job_id) == "apply"
    job = desk.job(job_id)
    assert (job.status, job.submitted_at, job.error) == (Status.PENDING, None, None)
    assert job.scheduled_at is not None
    assert job.scheduled_at.timestamp() - desk.now_ms() / 1000 == pytest.approx(2, abs=0.5)
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(2, abs=0.5)
    assert desk.announced(job_id) == []
    assert "not taken: rate_limited" in desk.timeline(job_id)[-1]["detail"]
    assert await crew.send(job_id) == "waits"  # asked again too early
    assert sandbox.calls(vendor) == {"faulted": 1}
    await crew.settle()
    assert [taken["id"] for taken in bought(sandbox, vendor)] == [desk.job(job_id).vendor_job_id]
    assert desk.job(job_id).scheduled_at is None


async def no_such_name(*_: Any, **__: Any) -> list[Any]:
    raise OSError("no such name")


#: Where nobody can be reached: a base URL, and whether private addresses are allowed.
UNREACHABLE: Final = {
    "nobody listens": (deployments.NOBODY, True),
    "unknown name": ("http://vendor.example", True),
    "forbidden address": ("https://127.0.0.1", False),
    "no TLS": ("https://{}", True),
}


@pytest.mark.parametrize("why", UNREACHABLE)
async def test_what_never_reached_the_vendor_is_sent_again(
    settings: Settings, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    base_url, private = UNREACHABLE[why]
    if why == "unknown name":
        monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", no_such_name)
    accounts = deployments.accounts(base_url.format(sandbox.url.removeprefix("http://")))
    with desk_of(replace(settings, accounts=accounts, allow_private_networks=private)) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "kitta")
            assert await crew.send(job_id) == "apply"
            job = desk.job(job_id)
            assert (job.status, job.submitted_at) == (Status.PENDING, None)
            assert job.scheduled_at is not None
            assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(1, abs=0.5)
            assert "not taken: vendor_unreachable" in desk.timeline(job_id)[-1]["detail"]
    monkeypatch.undo()
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == bought(sandbox, "kitta")[0]["id"]


async def test_a_worker_without_credentials_sends_nothing(settings: Settings, sandbox: Sandbox) -> None:
    """Whoever has accepted the job had some: a worker that was set up otherwise must not count as having sent it."""
    with desk_of(settings) as desk:
        job_id = order(desk, "chanjing")
    with desk_of(replace(settings, accounts=sandbox.accounts(without=("chanjing",)))) as desk:
        async with crew_of(desk) as crew:
            await crew.send(job_id)
            assert desk.job(job_id).status is Status.PENDING
            assert "no credentials: set CHANJING" in desk.timeline(job_id)[-1]["detail"]
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == bought(sandbox, "chanjing")[0]["id"]


# -- tokens ---------------------------------------------------------------------------------------------


async def test_a_token_that_has_died_is_renewed_once_and_the_job_sent_once_more(
    settings: Settings, sandbox: Sandbox
) -> None:
    with desk_of(replace(settings, accounts=sandbox.accounts(minting=True))) as desk:
        async with crew_of(desk) as crew:
            job_ids = [order(desk, "chanjing") for _ in range(2)]
            await crew.send(job_ids[0])
            assert sandbox.calls("chanjing") == {"token": 1}
            sandbox.new_token()
            assert await crew.send(job_ids[1]) == "apply"
            assert sandbox.calls("chanjing") == {"token": 1 + 1 + 1, "refused": 1}
            assert [desk.job(job_id).vendor_job_id for job_id in job_ids] == [
                taken["id"] for taken in bought(sandbox, "chanjing")
            ]


@pytest.mark.parametrize(
    "credentials",
    [{"CHANJING_ACCESS_TOKEN": "invalid"}, {"CHANJING_APP_ID": "invalid", "CHANJING_SECRET_KEY": "x"}],
    ids=["a token", "an app"],
)
async def test_credentials_that_the_vendor_does_not_know_fail_the_job(
    settings: Settings, sandbox: Sandbox, credentials: dict[str, str]
) -> None:
    account = replace(sandbox.accounts()["chanjing"], credentials=credentials)
    with desk_of(replace(settings, accounts=settings.accounts | {"chanjing": account})) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "chanjing")
            await crew.send(job_id)
            job = desk.job(job_id)
            assert (job.status, job.error and job.error.code) == (Status.FAILED, "unauthorized")
            assert sandbox.calls("chanjing") == {"refused": 1}


async def test_a_token_that_cannot_be_had_for_now_puts_the_job_off(settings: Settings, sandbox: Sandbox) -> None:
    with desk_of(replace(settings, accounts=sandbox.accounts(minting=True))) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "chanjing")
            sandbox.order("chanjing", "vendor_down", count=2)
            for wait in tasks.PREPARE_RETRIES[:2]:
                await crew.send(job_id)
                job = desk.job(job_id)
                assert (job.status, job.submitted_at) == (Status.PENDING, None)
                assert job.scheduled_at is not None
                assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(wait, abs=1)
                assert desk.timeline(job_id)[-1]["problem"] == "not_sent"
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == bought(sandbox, "chanjing")[0]["id"]


# -- runs that meet -------------------------------------------------------------------------------------


async def test_of_runs_at_the_same_time_one_sends(desk: Desk, sandbox: Sandbox) -> None:
    job_id = order(desk, "kitta")
    async with AsyncExitStack() as stack:
        crews = [await stack.enter_async_context(crew_of(desk)) for _ in range(6)]
        outcomes = await asyncio.gather(*(crew.send(job_id) for crew in crews))
    assert Counter(outcomes)["apply"] == 1
    assert set(outcomes) <= {"apply", "held by another run", "nothing to do"}
    assert len(bought(sandbox, "kitta")) == 1


Turn = Callable[..., Awaitable[float]]


def before_the_mark(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Awaitable[object]]) -> None:
    """Let something happen, once, between a job's turn and the mark that it is sent."""
    turn: Turn = Calls.submit_turn
    todo = [do]

    async def submit_turn(calls: Calls, *args: Any) -> float:
        wait = await turn(calls, *args)
        if todo:
            await todo.pop()()
        return wait

    monkeypatch.setattr(Calls, "submit_turn", submit_turn)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_run_that_slept_through_its_lease_does_not_send_what_another_has_sent(
    desk: Desk, crew: Crew, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, vendor: str
) -> None:
    given = (KLING, {}) if vendor == "apimodels" else PLAIN[vendor]
    job_id = order(desk, vendor, *given)
    async with crew_of(desk) as other:

        async def sent_by_another() -> None:
            desk.end_leases()
            assert await other.send(job_id) == "apply"

        before_the_mark(monkeypatch, sent_by_another)
        assert await crew.send(job_id) == "changed"
    assert len(bought(sandbox, vendor)) == 1


async def test_a_job_that_was_adopted_while_it_was_pending_is_not_sent(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def adopt(job_id: str, vendor_job_id: str) -> None:
        answer = callsheet.api.patch(f"/v1/jobs/{job_id}", json={"vendor_job_id": vendor_job_id})
        assert answer.status_code == 200, answer.text

    first, second = order(desk, "lipsync_studio"), order(desk, "lipsync_studio")
    await adopt(first, "one")
    assert await crew.send(first) == "nothing to do"
    before_the_mark(monkeypatch, lambda: adopt(second, "two"))
    assert await crew.send(second) == "changed"
    assert {desk.job(job_id).status for job_id in (first, second)} == {Status.QUEUED}
    assert bought(sandbox, "lipsync_studio") == []
    assert crew.due() == []
