"""Sending events to subscribers' endpoints: signed, in order, at least once, and no one at the cost of another."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, cast

import msgspec
import pytest
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from service.deployment import Deployment, opened
from service.jobs import tasks
from service.jobs.endpoints import DISABLED, OVERLAP_MS, TEST, Claim, Endpoints
from service.jobs.scripts import PAUSE_AFTER
from service.jobs.stream import says
from service.model import Archive, Attempt, Endpoint, Observation, Output, Source, Status, new_id
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support import node
from tests.support.hooks import Answer, Hook, Hooks, always, depending, gated, hooks_server, in_turn
from tests.support.processes import BIN, Processes, eventually_async
from workers import main, notify, poller
from workers.download import Interrupted
from workers.notify import Notifier

DAY: Final = 86_400_000
DONE: Final = ["job.submitted", "job.processing", "job.succeeded", "job.stored"]


class Post:
    """A deployment's sending side, and a look at what waits."""

    def __init__(self, deployment: Deployment, hooks: Hooks) -> None:
        self.deployment = deployment
        self.redis = deployment.redis
        self.key = deployment.store.key
        self.endpoints = Endpoints(deployment.redis, deployment.store, deployment.settings)
        self.hooks = hooks

    async def endpoint(self, path: str = "/a", answer: Answer | None = None, **more: Any) -> Endpoint:
        now = await self.deployment.store.now_ms()
        url = self.hooks.at(path, answer)
        made = Endpoint(id=new_id("ep", now), url=url, created_at=datetime.now(UTC), **more)
        await self.endpoints.add(made)
        return made

    async def job(self, *types: str, vendor: str = "kitta", metadata: dict[str, object] | None = None) -> str:
        """A job of which these events are published, all of them without."""
        job_id = new_id("job", await self.deployment.store.now_ms())
        seen = Observation(source=Source.SUBMIT, status=Status.QUEUED, metadata=metadata or {})
        await self.deployment.tracker.record(seen, vendor=vendor, job_id=job_id, create=True)
        for type_ in (types or DONE)[1:]:
            await self.goes_on(job_id, type_, vendor)
        return job_id

    async def goes_on(self, job_id: str, type_: str, vendor: str = "kitta") -> None:
        if type_ == "job.stored":
            seen = Observation(source=Source.ARCHIVE, archive=Archive.STORED)
        else:
            outputs = (Output(url="http://127.0.0.1:9/a.mp4"),) if type_ == "job.succeeded" else None
            seen = Observation(source=Source.CALLBACK, status=Status(type_.removeprefix("job.")), outputs=outputs)
        await self.deployment.tracker.record(seen, vendor=vendor, job_id=job_id)

    async def attempts(self, endpoint: Endpoint) -> list[Attempt]:
        """The oldest first."""
        rows, _ = await self.endpoints.attempts_json(endpoint.id, 1000)
        return [msgspec.json.decode(row, type=Attempt) for row in reversed(rows)]

    async def waiting(self, endpoint: Endpoint) -> int:
        [number] = await self.endpoints.waiting(endpoint.id)
        return number

    async def nothing_waits(self, *endpoints: Endpoint) -> None:
        async def none() -> bool:
            return not any(await self.endpoints.waiting(*(endpoint.id for endpoint in endpoints)))

        await eventually_async(none, "nothing that waits", timeout=20)

    async def idle(self, endpoint: Endpoint) -> None:
        """Wait until no run has the endpoint."""

        async def over() -> bool:
            return not await self.redis.hexists(self.key("state", endpoint.id), "busy")

        await eventually_async(over, "the end of the run", timeout=20)

    async def time_passes(self, endpoint: Endpoint, ms: int) -> None:
        """Let all that has to do with time be so much longer ago."""
        for key in (self.key("deliveries", endpoint.id), self.key("tasks")):
            for member in cast("list[bytes]", await self.redis.zrange(key, 0, -1)):
                await self.redis.zincrby(key, -ms, member)
        state, fields = self.key("state", endpoint.id), {"since", "retry_at", "paused", "until"}
        for field in fields & {name.decode() for name in cast("list[bytes]", await self.redis.hkeys(state))}:
            await self.redis.hincrby(state, field, -ms)

    async def stream(self) -> list[bytes]:
        rows: Any = await self.redis.xrange(self.key("stream"))
        return [fields[b"event"] for _, fields in rows]


