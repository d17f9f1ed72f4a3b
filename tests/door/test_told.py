"""What is written of a job and what everybody hears: whole, within its limits, without a secret, whatever the text."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from service.jobs.scripts import TIMELINE_LENGTH
from service.jobs.tokens import Tokens
from service.jobs.tracker import RAW_LIMIT
from service.model import Archive, Cost, JobError, Output, Problem, Status
from tests.support.deployment import SECRET
from tests.support.desk import (
    PROBLEM,
    REFUSED,
    SUCCESS,
    VENDOR,
    VIDEO,
    Desk,
    archived,
    copied,
    listening,
    opened_desk,
    ours,
    polled,
    told,
)


async def test_facts_without_effect_are_only_counted_once_the_timeline_is_long(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, told(Status.PROCESSING))
    more = 7
    facts = [told(Status.PROCESSING) for _ in range(TIMELINE_LENGTH + more - 2)]
    await asyncio.gather(*(desk.tell(job_id, seen) for seen in facts))
    assert len(await desk.timeline(job_id)) == TIMELINE_LENGTH
    assert await desk.redis.hget(desk.store.key("job", job_id), "_unlisted") == str(more).encode()
    await desk.tell(job_id, SUCCESS)
    assert (await desk.last(job_id))["status"] == "succeeded", "what has an effect is always listed"


async def test_the_timeline_tells_every_fact_in_order_with_its_evidence(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, told(Status.PROCESSING, detail="half-way"), raw=b'{"status":"running"}')
    await desk.tell(job_id, told(Status.QUEUED), raw=b'{"status":"waiting"}')
    await desk.tell(job_id, SUCCESS, raw=b'{"status":"done"}')
    await desk.tell(job_id, SUCCESS, raw=b'{"status":"done"}')
    entries = await desk.timeline(job_id)
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)
    names = ("status", "applied", "why", "detail", "raw")
    assert [tuple(map(entry.get, names)) for entry in entries[1:]] == [
        ("processing", True, "was queued", "half-way", '{"status":"running"}'),
        ("queued", False, "older than what is known", None, '{"status":"waiting"}'),
        ("succeeded", True, "was processing", None, '{"status":"done"}'),
        ("succeeded", False, "known already", None, None),
    ]
    assert all(entry.keys() <= {"at", "source", *names} and entry["source"] == "callback" for entry in entries[1:])


async def test_evidence_is_kept_up_to_its_limit(desk: Desk) -> None:
    job_id = await desk.track()
    raw = b'{"audio":"' + bytes(97 + number % 26 for number in range(3 * RAW_LIMIT)) + b'"}'
    await desk.tell(job_id, SUCCESS, raw=raw)
    assert (await desk.last(job_id))["raw"] == raw[:RAW_LIMIT].decode()


@pytest.mark.parametrize("subject", ["job", "shared"])
@pytest.mark.parametrize("position", ["inside", "across the limit"])
async def test_no_callback_token_is_ever_written(desk: Desk, subject: str, position: str) -> None:
    job_id = await desk.track()
    url = Tokens((SECRET,), "http://127.0.0.1").url(VENDOR, job_id if subject == "job" else "shared")
    mac = url.rpartition(".")[2]
    echo = json.dumps({"request": json.dumps({"callback_url": url})}).replace("/", "\\/").encode()
    if position == "across the limit":
        echo = b"x" * (RAW_LIMIT - echo.index(mac.encode()) - 10) + echo
    await desk.tell(job_id, PROBLEM, raw=echo, quarantine=(job_id, echo))
    await desk.tell(job_id, SUCCESS, raw=echo)
    [letter], _ = await desk.store.quarantined(10)
    kept = await desk.store.letter(letter["id"].decode())
    assert kept
    assert kept["body"] == echo.replace(mac.encode(), b"***")
    assert mac[:8] not in str(await desk.timeline(job_id))
    assert (await desk.last(job_id))["raw"].count("***") == 1


async def test_no_callback_token_gets_into_what_subscribers_hear(desk: Desk) -> None:
    """A vendor's words may hold the callback URL that they speak of."""
    job_id = await desk.track()
    url = Tokens((SECRET,), "http://127.0.0.1").url(VENDOR, job_id)
    said = f"could not deliver to {url}"
    await desk.tell(job_id, told(problem=Problem.UNKNOWN_STATUS, detail=said), quarantine=(job_id, said.encode()))
    error = JobError(code="undelivered", message=said)
    await desk.tell(job_id, told(Status.FAILED, error=error, result={"echo": {"callback_url": url}}, detail=said))
    mac = url.rpartition(".")[2]
    letters, _ = await desk.store.quarantined(10)
    written = str((await desk.store.job_json(job_id), await desk.timeline(job_id), await desk.stream(), letters))
    assert "could not deliver to" in written
    assert mac not in written


async def test_what_only_looks_a_little_like_a_token_is_kept_as_it_was_given(desk: Desk) -> None:
    """Files are named after the job, and a link of which a part is blanked out leads nowhere."""
    job_id = await desk.track()
    metadata: dict[str, object] = {"file": f"{job_id}.mp4", "folder": "shared.with-the-whole-team"}
    outputs = tuple(
        Output(url=f"https://cdn.example/{name}")
        for name in (f"{job_id}.mp4", "shared.0123456789abcdef01234567.mp4", "shared.with-the-whole-team/1.mp4")
    )
    await desk.tell(job_id, ours(metadata=metadata))
    await desk.tell(job_id, told(Status.SUCCEEDED, outputs=outputs))
    job = await desk.job(job_id)
    assert job.metadata == metadata
    assert job.outputs == outputs


