"""Pollers as processes: they share jobs, claims, limits and tokens, and survive what happens to processes."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from service.model import Observation, Problem, Source, Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.pollers import SLUGS, let_try_again, look, minting
from tests.support.processes import eventually
from tests.support.sandbox import Desk, Sandbox, desk_of
from tests.support.servers import valkey_server
from tests.support.workers import Workers
from workers import poller as poller_module
from workers.poller import Poller

# -- several pollers ------------------------------------------------------------------------------------


def test_pollers_share_the_jobs_and_ask_about_each_once(workers: Workers, desk: Desk, sandbox: Sandbox) -> None:
    jobs = [desk.track("lipsync_studio", sandbox.submit("lipsync_studio", "job_stuck")) for _ in range(20)]
    running = [workers.start_poller() for _ in range(2)]
    began = desk.now_ms()
    desk.make_due("polls", "lipsync_studio")

    def all_asked() -> bool:
        return all(job["status_calls"] for job in sandbox.jobs("lipsync_studio"))

    eventually(all_asked, "every job asked about", timeout=10)
    if desk.now_ms() - began < VENDORS["lipsync_studio"].RHYTHM.every * 1000:
        assert sandbox.calls("lipsync_studio") == {"status": len(jobs)}
    eventually(lambda: sum(len(process.lines("poll")) for process in running) >= len(jobs), "every answer recorded")
    assert not any(process.lines("vendor unwell") for process in running)


def test_a_killed_poller_s_jobs_are_taken_over(workers: Workers, desk: Desk, sandbox: Sandbox) -> None:
    job_id = desk.track("lipsync_studio", sandbox.finished("lipsync_studio"))
    sandbox.order("lipsync_studio", "vendor_hangs")
    first = workers.start_poller()
    desk.make_due("polls", "lipsync_studio")
    eventually(lambda: sandbox.calls("lipsync_studio") == {"faulted": 1}, "the first poller's question")
    first.kill()
    sandbox.clear()
    lease = desk.due_in(job_id, "polls", "lipsync_studio")
    assert lease is not None
    assert 10 < lease <= poller_module.LEASE_MS / 1000
    second = workers.start_poller()
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


def test_a_vendor_s_limit_holds_for_all_pollers_together(workers: Workers, desk: Desk, sandbox: Sandbox) -> None:
    """Chanjing allows 10 in a second, and the sandbox counts: one more is a 40001, which makes the vendor unwell."""
    running = [workers.start_poller() for _ in range(2)]
    jobs = [desk.track("chanjing", f"unknown-{number}") for number in range(30)]
    desk.redis.zadd(desk.key("polls", "chanjing"), dict.fromkeys(jobs[:15], 0))
    running[0].wait_until(lambda: sandbox.calls("chanjing").get("list"), "the first turn")
    desk.redis.zadd(desk.key("polls", "chanjing"), dict.fromkeys(jobs[15:], 0))

    def all_asked() -> bool:
        return all(len(desk.timeline(job_id)) > 1 for job_id in jobs)

    eventually(all_asked, "every job asked about", timeout=15)
    assert not any(process.lines("vendor unwell") for process in running)


@minting
def test_a_token_is_made_once_by_several_pollers_and_replaced_once(
    workers: Workers, desk: Desk, sandbox: Sandbox
) -> None:
    first, second = (desk.track("chanjing", sandbox.submit("chanjing", "job_stuck")) for _ in range(2))
    polls = desk.key("polls", "chanjing")
    running = [workers.start_poller() for _ in range(2)]
    desk.redis.zadd(polls, {first: 0})
    desk.redis.zadd(polls, {second: 0})
    eventually(lambda: sum(len(each.lines("poll")) for each in running) >= 2, "both asked about")
    assert sandbox.calls("chanjing")["token"] == 1
    sandbox.new_token()
    before = sum(len(each.lines("poll")) for each in running)
    desk.make_due("polls", "chanjing")
    eventually(lambda: sum(len(each.lines("poll")) for each in running) >= before + 2, "both asked about again")
    assert sandbox.calls("chanjing")["token"] == 1 + 1 + 1
    assert not any(each.lines("vendor unwell") for each in running)


# -- credentials ----------------------------------------------------------------------------------------


def test_a_vendor_without_credentials_is_never_called(workers: Workers, settings: Settings, sandbox: Sandbox) -> None:
    made = replace(settings, accounts=sandbox.accounts(without=("lipsync_studio", "chanjing")))
    with desk_of(made) as desk:
        silent = [desk.track(vendor, sandbox.finished(vendor)) for vendor in ("lipsync_studio", "chanjing")]
        asked = desk.track("kitta", sandbox.finished("kitta"))
        seen = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON)
        for vendor, job_id in zip(("lipsync_studio", "chanjing"), silent, strict=True):
            desk.record(seen, vendor=vendor, job_id=job_id)
            desk.record(Observation(source=Source.OPERATOR), vendor=vendor, job_id=job_id, poll_now=True)
        poller = workers.start_poller(made)
        desk.make_due("polls", "kitta")
        poller.wait_until(lambda: desk.job(asked).status is Status.SUCCEEDED, "the other vendor's verdict")
        assert (sandbox.calls("lipsync_studio"), sandbox.calls("chanjing")) == ({}, {})
        assert {desk.job(job_id).status for job_id in silent} == {Status.QUEUED}
        (line,) = poller.lines("poller started")
        assert line["vendors"] == ["apimodels", "kitta"]


def test_jobs_from_before_the_credentials_are_looked_after(
    workers: Workers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    before = replace(settings, accounts=sandbox.accounts(without=SLUGS))
    with desk_of(before) as old_desk:
        jobs = [old_desk.track(vendor, sandbox.finished(vendor)) for vendor in SLUGS]
    assert all(desk.due_in(job_id, "polls", vendor) is None for job_id, vendor in zip(jobs, SLUGS, strict=True))
    poller = workers.start_poller()
    poller.wait_until(lambda: {desk.job(job_id).status for job_id in jobs} == {Status.SUCCEEDED}, "the verdicts")


def test_a_running_poller_expires_polls_and_sweeps(
    workers: Workers, settings: Settings, desk: Desk, sandbox: Sandbox
) -> None:
    late = desk.track("apimodels", sandbox.submit("apimodels", "job_stuck"))
    desk.redis.zadd(desk.key("deadlines"), {late: 0})
    lost = desk.track("lipsync_studio", sandbox.finished("lipsync_studio", "callback_lost"))
    desk.make_due("polls", "lipsync_studio")
    stored_by_nobody = desk.made("http://127.0.0.1/a")
    desk.redis.delete(f"rq:queue:{settings.queue('archive')}", f"rq:job:archive-{stored_by_nobody}")  # RQ has lost it
    desk.make_due("tasks")
    poller = workers.start_poller()
    poller.wait_until(lambda: desk.job(late).status is Status.EXPIRED, "the deadline")
    poller.wait_until(lambda: desk.job(lost).status is Status.SUCCEEDED, "the verdict")
    queue = f"rq:queue:{settings.queue('archive')}"
    poller.wait_until(lambda: desk.redis.llen(queue) == 2, "both tasks in the queue")
    due_in = desk.due_in(f"archive-{stored_by_nobody}", "tasks")
    assert due_in is not None
    assert due_in > 30
    assert "Traceback" not in poller.output()


# -- the process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_poller_stops_at_once(workers: Workers, number: signal.Signals) -> None:
    poller = workers.start_poller()
    poller.send(number)
    assert poller.wait(timeout=15) == 0
    assert "Traceback" not in poller.output()


def test_a_restart_of_redis_is_survived(
    workers: Workers, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("valkey")
    with valkey_server(folder) as server:
        settings = deployments.settings(server.url, accounts=sandbox.accounts())
        with desk_of(settings) as desk:
            job_id = desk.track("kitta", sandbox.finished("kitta"))
        poller = workers.start_poller(settings)
    poller.wait_until(lambda: poller.lines("the store does not answer"), "its complaint")
    with valkey_server(folder, port=server.port), desk_of(settings) as desk:
        desk.make_due("polls", "kitta")
        poller.wait_until(lambda: desk.job(job_id).status is Status.SUCCEEDED, "the verdict")
        assert poller.stop() == 0


def test_no_secret_is_in_the_log(workers: Workers, settings: Settings, desk: Desk, sandbox: Sandbox) -> None:
    jobs = {vendor: desk.track(vendor, sandbox.finished(vendor)) for vendor in SLUGS}
    sandbox.order("kitta", "vendor_500", count=1)
    poller = workers.start_poller()
    for vendor in SLUGS:
        desk.make_due("polls", vendor)

    def all_done() -> bool:
        let_try_again(desk, "kitta")
        return {desk.job(job_id).status for job_id in jobs.values()} == {Status.SUCCEEDED}

    poller.wait_until(all_done, "the verdicts")
    secrets = [value for account in settings.accounts.values() for value in account.credentials.values()]
    assert not re.search("|".join(map(re.escape, secrets)), poller.output())