@pytest.fixture
def settings(redis_url: str) -> Settings:
    silent = deployments.accounts(without=("lipsync_studio", "kitta", "chanjing", "apimodels"))
    return deployments.settings(redis_url, accounts=silent)


@pytest.fixture
async def post(settings: Settings) -> AsyncIterator[Post]:
    """Nobody sends yet."""
    async with opened(settings) as deployment, hooks_server() as hooks:
        yield Post(deployment, hooks)


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[asyncio.Event]:
    """A worker and a poller for the length of a block."""
    stop = asyncio.Event()
    async with opened(settings) as deployment, asyncio.TaskGroup() as group:
        group.create_task(main.run(deployment, stop))
        group.create_task(poller.run(deployment, stop))
        yield stop
        stop.set()


@pytest.fixture
async def at_work(settings: Settings, post: Post) -> AsyncIterator[Post]:
    async with working(settings):
        yield post


# -- what is sent ---------------------------------------------------------------------------------------------------


async def test_what_is_sent_is_what_is_published(at_work: Post) -> None:
    endpoint = await at_work.endpoint()
    job_id = await at_work.job()
    await at_work.nothing_waits(endpoint)
    assert at_work.hooks.delivered("/a") == [(job_id, type_) for type_ in DONE]
    assert [hook.body for hook in at_work.hooks.got["/a"]] == await at_work.stream()
    assert {hook.headers["content-type"] for hook in at_work.hooks.got["/a"]} == {"application/json"}
    assert [attempt.outcome for attempt in await at_work.attempts(endpoint)] == ["delivered"] * 4


async def test_each_secret_signs_for_a_day_after_it_was_replaced(at_work: Post) -> None:
    endpoint = await at_work.endpoint()
    old, new = [await at_work.endpoints.new_secret(endpoint.id) for _ in range(2)]

    async def signed_by(number: int) -> set[str]:
        await at_work.job("job.submitted")
        await at_work.nothing_waits(endpoint)
        hook = at_work.hooks.got["/a"][number]
        assert hook.headers["webhook-id"] == hook.event["id"]
        return {secret for secret in (old, new) if verifies(secret, hook)}

    assert await signed_by(0) == {old, new}
    until = int(await at_work.redis.hget(at_work.key("secrets", endpoint.id), old) or 0)
    assert OVERLAP_MS - 60_000 < until - await at_work.deployment.store.now_ms() <= OVERLAP_MS == DAY
    await at_work.redis.hincrby(at_work.key("secrets", endpoint.id), old, -DAY)
    assert await signed_by(1) == {new}


def verifies(secret: str, hook: Hook) -> bool:
    try:
        return bool(Webhook(secret).verify(hook.body, dict(hook.headers)) == hook.event)
    except WebhookVerificationError:
        return False


@pytest.mark.parametrize("payload", ["{}", '{"id":"evt_1","text":"声 \\u0000 é"}', "x" * 100_000])
def test_the_reference_library_signs_as_we_do(payload: str) -> None:
    secret, now = "whsec_" + base64.b64encode(bytes(range(32))).decode(), datetime.now(UTC)
    headers = notify.signature([secret], "evt_1", int(now.timestamp()), payload.encode())
    assert headers["webhook-signature"] == Webhook(secret).sign("evt_1", now, payload)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(payload + " ", headers)