HOSTILE: Final = {
    "quotes": "a \"b\" 'c' `d`",
    "backslashes": "C:\\new\\table \\u0000 \\",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029",
    "emoji": "🎬 \U0001f469\u200d\U0001f3a4 \ufeff \uffff",
    "templates": "%JOB% %NOW% %s %d ${x} {0} ' .. error() .. ' ]]",
    "markup": "</script><!-- ]]> &amp; \r\nSet-Cookie: x",
    "Chinese": "对口型任务失败：音频无效",
    "key parts": "a:b:*:[x]?{y}",
    "JSON": '"},{"status":"succeeded"',
}


@pytest.mark.parametrize("text", list(HOSTILE.values()), ids=list(HOSTILE))
async def test_no_text_breaks_the_json_of_the_job_its_events_or_its_timeline(desk: Desk, text: str) -> None:
    await desk.hint(told(Status.PROCESSING, vendor_job_id=text, detail=text))
    metadata: dict[str, object] = {text: [text, {"deep": text}]}
    job_id = await desk.track(text, model=text, metadata=metadata, detail=text)
    await desk.tell(job_id, told(problem=Problem.UNKNOWN_STATUS, detail=text), quarantine=(job_id, text.encode()))
    error = JobError(code=text, message=text)
    cost = Cost(estimated=0.1, unit=text)
    await desk.tell(job_id, polled(Status.FAILED, error=error, result={text: text}, cost=cost), raw=text.encode())
    await desk.tell(job_id, polled(Status.FAILED, cost=Cost(charged=0.3, unit=text)))

    job = await desk.job(job_id)
    assert (job.vendor_job_id, job.model, job.metadata) == (text, text, metadata)
    assert (job.error, job.result) == (error, {text: text})
    assert job.cost == Cost(estimated=0.1, charged=0.3, unit=text)
    assert [event.type for event in await desk.events(job_id)] == ["job.submitted", "job.processing", "job.failed"]
    created, _, problem, failed, *_ = await desk.timeline(job_id)
    assert (created["detail"], problem["detail"], failed["raw"]) == (text, text, text)
    [letter], _ = await desk.store.quarantined(10)
    assert json.loads(letter["detail"]) == text
    assert await desk.store.find(VENDOR, text) == job_id
    await desk.tell(job_id, told(Status.SUCCEEDED, vendor_job_id=text))
    [claim] = await desk.store.claim_polls(VENDOR, 1000, 10)
    assert (claim.job_id, claim.vendor_job_id) == (job_id, text)


async def test_evidence_that_is_no_text_is_kept_as_far_as_it_is(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS, raw=b"\xff\xfe{\x00}\xed\xa0\x80" + "é".encode()[:1])
    assert (await desk.last(job_id))["raw"].startswith("\ufffd\ufffd{\x00}")


async def test_a_lone_surrogate_is_refused_before_anything_is_written_and_harms_no_other(desk: Desk) -> None:
    job_id, other = await desk.track("v-1"), await desk.track("v-2")
    row = await desk.store.job_json(job_id)
    refused, fine = await asyncio.gather(
        desk.tell(job_id, told(Status.PROCESSING, detail="\ud800")),
        desk.tell(other, told(Status.PROCESSING)),
        return_exceptions=True,
    )
    assert isinstance(refused, UnicodeEncodeError)
    assert fine == "apply"
    assert await desk.store.job_json(job_id) == row


async def test_every_channel_carries_the_same_events(desk: Desk) -> None:
    async with listening(desk) as ears:
        first, second = await desk.track("v-1"), await desk.track("v-2")
        await asyncio.gather(desk.tell(first, SUCCESS), desk.tell(second, told(Status.FAILED, error=REFUSED)))
        await desk.tell(first, archived(archive=Archive.STORED, outputs=copied(VIDEO)))
        everybody, single = await ears.heard()
        assert everybody == await desk.stream()
        heard = {job_id: [json.loads(event)["type"] for event in events] for job_id, events in single.items()}
        assert heard == {
            first: ["job.submitted", "job.succeeded", "job.stored"],
            second: ["job.submitted", "job.failed"],
        }
        assert Counter(everybody) == Counter([*single[first], *single[second]])


async def test_events_have_ids_of_their_own_and_the_time_of_the_commit(desk: Desk) -> None:
    before = await desk.store.now_ms()
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    after = await desk.store.now_ms()
    assert all(sorted(json.loads(event)) == ["data", "id", "timestamp", "type"] for event in await desk.stream())
    events = await desk.events(job_id)
    assert [event.id.partition("_")[0] for event in events] == ["evt", "evt"]
    assert len({event.id for event in events}) == 2
    assert all(before <= event.timestamp.timestamp() * 1000 <= after for event in events)


async def test_names_begin_with_the_key_prefix(redis_url: str) -> None:
    async with opened_desk(redis_url, key_prefix="studio") as desk, desk.redis.pubsub() as pubsub:
        await pubsub.subscribe("studio:events")
        await desk.tell(await desk.track(), SUCCESS)
        keys = {key async for key in desk.redis.scan_iter()}
        assert all(key.startswith((b"studio:", b"rq:")) for key in keys)
        assert {b"studio:stream", b"rq:queue:studio-archive"} <= keys
        messages = [message async for message in first(pubsub, 3)]
        assert [message["type"] for message in messages] == ["subscribe", "message", "message"]


async def first(pubsub: Any, number: int) -> AsyncIterator[dict[str, Any]]:
    async for message in pubsub.listen():
        yield message
        number -= 1
        if not number:
            return
