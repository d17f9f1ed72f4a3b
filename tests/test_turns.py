"""Whose turn it is where a vendor takes only so many submissions in a window, or none for a while.

The line is in Redis: processes that know nothing of each other ask whether it is a job's turn, and never let through
more than the vendor takes, nor let anybody wait for those who are gone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Final, cast

import pytest
from msgspec.structs import replace

from service.deployment import opened
from service.jobs.calls import Calls
from service.jobs.scripts import TRIAL_MS, Line
from service.model import JobError, Limit, Observation, Source, Status
from service.settings import Account, Settings
from tests.support import deployment as deployments
from tests.support.processes import BIN, Processes, eventually
from tests.support.sandbox import Desk, Sandbox, desk_of, sandbox_process
from tests.support.submissions import crew_of, order, web_of, worker_process
from workers.stopping import stopped

SLUG: Final = "chanjing"


def limited(accounts: dict[str, Account], requests: int, seconds: float) -> dict[str, Account]:
    """The same accounts with another limit of submissions."""
    account = accounts[SLUG]
    limits = account.limits | {"submit": Limit(requests=requests, seconds=seconds)}
    return accounts | {SLUG: replace(account, limits=limits)}


def line_of(settings: Settings) -> Line:
    return Line.of(settings.accounts[SLUG].limits["submit"])


def in_line(desk: Desk) -> dict[str, int]:
    """The jobs that wait for their turns, in order, and when each is estimated to come (ms)."""
    found = cast("list[tuple[bytes, float]]", desk.redis.zrange(desk.key("turns", SLUG), 0, -1, withscores=True))
    return {id_.decode(): int(at) for id_, at in found}


def called(desk: Desk) -> list[int]:
    """When the last calls were made (ms), oldest first."""
    return [int(at) for at in reversed(desk.redis.lrange(desk.key("calls", SLUG, "submit"), 0, -1))]


# -- how many, and who ---------------------------------------------------------------------------------------------


class Turn:
    """A job's turn as its process saw it: it was given between the two times (monotonic seconds)."""

    def __init__(self, number: int, asked: float, given: float) -> None:
        self.number = number  #: in the line
        self.asked = asked
        self.given = given


@pytest.mark.parametrize(("requests", "count"), [(1, 7), (3, 15), (8, 32)])
async def test_processes_that_share_a_line_never_exceed_the_limit(
    settings: Settings, requests: int, count: int
) -> None:
    """Jobs come one after the other and in bursts, and each is asked about by whichever process has it."""
    chance = random.Random(requests)
    settings = replace(settings, accounts=limited(settings.accounts, requests, 0.01))
    line, turns, nothing = line_of(settings), list[Turn](), asyncio.Event()

    async def see_to(number: int, job_id: str, processes: list[Calls]) -> None:
        while True:
            await stopped(nothing, chance.random() * 0.02)  # until a worker takes the task
            asked = time.monotonic()
            wait = await chance.choice(processes).submit_turn(SLUG, job_id, line)
            if wait == 0:
                turns.append(Turn(number, asked, time.monotonic()))
                return
            assert 0 < wait < 60
            await stopped(nothing, wait)

    async with AsyncExitStack() as stack, asyncio.timeout(30):
        desk = stack.enter_context(desk_of(settings))
        processes = [(await stack.enter_async_context(opened(settings))).calls for _ in range(8)]
        async with asyncio.TaskGroup() as jobs:
            for number in range(count):
                jobs.create_task(see_to(number, order(desk, SLUG), processes))
                if chance.random() < 0.2:
                    await stopped(nothing, chance.random() * 0.1)

    assert sorted(turn.number for turn in turns) == list(range(count))
    turns.sort(key=lambda turn: turn.given)
    for first, last in zip(turns, turns[requests:], strict=False):
        assert (last.given - first.asked) * 1000 > line.window
    for turn in turns:  # fewer stand before anybody than there are places
        ahead = [other.number for other in turns if other.number < turn.number and other.asked > turn.given]
        assert len(ahead) < requests
    assert turns[-1].given - turns[0].given < 2 * line.window / 1000 * count / requests, "places stay empty"


# -- when --------------------------------------------------------------------------------------------------------------


def make_room(desk: Desk, seconds: float) -> None:
    """As if the calls that were made had been made so much earlier."""
    name = desk.key("calls", SLUG, "submit")
    for place, at in enumerate(desk.redis.lrange(name, 0, -1)):
        desk.redis.lset(name, place, str(int(at) - int(seconds * 1000)))


def scheduled(desk: Desk, job_id: str) -> float | None:
    at = desk.job(job_id).scheduled_at
    return None if at is None else at.timestamp() * 1000