async def test_filters_let_through_what_they_name(at_work: Post) -> None:
    filters: dict[str, dict[str, Any]] = {
        "/types": {"types": ("job.succeeded", "job.stored")},
        "/vendors": {"vendors": ("chanjing",)},
        "/metadata": {"metadata": {"shop": 7, "tags": ["a"]}},
        "/both": {"types": ("job.stored",), "vendors": ("kitta",), "metadata": {"shop": 7}},
    }
    endpoints = [await at_work.endpoint(path, **filter_) for path, filter_ in filters.items()]
    plain = await at_work.job()
    marked = await at_work.job(metadata={"shop": 7, "tags": ["a"], "more": None})
    other = await at_work.job(vendor="chanjing", metadata={"shop": "7", "tags": ["a"]})
    await at_work.nothing_waits(*endpoints)
    expected = {
        "/types": {(job_id, type_) for job_id in (plain, marked, other) for type_ in DONE[2:]},
        "/vendors": {(other, type_) for type_ in DONE},
        "/metadata": {(marked, type_) for type_ in DONE},
        "/both": {(marked, "job.stored")},
    }
    assert {path: set(at_work.hooks.delivered(path)) for path in filters} == expected


@pytest.mark.parametrize(
    ("wanted", "metadata", "through"),
    [
        ({}, {}, True),
        ({"a": 1}, {"a": 1.0, "b": 2}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": False}, {"a": 0}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, False),
        ({"a": {"b": [1, {"c": True}]}}, {"a": {"b": [1, {"c": True}]}}, True),
        ({"a": {"b": [1, {"c": True}]}}, {"a": {"b": [1, {"c": 1}]}}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": "1"}, {"a": 1}, False),
    ],
)
def test_metadata_is_compared_as_json(wanted: dict[str, object], metadata: dict[str, object], through: bool) -> None:
    assert says(metadata, wanted) is through


async def test_an_endpoint_hears_of_what_happens_from_then_on(at_work: Post) -> None:
    job_id = await at_work.job("job.submitted", "job.processing")
    endpoint = await at_work.endpoint()
    await at_work.goes_on(job_id, "job.succeeded")
    await at_work.nothing_waits(endpoint)
    assert at_work.hooks.delivered("/a") == [(job_id, "job.succeeded")]


async def test_tries_are_kept_for_a_week(at_work: Post) -> None:
    endpoint = await at_work.endpoint()
    key, now = at_work.key("attempts", endpoint.id), await at_work.deployment.store.now_ms()
    for days in (8, 6):
        await at_work.redis.xadd(key, {"attempt": "{}"}, id=f"{now - days * DAY}-0")
    await at_work.job("job.submitted")
    await at_work.nothing_waits(endpoint)
    assert await at_work.redis.xlen(key) == 2


async def test_a_test_event_reaches_every_endpoint(at_work: Post) -> None:
    endpoint = await at_work.endpoint(types=("job.failed",), metadata={"x": 1})
    sent = await at_work.endpoints.test(endpoint.id)
    await at_work.nothing_waits(endpoint)
    [hook] = at_work.hooks.got["/a"]
    assert (hook.event["type"], hook.event["data"]) == (TEST, {})
    assert abs(datetime.fromisoformat(hook.event["timestamp"]).timestamp() - time.time()) < 60
    assert [attempt.delivery_id for attempt in await at_work.attempts(endpoint)] == [sent]


# -- what fails is tried again -----------------------------------------------------------------------------------------


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


async def tried(post: Post, endpoint: Endpoint, times: int) -> bool:
    return len(await post.attempts(endpoint)) >= times


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
    assert sorted(at_work.hooks.delivered("/a")) == sorted((job_id, type_) for job_id in jobs for type_ in DONE)
    in_order(at_work.hooks.delivered("/a"))


def in_order(delivered: list[tuple[str, str]]) -> None:
    """Each job's events in the order in which they were published."""
    known: dict[str, list[str]] = {}
    for job_id, type_ in delivered:
        known.setdefault(job_id, []).append(type_)
    assert all(types == [type_ for type_ in DONE if type_ in types] for types in known.values())


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
    assert sorted(at_work.hooks.delivered("/a")) == sorted((job_id, type_) for job_id in jobs for type_ in DONE)
    in_order(at_work.hooks.delivered("/a"))


async def test_what_waits_for_a_retry_is_sent_at_once_when_it_is_replayed(at_work: Post) -> None:
    endpoint = await at_work.endpoint(answer=in_turn(always(500), always(204)))
    job_id = await at_work.job()
    await eventually_async(lambda: tried(at_work, endpoint, 1), "the first failure")
    await at_work.idle(endpoint)
    await at_work.endpoints.replay(endpoint, 0)
    await at_work.nothing_waits(endpoint)
    assert at_work.hooks.delivered("/a") == [(job_id, type_) for type_ in DONE]


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


async def came(post: Post, number: int) -> bool:
    return len(post.hooks.got["/a"]) >= number


# -- what an answer may be ---------------------------------------------------------------------------------------------


async def hung_up(_hook: Hook) -> str:
    return ""


TOKEN: Final = f"shared.{'x' * 43}"


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        (always(302, location="/b"), 302, ""),
        (always(400, f"no such thing as {TOKEN}"), 400, "no such thing as shared.***"),
        (always(401, f"not signed with whsec_{'+a/Z' * 11}=!"), 401, "not signed with whsec_***!"),
        (always(500, "é" * 4000), 500, "é" * 512),
        (always(204, seconds=3), None, "TimeoutError: no answer in time"),
        (hung_up, None, "ServerDisconnectedError: Server disconnected"),
    ],
    ids=["redirect", "refusal", "secret", "long", "slow", "hung up"],
)
async def test_what_came_back_is_kept_and_no_secret_of_it(
    post: Post, settings: Settings, monkeypatch: pytest.MonkeyPatch, answer: Answer, status: int | None, told: str
) -> None:
    monkeypatch.setattr(notify, "SECONDS", 1.0)
    endpoint = await post.endpoint(answer=answer)
    post.hooks.at("/b")
    async with working(settings):
        await post.job("job.submitted")
        await eventually_async(lambda: tried(post, endpoint, 1), "the first try")
    [attempt] = await post.attempts(endpoint)
    assert (attempt.status, attempt.outcome, attempt.answer) == (status, "again", told)
    assert post.hooks.got["/b"] == []


