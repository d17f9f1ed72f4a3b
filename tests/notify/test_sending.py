"""Events for subscribers' endpoints: signed, chosen by filters; and nothing that waits is lost, whoever dies."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from service.deployment import opened
from service.jobs import tasks
from service.jobs.endpoints import OVERLAP_MS, TEST, Claim, Endpoints
from service.jobs.stream import says
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support import node
from tests.support.hooks import Answer, Hook, always, gated, hooks_server, in_turn
from tests.support.posts import DAY, DONE, Post, came, tried, working
from tests.support.processes import BIN, Processes, eventually_async
from workers import main, notify
from workers.download import Interrupted
from workers.notify import Notifier

# -- what is sent ---------------------------------------------------------------------------------------


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


# -- what an answer may be ------------------------------------------------------------------------------


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


# -- nothing is lost ------------------------------------------------------------------------------------


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
    assert await post.deployment.store.sweep(100) == (0, False)
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
