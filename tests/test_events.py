"""`GET /v1/events`: the stream as it is, to as many as want it, from where each of them was, and no gap in silence."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest

from service.api import events
from service.api.events import Feed
from service.cli.events import told
from service.deployment import Deployment
from service.jobs.stream import position
from tests.support.files import Files, status, whole
from tests.support.processes import BIN, Processes, eventually_async
from tests.support.web import API_KEY, CREDENTIALS, Web, web_process

#: An event's position and JSON.
Told = Iterator[tuple[str, str]]


@contextmanager
def listening(web: Web, **how: Any) -> Iterator[Told]:
    """What a listener is told, from the moment on that it listens."""
    with web.api.stream("GET", "/v1/events", **how) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = told(answer.iter_lines())
        next(found)
        yield ((at, event) for at, event in found if event)


def take(found: Told, count: int) -> list[tuple[str, str]]:
    return [next(found) for _ in range(count)]


def ledger(web: Web) -> list[tuple[str, str]]:
    rows: Any = web.redis.xrange(web.key("stream"))
    return [(at.decode(), fields[b"event"].decode()) for at, fields in rows]


def test_a_listener_is_told_what_is_published_as_it_is(web: Web) -> None:
    web.ended()
    with listening(web) as found:
        before = len(ledger(web))
        web.ended(3)
        assert take(found, 6) == ledger(web)[before:]


def test_a_listener_that_was_away_misses_nothing_and_is_told_nothing_twice(web: Web) -> None:
    with listening(web) as found:
        web.ended(3)
        heard = take(found, 4)
    web.ended(5)
    with listening(web, headers={"Last-Event-ID": heard[-1][0]}) as found:
        web.ended(2)
        heard += take(found, 16)
    assert heard == ledger(web)


def test_one_that_was_told_nothing_yet_resumes_as_well(web: Web) -> None:
    web.ended()
    with web.api.stream("GET", "/v1/events") as answer:
        at, event = next(told(answer.iter_lines()))
    assert event == ""
    web.ended()
    with listening(web, params={"after": at}) as found:
        assert take(found, 2) == ledger(web)[2:]
    with listening(web, params={"after": "0"}, headers={"Last-Event-ID": at}) as found:  # as a browser comes again
        assert take(found, 2) == ledger(web)[2:]


def test_filters_let_through_what_they_name(web: Web) -> None:
    [job_id], _ = web.ended(), web.ended(vendor="chanjing")
    marked = json.dumps({"id": "evt_x", "type": "endpoint.disabled", "data": {"id": "ep_x"}})
    web.redis.xadd(web.key("stream"), {"event": marked})
    filters: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [0, 1, 2, 3, 4]),
        ({"vendor": "chanjing"}, [2, 3]),
        ({"type": "job.failed"}, [1, 3]),
        ({"job_id": job_id}, [0, 1]),
        ({"type": "job.failed", "vendor": "kitta"}, [1]),
        ({"type": "endpoint.disabled"}, [4]),
        ({"type": ["job.submitted", "endpoint.disabled"]}, [0, 2, 4]),
    ]
    for params, numbers in filters:
        with listening(web, params={**params, "after": "0"}) as found:
            assert take(found, len(numbers)) == [ledger(web)[number] for number in numbers], params


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"headers": {"Last-Event-ID": "yesterday"}}, 400),
        ({"params": {"after": "1-2-3"}}, 422),
        ({"params": {"type": "job.done"}}, 422),
        ({"params": {"colour": "red"}}, 422),
        ({"params": {"after": ["0", "1-0"]}}, 422),
        ({"params": {"after": "9999999999999999-0"}}, 410),
        ({"headers": {"Authorization": "Bearer wrong"}}, 401),
    ],
)
def test_what_cannot_be_told_is_refused(web: Web, how: dict[str, Any], status: int) -> None:
    answer = web.api.get("/v1/events", **how)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_head_is_answered_without_a_body_that_never_ends(web: Web) -> None:
    answer = web.api.head("/v1/events")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_a_position_that_the_stream_has_let_go_of_is_told_and_not_skipped(web: Web) -> None:
    web.ended(4)
    known = ledger(web)
    web.redis.xtrim(web.key("stream"), maxlen=3, approximate=False)
    for after in ("0", "1-0", known[3][0]):
        answer = web.api.get("/v1/events", headers={"Last-Event-ID": after})
        assert answer.status_code == 410
        with listening(web, params={"after": answer.json()["oldest"]}) as found:
            assert take(found, 3) == known[-3:]
    with listening(web, headers={"Last-Event-ID": known[5][0]}) as found:
        assert take(found, 2) == known[-2:]
    web.redis.xtrim(web.key("stream"), maxlen=0, approximate=False)
    assert web.api.get("/v1/events", headers={"Last-Event-ID": known[6][0]}).status_code == 410
    with listening(web, headers={"Last-Event-ID": known[7][0]}) as found:
        web.ended()
        assert take(found, 2) == ledger(web)


def test_whoever_lags_far_behind_is_told_everything(web: Web) -> None:
    with listening(web) as found:
        pipeline = web.redis.pipeline()
        for number in range(3 * events.KEPT):
            event = json.dumps({"id": f"evt_{number}", "type": "job.stored", "data": {"text": "x" * 2000}})
            pipeline.xadd(web.key("stream"), {"event": event})
        pipeline.execute()
        assert [event for _, event in take(found, 3 * events.KEPT)] == [event for _, event in ledger(web)]


LISTENERS: Final = 2500


async def test_thousands_listen_over_one_connection_to_redis(web: Web) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, LISTENERS + 500), hard))
    port = httpx.URL(web.url).port
    asked = f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n".encode()
    connections = []
    try:
        for _ in range(LISTENERS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            connections.append((reader, writer))
            writer.write(asked)
        for reader, _ in connections:
            async with asyncio.timeout(30):
                await reader.readuntil(b"retry: 1000\nid: ")
        clients = [client for client in web.redis.client_list() if client["cmd"] != "client|list"]
        assert len(clients) < 70
        assert sum(client["cmd"] == "xread" for client in clients) == 1
        [job_id] = web.ended()
        for reader, _ in connections:
            async with asyncio.timeout(30):
                assert job_id.encode() in await reader.readuntil(b'"type":"job.failed"')
        assert web.http.get("/healthz").status_code == 200
    finally:
        for _, writer in connections:
            writer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_stops_lets_its_listeners_go(redis_url: str, tmp_path: Path) -> None:
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS}) as web:
        with web.api.stream("GET", "/v1/events") as answer, web.api.stream("GET", "/v1/events") as other:
            found = told(answer.iter_lines())
            next(found)
            web.ended()
            assert take(found, 2) == ledger(web)
            web.process.send(signal.SIGTERM)
            assert list(found) == []
            assert other.read().count(b"data: ") == 2
        assert web.process.wait(timeout=15) in (0, -signal.SIGTERM)
        assert "Traceback" not in web.process.output()


def test_the_terminal_goes_on_whatever_comes_between(files: Files, processes: Processes) -> None:
    job = {"id": "job_x", "vendor": "kitta", "error": {"message": "[/b] \x1b[2J of \u2028 theirs"}}
    event = json.dumps({"timestamp": "now", "type": "job.failed", "data": job}, ensure_ascii=False)
    told_once = whole(f"id: 1-1\nevent: job.failed\ndata: {event}\n\n".encode(), media_type="text/event-stream")
    gone = whole(b'{"detail": "gone"}', status=410)
    url = files.serve("/v1/events", status(503), told_once, status(502), gone).removesuffix("/v1/events")
    command: list[str | Path] = [
        BIN / "callsheet",
        "--url",
        url,
        "events",
        "tail",
        "--type",
        "job.failed",
        "--type",
        "job.stored",
    ]
    tail = processes.start("tail", command)
    assert tail.wait() == 1
    assert "job_x  kitta  [/b] \ufffd[2J of \u2028 theirs\n" in tail.output()
    asked = [request.target.partition("?")[2] for request in files.requests("/v1/events")]
    filters = "type=job.failed&type=job.stored"
    assert asked == [filters, filters, f"after=1-1&{filters}", f"after=1-1&{filters}"]
    assert "gone (HTTP 410)" in tail.output()
    assert "to go on: --after 1-1" in tail.output()


# -- the feed itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True])
async def test_a_sign_of_life_tells_how_far_a_listener_is(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.3)
    feed = Feed(deployment)
    found = events._told(feed, await feed.now(), {"type": frozenset({"job.stored"})})
    assert await anext(found) == b"retry: 1000\nid: 0-0\n\n"
    added: list[bytes] = []
    first, over = asyncio.ensure_future(anext(found)), asyncio.Event()

    async def others() -> None:
        while not added or (busy and not over.is_set()):
            event = b'{"id":"a","type":"job.failed","data":{}}'
            added.append(cast("bytes", await deployment.redis.xadd("callsheet:stream", {"event": event})))
            await asyncio.sleep(0.02)  # oftener than a heart beats

    adding = asyncio.create_task(others())
    async with asyncio.timeout(5):
        said = [await first, await anext(found)]
    over.set()
    await adding
    assert said[1] in [b": alive\nid: %b\n\n" % at for at in added]
    await feed.close()
    assert [each async for each in found] == []


async def test_what_is_trimmed_while_a_listener_reads_ends_it(deployment: Deployment) -> None:
    for _ in range(2 * events.PAGE):
        await deployment.redis.xadd("callsheet:stream", {"event": b'{"id":"a","type":"job.failed","data":{}}'})
    feed = Feed(deployment)
    await feed.now()
    found = events._told(feed, (0, 0), {})
    assert await anext(found) == b"retry: 1000\nid: 0-0\n\n"
    for _ in range(events.PAGE // events.AT_ONCE):
        assert (await anext(found)).count(b"data: ") == events.AT_ONCE
    await deployment.redis.xtrim("callsheet:stream", maxlen=10, approximate=False)
    async with asyncio.timeout(5):
        assert [each async for each in found] == []
    await feed.close()


async def test_a_reader_that_has_stopped_is_started_again_without_a_gap(deployment: Deployment) -> None:
    feed = Feed(deployment)
    last = await feed.now()

    async def over() -> bool:
        return feed._reader is not None and feed._reader.done()

    await eventually_async(over, "the reader's end: nobody listens")
    at = await deployment.redis.xadd("callsheet:stream", {"event": b'{"id":"a","type":"job.failed","data":{}}'})
    with feed.listening():
        entries = await feed.since(last)
        assert [entry.at for entry in entries or ()] == [position(at)]
        later = await deployment.redis.xadd("callsheet:stream", {"event": b'{"id":"b","type":"job.failed","data":{}}'})
        entries = await feed.since(position(at))
        assert [entry.at for entry in entries or ()] == [position(later)]
    await feed.close()
