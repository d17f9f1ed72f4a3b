"""What fails is tried again, in order, and no endpoint at the cost of another."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from functools import partial
from typing import Any, cast

import pytest

from service.jobs import tasks
from service.jobs.endpoints import DISABLED
from service.jobs.scripts import PAUSE_AFTER
from service.model import Endpoint
from service.settings import Settings
from tests.support.hooks import always, depending, gated, in_turn
from tests.support.posts import DAY, DONE, Post, came, tried, working
from tests.support.processes import eventually_async
from workers import notify


async def test_a_job_s_events_stay_in_order_whatever_fails(at_work: Post) -> None:
    poor = in_turn(always(500), always(204))
    endpoint = await at_work.endpoint(
        answer=depending(lambda event: event["type"] == "job.processing", poor, always(204))
    )
    first = await at_work.job()
    await eventually_async(lambda: tried(at_work, endpoint, 2), "the first failure")
    other = await at_work.job()
    await eventually_async(lambda: tried(at_work, endpoint, 6), "the other job's events")
    assert at_work.hooks.delivered("/a") == [(first, DONE[0])] + [(other, type_) for type_ in DONE]
    await at_work.time_passes(endpoint, 10_000)
    await at_work.nothing_waits(endpoint)
    assert [type_ for job_id, type_ in at_work.hooks.delivered("/a") if job_id == first] == DONE
    tries = [(attempt.type, attempt.number, attempt.outcome) for attempt in await at_work.attempts(endpoint)][:2]
    assert tries == [("job.submitted", 1, "delivered"), ("job.processing", 1, "again")]


async def test_an_event_is_tried_for_three_days_and_then_given_up(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=always(503, "busy"), types=("job.submitted",))
    job_id = await at_work.job("job.submitted")
    waits = []
    for number in range(1, len(tasks.DELIVERY_RETRIES) + 2):
        await eventually_async(partial(tried, at_work, endpoint, number), f"try {number}")
        await at_work.idle(endpoint)
        due = cast(
            "list[tuple[bytes, float]]",
            await at_work.redis.zrange(at_work.key("deliveries", endpoint.id), 0, -1, withscores=True),
        )
        now = await at_work.deployment.store.now_ms()
        waits += [(score - now) / 1000 for _, score in due]
        # Not as far as the endpoint would be disabled for.
        await at_work.redis.hset(at_work.key("state", endpoint.id), "since", now)
        await at_work.time_passes(endpoint, int(1000 * waits[-1]) + 400_000)
    assert len(waits) == len(tasks.DELIVERY_RETRIES)
    assert all(0.79 * told - 2 < wait < 1.21 * told for wait, told in zip(waits, tasks.DELIVERY_RETRIES, strict=True))
    assert len({round(wait / told, 3) for wait, told in zip(waits, tasks.DELIVERY_RETRIES, strict=True)}) > 3
    assert 70 < sum(tasks.DELIVERY_RETRIES) / 3600 < 80
    assert await at_work.waiting(endpoint) == 0
    last = (await at_work.attempts(endpoint))[-1]
    assert (last.job_id, last.status, last.outcome, last.answer) == (job_id, 503, "given up", "busy")


async def test_whoever_asks_to_be_left_alone_is(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=in_turn(always(429, retry_after="120"), always(204)))
    await at_work.job("job.submitted")
    await eventually_async(lambda: tried(at_work, endpoint, 1), "the first try")
    await at_work.job("job.submitted")
    await at_work.idle(endpoint)
    retry_at = int(await at_work.redis.hget(at_work.key("state", endpoint.id), "retry_at") or 0)
    assert 110_000 < retry_at - await at_work.deployment.store.now_ms() <= 120_000
    assert len(at_work.hooks.got["/a"]) == 1
    await at_work.time_passes(endpoint, 130_000)
    await at_work.nothing_waits(endpoint)
    assert len(at_work.hooks.got["/a"]) == 3


async def test_a_dead_endpoint_is_left_alone_and_tried_by_one_event(at_work: Post) -> None:
    gate = asyncio.Event()
    endpoint = await at_work.endpoint(answer=depending(lambda _: gate.is_set(), always(204), always(500)))
    jobs = [await at_work.job("job.submitted") for _ in range(40)]
    await eventually_async(lambda: tried(at_work, endpoint, PAUSE_AFTER), "its failures")
    await at_work.idle(endpoint)
    before = 0
    for _ in range(3):
        before = len(at_work.hooks.got["/a"])
        await at_work.time_passes(endpoint, 5_000)
        await eventually_async(partial(tried, at_work, endpoint, before + 1), "a trial")
        await at_work.idle(endpoint)
        assert len(at_work.hooks.got["/a"]) == before + 1
    assert before < PAUSE_AFTER + notify.IN_FLIGHT + 3
    gate.set()
    await at_work.time_passes(endpoint, 600_000)
    await at_work.nothing_waits(endpoint)
    assert {job_id for job_id, _ in at_work.hooks.delivered("/a")} == set(jobs)


async def test_what_the_filter_holds_back_is_no_trial(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=in_turn(always(429, retry_after="60"), always(204)), metadata={"shop": 1})
    first = await at_work.job("job.submitted", metadata={"shop": 1})
    await eventually_async(lambda: tried(at_work, endpoint, 1), "the first try")
    for _ in range(10):
        await at_work.job("job.submitted", metadata={"shop": 2})
    last = await at_work.job("job.submitted", metadata={"shop": 1})
    await at_work.idle(endpoint)
    await at_work.time_passes(endpoint, 70_000)
    await at_work.nothing_waits(endpoint)
    assert {job_id for job_id, _ in at_work.hooks.delivered("/a")} == {first, last}


@pytest.mark.parametrize("word", ["test", "change"])
async def test_an_operator_s_word_ends_a_pause(at_work: Post, word: str) -> None:
    endpoint = await at_work.endpoint(answer=in_turn(always(429, retry_after="3600"), always(204)))
    await at_work.job("job.submitted")
    await eventually_async(lambda: tried(at_work, endpoint, 1), "the first try")
    await at_work.idle(endpoint)
    waits = await at_work.job("job.submitted")
    await (at_work.endpoints.test(endpoint.id) if word == "test" else at_work.endpoints.change(endpoint.id, types=DONE))
    await eventually_async(lambda: tried(at_work, endpoint, 2 + (word == "test")), "what waited")
    assert waits in {attempt.job_id for attempt in await at_work.attempts(endpoint) if attempt.status == 204}


async def test_names_that_nobody_answers_for_hold_up_no_other(
    post: Post, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, over, look_up = set(), threading.Event(), socket.getaddrinfo

    def slow(host: str, *more: Any, **how: Any) -> Any:
        if not host.endswith(".invalid"):
            return look_up(host, *more, **how)
        looked_up.add(host)
        over.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    names = {f"name-{number}.invalid" for number in range(40)}  # asyncio has 32 threads at most
    for name in names:
        await post.endpoints.change((await post.endpoint()).id, url=f"https://{name}/")
    async with working(settings):
        await post.job("job.submitted")

        async def all_hang() -> bool:
            return looked_up == names

        try:
            await eventually_async(all_hang, "all the names", timeout=8)
            good = await post.endpoint("/good")
            await post.endpoints.change(good.id, url=good.url.replace("127.0.0.1", "localhost"))
            second = await post.job("job.submitted")
            await post.nothing_waits(good)
        finally:
            over.set()
    assert post.hooks.delivered("/good") == [(second, "job.submitted")]


async def test_an_endpoint_that_is_gone_is_disabled_with_notice(
    at_work: Post, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = await at_work.endpoint(answer=always(410))
    await at_work.job("job.submitted")
    found = await eventually_async(lambda: disabled(at_work, endpoint), "its end")
    assert found.disabled_reason == "it answered 410 Gone"
    event = json.loads((await at_work.stream())[-1])
    assert (event["type"], event["data"]["id"], event["data"]["enabled"]) == (DISABLED, endpoint.id, False)
    assert "endpoint disabled" in capfd.readouterr().out
    await at_work.job("job.submitted")
    assert await at_work.waiting(endpoint) == 0
    assert len(at_work.hooks.got["/a"]) == 1


async def test_an_address_that_is_gone_but_no_longer_used_loses_nothing(at_work: Post) -> None:
    gate = asyncio.Event()
    endpoint = await at_work.endpoint(answer=gated(gate, always(410)))
    job_id = await at_work.job("job.submitted")
    await eventually_async(lambda: came(at_work, 1), "the event")
    await at_work.endpoints.change(endpoint.id, url=at_work.hooks.at("/b"))
    gate.set()
    await at_work.idle(endpoint)
    await at_work.time_passes(endpoint, 10_000)
    await at_work.nothing_waits(endpoint)
    assert at_work.hooks.delivered("/b") == [(job_id, "job.submitted")]


async def disabled(post: Post, endpoint: Endpoint) -> Endpoint | None:
    found = await post.endpoints.get(endpoint.id)
    return found if found and not found.enabled else None


async def test_days_of_failure_disable_and_a_replay_brings_everything(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=always(503))
    jobs = [await at_work.job() for _ in range(20)]
    await eventually_async(lambda: tried(at_work, endpoint, PAUSE_AFTER), "its failures")
    await at_work.idle(endpoint)
    await at_work.time_passes(endpoint, 4 * DAY)
    before = len(at_work.hooks.got["/a"])
    await eventually_async(partial(tried, at_work, endpoint, before + 1), "a trial")
    assert not await disabled(at_work, endpoint)
    await at_work.idle(endpoint)
    await at_work.time_passes(endpoint, 2 * DAY)
    found = await eventually_async(lambda: disabled(at_work, endpoint), "its end")
    assert found.disabled_reason == "nothing has got through for 6 days"

    at_work.hooks.at("/a")
    at_work.hooks.forget()
    enabled = await at_work.endpoints.change(endpoint.id, enabled=True, disabled_reason=None)
    assert enabled
    assert await at_work.endpoints.replay(enabled, 0) == (80, True)
    await at_work.nothing_waits(endpoint)
    check_all_came(at_work, jobs)


def check_all_came(post: Post, jobs: list[str]) -> None:
    """Each job's events in the order in which they were published."""
    known: dict[str, list[str]] = {}
    for job_id, type_ in post.hooks.delivered("/a"):
        known.setdefault(job_id, []).append(type_)
    assert known == dict.fromkeys(jobs, DONE)