@pytest.mark.parametrize("requests", [1, 2, 7])
async def test_an_estimate_is_when_the_window_will_have_room(settings: Settings, requests: int) -> None:
    """Against a model of the window, for any mixture of jobs that come, are sent, and leave."""
    chance, seconds = random.Random(requests), 20.0
    settings = replace(settings, accounts=limited(settings.accounts, requests, seconds))
    line = line_of(settings)
    with desk_of(settings) as desk:
        async with opened(settings) as deployment:
            for _ in range(120):
                waiting, made = in_line(desk), called(desk)
                now = desk.now_ms()
                action = chance.choice(["come", "come", "ask", "ask", "leave", "time"])
                if action == "come":
                    job_id = order(desk, SLUG)
                    known = [*made, *waiting.values()]
                    room = known[-requests] + line.window + 1 if len(known) >= requests else 0
                    turn = max(now, room, *waiting.values())
                    assert turn <= in_line(desk)[job_id] <= turn + 500
                    assert scheduled(desk, job_id) in (None, in_line(desk)[job_id])
                    assert (scheduled(desk, job_id) is None) == (turn == now)
                elif action == "time":
                    make_room(desk, chance.random() * seconds)
                elif waiting:
                    job_id = chance.choice(list(waiting))
                    if action == "leave":
                        desk.record(failed(), vendor=SLUG, job_id=job_id)
                        assert list(in_line(desk)) == [id_ for id_ in waiting if id_ != job_id]
                        continue
                    recent = [at for at in made if at > now - line.window]
                    rank, free = list(waiting).index(job_id), requests - len(recent)
                    wait = 1000 * await deployment.calls.submit_turn(SLUG, job_id, line)
                    if rank < free:
                        assert (wait, job_id in in_line(desk), len(called(desk))) == (
                            0,
                            False,
                            min(len(made) + 1, requests),
                        )
                    else:
                        leaves = recent[rank - free] + line.window if rank - free < len(recent) else 0
                        assert in_line(desk) == waiting
                        assert (
                            max(waiting[job_id], leaves) - 500 <= now + wait <= max(waiting[job_id], leaves, now) + 500
                        )


def failed() -> Observation:
    error = JobError(code="invalid_input", message="no")
    return Observation(source=Source.SUBMIT, status=Status.FAILED, error=error)


LEAVING: Final[dict[str, Callable[[], Observation]]] = {
    "failed": failed,
    "expired": lambda: Observation(source=Source.DEADLINE, status=Status.EXPIRED),
    "adopted": lambda: Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="42"),
    "told": lambda: Observation(source=Source.CALLBACK, status=Status.PROCESSING, vendor_job_id="42"),
}


@pytest.mark.parametrize("how", LEAVING)
async def test_who_leaves_the_line_frees_his_place(settings: Settings, how: str) -> None:
    settings = replace(settings, accounts=limited(settings.accounts, 1, 60))
    with desk_of(settings) as desk:
        first, second, third = (order(desk, SLUG) for _ in range(3))
        async with opened(settings) as deployment:
            line = line_of(settings)
            assert await deployment.calls.submit_turn(SLUG, first, line) == 0
            assert list(in_line(desk)) == [second, third]
            desk.record(LEAVING[how](), vendor=SLUG, job_id=second)
            assert list(in_line(desk)) == [third]
            assert desk.job(second).scheduled_at is None
            make_room(desk, 62)
            assert await deployment.calls.submit_turn(SLUG, third, line) == 0


async def test_a_job_whose_worker_died_at_the_head_of_the_line_holds_up_the_others_for_a_while_only(
    settings: Settings, sandbox: Sandbox
) -> None:
    settings = replace(settings, accounts=limited(sandbox.accounts(), 1, 60))
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            sent, dead, other = (order(desk, SLUG) for _ in range(3))
            assert crew.queued() == [sent, dead, other]  # and this is all that the dead one's worker does
            assert await crew.send(sent) == "apply"
            make_room(desk, 62)
            assert await crew.send(other) == "waits"
            desk.redis.zadd(desk.key("tasks"), {f"submit-{dead}": 0}, xx=True)
            await crew.poller.sweep()
            assert crew.queued() == [dead]
            assert await crew.send(dead) == "apply"
            make_room(desk, 62)
            assert await crew.send(other) == "apply"


async def test_jobs_that_are_not_ready_hold_up_no_other(settings: Settings, sandbox: Sandbox) -> None:
    """No token was to be had, and each of them waits for its own next try."""
    settings = replace(settings, accounts=limited(sandbox.accounts(minting=True), 2, 60))
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            sandbox.order(SLUG, "vendor_down", count=2)
            for _ in range(2):
                await crew.send(order(desk, SLUG))
            late = order(desk, SLUG)
            assert await crew.send(late) == "apply"


# -- a vendor that is unwell -------------------------------------------------------------------------------------------