async def test_an_answer_that_never_ends_is_one(at_work: Post) -> None:
    async def endless(_hook: Hook) -> str:
        return "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + "x" * 5000

    endpoint = await at_work.endpoint(answer=endless)
    await at_work.job("job.submitted")
    await at_work.nothing_waits(endpoint)
    [attempt] = await at_work.attempts(endpoint)
    assert (attempt.outcome, attempt.answer) == ("delivered", "x" * 1024)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "https://169.254.169.254/latest"])
async def test_nothing_is_sent_where_nothing_may_go(redis_url: str, url: str) -> None:
    async with (
        opened(deployments.settings(redis_url, allow_private_networks=False)) as deployment,
        hooks_server() as hooks,
    ):
        post = Post(deployment, hooks)
        endpoint = await post.endpoint()
        await post.endpoints.change(endpoint.id, url=url)
        await post.job("job.submitted")
        async with notify.client(allow_private_networks=False) as http:
            await Notifier(deployment, http, asyncio.Event()).deliver(endpoint.id)
        [attempt] = await post.attempts(endpoint)
        assert attempt.status is None
        assert "its address is not allowed" in attempt.answer


# -- nothing is lost ---------------------------------------------------------------------------------------------------


async def test_what_is_on_its_way_is_noted_though_redis_went_away_meanwhile(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, claim = asyncio.Event(), Endpoints.claim
    endpoint = await post.endpoint(answer=gated(gate, always(204)))
    await post.job("job.submitted")

    async def once(self: Endpoints, *args: Any, **how: Any) -> Claim | None:
        if not post.hooks.got["/a"]:
            return await claim(self, *args, **how)
        asyncio.get_running_loop().call_soon(gate.set)
        raise ConnectionError("gone")

    monkeypatch.setattr(Endpoints, "claim", once)
    async with notify.client(allow_private_networks=True) as http:
        with pytest.raises(ConnectionError):
            await Notifier(post.deployment, http, asyncio.Event()).deliver(endpoint.id)
    assert [attempt.outcome for attempt in await post.attempts(endpoint)] == ["delivered"]
    assert await post.waiting(endpoint) == 0


async def test_a_worker_s_wrong_clock_is_in_no_signature(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, right = await post.endpoint(), time.time
    await post.job("job.submitted")
    monkeypatch.setattr(time, "time", lambda: right() + 3600)
    async with notify.client(allow_private_networks=True) as http:
        await Notifier(post.deployment, http, asyncio.Event()).deliver(endpoint.id)
    [hook], [attempt] = post.hooks.got["/a"], await post.attempts(endpoint)
    assert abs(int(hook.headers["webhook-timestamp"]) - right()) < 60
    assert abs(attempt.at.timestamp() - right()) < 60


async def test_no_event_waits_for_a_sweep(post: Post, settings: Settings) -> None:
    """Events that come at any moment of a run's end; there is no poller that would find what was forgotten."""
    endpoint, stop = await post.endpoint(), asyncio.Event()
    async with opened(settings) as deployment, asyncio.TaskGroup() as group:
        group.create_task(main.run(deployment, stop))
        for number in range(400):
            await post.job("job.submitted")
            await asyncio.sleep(number % 8 / 1000)  # around what a run takes
        await post.nothing_waits(endpoint)
        stop.set()
    assert len(post.hooks.delivered("/a")) == 400
    assert len(post.hooks.got["/a"]) == 400


async def test_a_killed_worker_s_events_are_sent_by_another(
    post: Post, settings: Settings, processes: Processes
) -> None:
    gate = asyncio.Event()
    endpoint = await post.endpoint(answer=in_turn(gated(gate, always(204)), always(204)))
    job_id = await post.job()
    worker = processes.start("worker", [BIN / "python", "-m", "workers.main"], env=deployments.environment(settings))
    await eventually_async(lambda: came(post, 1), "the first event")
    worker.kill()
    async with working(settings):
        await post.time_passes(endpoint, notify.LEASE_MS)
        await post.nothing_waits(endpoint)
    gate.set()
    assert post.hooks.delivered("/a") == [(job_id, type_) for type_ in DONE]
    assert len(post.hooks.got["/a"]) == 5


async def test_a_run_that_died_with_all_of_it_sent_is_not_waited_for(post: Post, settings: Settings) -> None:
    endpoint = await post.endpoint()
    await post.job("job.submitted")
    claim = await post.endpoints.claim(endpoint.id, "one that dies", notify.LEASE_MS, 8, hold=False)
    assert claim
    await post.endpoints.drop(endpoint.id, claim.waiting[0])
    await post.redis.delete(f"rq:queue:{settings.queue(tasks.NOTIFY)}")  # it had taken its task from there
    await post.time_passes(endpoint, notify.LEASE_MS)
    assert await post.deployment.store.sweep(100) == 0
    await post.job("job.submitted")
    async with working(settings):
        await post.nothing_waits(endpoint)


async def test_a_run_that_has_lost_its_lease_changes_nothing(post: Post) -> None:
    gate = asyncio.Event()
    endpoint = await post.endpoint(answer=in_turn(gated(gate, always(500)), always(204)))
    job_id = await post.job()
    async with notify.client(allow_private_networks=True) as http:
        notifier = Notifier(post.deployment, http, asyncio.Event())
        late = asyncio.create_task(notifier.deliver(endpoint.id))
        await eventually_async(lambda: came(post, 1), "the first event")
        await notifier.deliver(endpoint.id)
        assert len(post.hooks.got["/a"]) == 1, "the endpoint is another run's"
        await post.time_passes(endpoint, notify.LEASE_MS)
        await notifier.deliver(endpoint.id)
        assert post.hooks.delivered("/a") == [(job_id, type_) for type_ in DONE]
        gate.set()
        await late
    assert await post.waiting(endpoint) == 0
    assert not await post.redis.exists(*(post.key(name, endpoint.id) for name in ("deliveries", "lanes", "tries")))
    assert len(post.hooks.got["/a"]) == 5


async def test_a_worker_that_stops_hands_over_at_once(post: Post, settings: Settings) -> None:
    gate, stop = asyncio.Event(), asyncio.Event()
    endpoint = await post.endpoint(answer=in_turn(gated(gate, always(204)), always(204)))
    job_id = await post.job()
    async with notify.client(allow_private_networks=True) as http:
        run = asyncio.create_task(Notifier(post.deployment, http, stop).deliver(endpoint.id))
        await eventually_async(lambda: came(post, 1), "the first event")
        stop.set()
        gate.set()
        with pytest.raises(Interrupted):
            await run
        assert len(post.hooks.got["/a"]) == 1, "what is under way is finished, and nothing else begun"
        await Notifier(post.deployment, http, asyncio.Event()).deliver(endpoint.id)
    assert post.hooks.delivered("/a") == [(job_id, type_) for type_ in DONE]


async def test_an_endpoint_deleted_in_the_middle_leaves_nothing_behind(at_work: Post) -> None:
    gate = asyncio.Event()
    endpoint = await at_work.endpoint(answer=gated(gate, always(500)))
    for _ in range(20):
        await at_work.job()
    await eventually_async(lambda: came(at_work, notify.IN_FLIGHT), "its events")
    await at_work.endpoints.delete(endpoint.id)
    await at_work.endpoints.send(endpoint.id, f"{await at_work.job()} 1700000000000-000000000 job.stored")
    gate.set()

    async def nothing() -> bool:
        return [key async for key in at_work.redis.scan_iter(f"callsheet:*{endpoint.id}")] == []

    await eventually_async(nothing, "nothing left")
    assert await at_work.redis.zscore(at_work.key("tasks"), f"notify-{endpoint.id}") is None
    assert len(at_work.hooks.got["/a"]) == notify.IN_FLIGHT


async def test_nothing_is_sent_to_an_endpoint_that_is_disabled(post: Post, settings: Settings) -> None:
    endpoint = await post.endpoint()
    await post.job()
    await post.endpoints.change(endpoint.id, enabled=False)
    assert await post.waiting(endpoint) == 0
    await post.endpoints.test(endpoint.id)  # by somebody who has read it before it was disabled
    async with working(settings):
        await post.nothing_waits(endpoint)
    assert post.hooks.got["/a"] == []


async def test_what_was_changed_meanwhile_is_not_disabled(post: Post) -> None:
    endpoint = await post.endpoint()
    changed = await post.endpoints.change(endpoint.id, url=post.hooks.at("/b"))
    assert not await post.endpoints.disable(endpoint, "it answered 410 Gone")
    assert await post.endpoints.get(endpoint.id) == changed
    await asyncio.gather(*(post.endpoints.change(endpoint.id, **{name: value}) for name, value in CHANGES.items()))
    assert await post.endpoints.get(endpoint.id) == replace(endpoint, **CHANGES)
    await post.endpoints.delete(endpoint.id)
    assert await post.endpoints.change(endpoint.id, enabled=True) is None


CHANGES: Final[dict[str, Any]] = {"url": "https://x.example/", "types": ("job.failed",), "metadata": {"a": 1}}


@pytest.mark.parametrize("gone", ["job", "stream", "both"])
async def test_what_waits_outlasts_the_job_or_the_stream(post: Post, settings: Settings, gone: str) -> None:
    endpoint = await post.endpoint()
    job_id = await post.job("job.submitted")
    [event] = await post.stream()
    if gone != "stream":
        await post.redis.delete(post.key("job", job_id))
    if gone != "job":
        await post.redis.xtrim(post.key("stream"), maxlen=0)
    async with working(settings):
        await post.nothing_waits(endpoint)
    assert [hook.event for hook in post.hooks.got["/a"]] == ([] if gone == "both" else [json.loads(event)])


@pytest.mark.parametrize("text", ["", "声 \u0000 é 🎬"])
def test_the_reference_library_of_javascript_agrees(text: str) -> None:
    known = [f"whsec_{base64.b64encode(bytes(range(number, number + 32))).decode()}" for number in (0, 9)]
    payload, now = json.dumps({"text": text}, ensure_ascii=False), int(time.time())
    headers = notify.signature(known, "evt_1", now, payload.encode())
    for secret, ours in zip(known, headers["webhook-signature"].split(), strict=True):
        asked = {"secret": secret, "id": "evt_1", "timestamp": now, "payload": payload, "headers": headers}
        told = json.loads(node.run("webhooks.mjs", stdin=json.dumps(asked)))
        assert told == {"signature": ours, "verified": True, "altered": False}