async def test_an_endpoint_down_for_three_days_gets_everything_by_one_replay(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=always(502))
    jobs = []
    for _ in range(3):
        jobs += [await at_work.job() for _ in range(10)]
        await at_work.idle(endpoint)
        await at_work.time_passes(endpoint, DAY)
    assert not await disabled(at_work, endpoint)
    at_work.hooks.at("/a")
    at_work.hooks.forget()
    assert await at_work.endpoints.replay(endpoint, 0) == (120, True)
    await at_work.time_passes(endpoint, 600_000)
    await at_work.nothing_waits(endpoint)
    check_all_came(at_work, jobs)


async def test_what_waits_for_a_retry_is_sent_at_once_when_it_is_replayed(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=in_turn(always(500), always(204)))
    job_id = await at_work.job()
    await eventually_async(lambda: tried(at_work, endpoint, 1), "the first failure")
    await at_work.idle(endpoint)
    await at_work.endpoints.replay(endpoint, 0)
    await at_work.nothing_waits(endpoint)
    check_all_came(at_work, [job_id])


async def test_what_is_replayed_while_it_is_sent_is_sent_again_and_in_order(at_work: Post) -> None:
    gate = asyncio.Event()
    endpoint = await at_work.endpoint(answer=in_turn(always(204), gated(gate, always(204)), always(204)))
    job_id = await at_work.job("job.submitted", "job.processing")
    await eventually_async(lambda: came(at_work, 2), "the second event")
    await at_work.endpoints.replay(endpoint, 0)
    gate.set()
    await at_work.nothing_waits(endpoint)
    types = [hook.event["type"] for hook in at_work.hooks.got["/a"]]
    assert types == ["job.submitted", "job.processing"] * 2
    assert {hook.event["data"]["id"] for hook in at_work.hooks.got["/a"]} == {job_id}