async def test_the_longer_a_vendor_fails_the_longer_it_is_left_alone(calls: Calls) -> None:
    waits = [await calls.unwell(SLUG, 0, "submit") for _ in range(11)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert await calls.unwell(SLUG, 3_600_000, "submit") == 3600
    await calls.well(SLUG, "submit")
    assert await calls.unwell(SLUG, 0, "submit") == 1
    assert await calls.unwell(SLUG) == 1  # asking is another matter than ordering


async def test_what_failed_at_the_same_time_failed_once(calls: Calls, desk: Desk) -> None:
    first = await calls.unwell(SLUG, 2000, "submit", age_ms=300)
    for age in (0, 300, 60_000):
        desk.redis.hset(desk.key("vendor", SLUG, "submit"), "failed_at", desk.now_ms() + (age == 0))
        assert first - 1 < await calls.unwell(SLUG, 0, "submit", age_ms=age + 100) <= first
    assert desk.redis.hget(desk.key("vendor", SLUG, "submit"), "failures") == b"1"
    desk.redis.hset(desk.key("vendor", SLUG, "submit"), "failed_at", desk.now_ms() - 1000)
    assert await calls.unwell(SLUG, 0, "submit", age_ms=500) == 2  # it began after the first had failed


@pytest.mark.parametrize("line", [None, Line(5, 60_000)], ids=["without a limit", "with a limit"])
async def test_after_an_outage_one_tries_and_the_others_wait_to_hear_how_it_went(
    calls: Calls, desk: Desk, line: Line | None
) -> None:
    async def ask(job_id: str) -> float:
        return await calls.submit_turn(SLUG, job_id, line)

    def pass_time() -> None:
        desk.redis.hset(desk.key("vendor", SLUG, "submit"), "retry_at", desk.now_ms() - 1)

    wait = await calls.unwell(SLUG, 2000, "submit")
    for job_id in ("job_a", "job_b", "job_c"):
        assert wait - 1 < await ask(job_id) < wait + 0.1
    pass_time()
    assert 0 < await ask("job_b") <= TRIAL_MS / 1000  # it is not the first in the line
    assert await ask("job_a") == 0
    for job_id in ("job_b", "job_c"):
        assert TRIAL_MS / 1000 - 1 < await ask(job_id) <= TRIAL_MS / 1000
    pass_time()  # and nobody has heard of the first
    assert await ask("job_b") == 0
    assert 0 < await ask("job_c") <= TRIAL_MS / 1000
    await calls.well(SLUG, "submit")
    assert await ask("job_c") == 0
    assert await ask("job_d") == 0


async def test_an_outage_is_met_by_one_job_at_a_time(settings: Settings, sandbox: Sandbox) -> None:
    settings = replace(settings, accounts=sandbox.accounts())
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            jobs = [order(desk, "kitta") for _ in range(6)]
            sandbox.order("kitta", "vendor_down")
            for tries in (1, 2, 3):
                await crew.round()
                assert sandbox.calls("kitta") == {"faulted": tries}
                assert {desk.job(job_id).status for job_id in jobs} == {Status.PENDING}
                assert all(desk.job(job_id).scheduled_at for job_id in jobs)
            sandbox.clear()
            await crew.round()
            await crew.round()
            assert all(desk.job(job_id).vendor_job_id for job_id in jobs)
            assert len(sandbox.jobs("kitta")) == len(jobs)


# -- all of it, in processes -------------------------------------------------------------------------------------------


def test_sixty_jobs_at_once_keep_to_the_vendor_s_limit_and_to_their_order(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, processes: Processes
) -> None:
    """The vendor counts, and refuses one too many; four workers share the line."""
    requests, seconds, count = 10, 2, 60
    folder: Callable[[str], Path] = tmp_path_factory.mktemp
    with (
        sandbox_process(folder("sandbox"), "--chanjing-submits", f"{requests}/{seconds}") as sandbox,
        web_of(folder("web"), redis_url, limited(sandbox.accounts(), requests, seconds)) as web,
    ):
        workers = [worker_process(processes, web.settings) for _ in range(4)]
        env = deployments.environment(web.settings)
        poller = processes.start("poller", [BIN / "python", "-m", "workers.poller"], env=env)
        for process in workers:
            process.wait_until(lambda process=process: "worker started" in process.output(), "its start")  # type: ignore[misc]
        poller.wait_until(lambda: "poller started" in poller.output(), "its start")
        body = {"vendor": SLUG, "input": {"text": "你好", "voice": "v"}, "vendor_input": {"video_file_id": "sandbox-1"}}
        jobs = [web.api.post("/v1/jobs", json=body).json() for _ in range(count)]

        eventually(lambda: len(sandbox.jobs(SLUG)) == count, "all of them taken", timeout=30)
        taken = sorted(sandbox.jobs(SLUG), key=lambda job: float(job["submitted_at"]))
        times = [float(job["submitted_at"]) for job in taken]
        assert all(last - first > seconds for first, last in zip(times, times[requests:], strict=False))
        assert "refused" not in sandbox.calls(SLUG)

        place = {job["id"]: number for number, job in enumerate(jobs)}
        order_ = [place[f"job_{job['callback_url'].partition('/job_')[2][:24]}"] for job in taken]
        assert sorted(order_) == list(range(count))
        for number, job in enumerate(order_):
            assert sum(later < job for later in order_[number:]) < requests

        for job, at in zip(order_, times, strict=True):
            told = datetime.fromisoformat(jobs[job]["scheduled_at"] or jobs[job]["created_at"]).timestamp()
            assert -1 < at - told < 5
        eventually(lambda: all(web.job(job["id"])["vendor_job_id"] for job in jobs), "all their ids")
        for process in (*workers, poller):
            process.kill()
