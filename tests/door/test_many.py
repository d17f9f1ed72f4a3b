"""Many facts: in whatever order, in one round trip to Redis, and while Redis is in trouble."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import hypothesis
import msgspec
import pytest
import redis as sync_redis
from hypothesis import strategies as st

from service.jobs import rules
from service.jobs.connection import connect, connect_sync
from service.jobs.tracker import BATCH_BYTES, BATCH_FACTS, RAW_LIMIT, CommitFailed, Recorded
from service.model import VERDICTS, Archive, Cost, Event, Job, Observation, Problem, Source, Status
from tests.support.desk import (
    CHARGE,
    ESTIMATE,
    OTHER_VIDEO,
    PROBLEM,
    REFUSED,
    SUCCESS,
    VENDOR,
    VIDEO,
    Desk,
    archived,
    check_events,
    copied,
    fact,
    listening,
    opened_desk,
    ours,
    polled,
    told,
)
from tests.support.processes import eventually_async
from tests.support.servers import valkey_server

Said = tuple[Observation, dict[str, Any]]

VOICES: Final = (
    (Source.CALLBACK, False),
    (Source.CALLBACK, True),
    (Source.POLL, False),
    (Source.SUBMIT, False),
    (Source.OPERATOR, False),
    (Source.DEADLINE, False),
)


@st.composite
def status_facts(draw: st.DrawFn) -> Said:
    source, weak_path = draw(st.sampled_from(VOICES))
    status = Status.EXPIRED if source is Source.DEADLINE else draw(st.sampled_from(Status))
    seen = fact(
        source,
        status,
        progress=draw(st.none() | st.integers(0, 100)),
        cost=draw(st.sampled_from((None, ESTIMATE, CHARGE, Cost(charged=0.1, unit="credits")))),
        outputs=draw(st.sampled_from((None, VIDEO, OTHER_VIDEO))) if status is Status.SUCCEEDED else None,
        error=REFUSED if status is Status.FAILED else None,
    )
    return seen, {"weak_path": weak_path, "poll_now": draw(st.booleans())}


OTHER_FACTS: Final[tuple[Said, ...]] = (
    (archived(archive=Archive.STORED, outputs=copied(VIDEO)), {}),
    (archived(archive=Archive.FAILED, detail="the last attempt"), {}),
    (archived(problem=Problem.NOT_STORED, detail="an attempt"), {"task": "archive", "retry_in": 5}),
    (ours(archive=Archive.WAITING), {"poll_now": True}),
    (ours(metadata={"order": 8}), {}),
    (PROBLEM, {"quarantine": ("shared", b"{}")}),
    (polled(problem=Problem.UNKNOWN_JOB, detail="not_found"), {}),
)


@hypothesis.given(facts=st.lists(status_facts() | st.sampled_from(OTHER_FACTS), min_size=1, max_size=15))
@hypothesis.settings(
    max_examples=80, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
async def test_whatever_is_said_in_whatever_order_a_job_stays_sound(desk: Desk, facts: list[Said]) -> None:
    await desk.redis.delete(desk.store.key("stream"))  # of the example before
    async with listening(desk) as ears:
        job_id = await desk.new_id()
        vendor_job_id = f"v-{job_id}"
        await desk.tell(job_id, fact(Source.SUBMIT, vendor_job_id=vendor_job_id), create=True)
        for seen, how in facts:
            await said_and_checked(desk, job_id, vendor_job_id, seen, how)
        events = await desk.stream()
        everybody, single = await ears.heard()
    assert everybody == events == single.get(job_id, [])
    check_events(job_id, [msgspec.json.decode(event, type=Event) for event in events])


async def said_and_checked(desk: Desk, job_id: str, vendor_job_id: str, seen: Observation, how: dict[str, Any]) -> None:
    """Tell one fact, and hold the job before it against the job after it."""
    row, before, listed = await desk.store.job_json(job_id), await desk.job(job_id), await desk.timeline(job_id)
    announced = len(await desk.stream())
    weak_path = how.get("weak_path", False)
    if weak_path:
        outcome = await desk.tell(None, msgspec.structs.replace(seen, vendor_job_id=vendor_job_id), **how)
    else:
        outcome = await desk.tell(job_id, seen, **how)
    after, now_listed = await desk.job(job_id), await desk.timeline(job_id)

    if seen.status:
        witness = rules.witness(seen.source, weak_path=weak_path)
        decision = rules.decide(witness, before.status, seen.status)
        assert outcome == decision or (outcome == "update" and decision in ("same", "stale"))
        assert after.status is (seen.status if outcome == "apply" else before.status)
    else:
        assert after.status is before.status
    not_taken = (before.status, after.status) == (Status.UNCONFIRMED, Status.PENDING)
    assert rules.RANK[after.status] >= rules.RANK[before.status] or not_taken
    if before.status in VERDICTS and after.status is not before.status:
        assert seen.source in (Source.POLL, Source.SUBMIT), "only the asked vendor takes a verdict back"
    if outcome in ("same", "stale", "ask") or seen.problem:
        assert await desk.store.job_json(job_id) == row, "what has no effect changes nothing"
    if after.status not in VERDICTS:
        assert (after.progress or 0) >= (before.progress or 0)

    assert now_listed[: len(listed)] == listed, "entries are only ever appended"
    assert len(now_listed) <= len(listed) + 1
    stream = await desk.stream()
    if len(stream) > announced:
        latest = msgspec.json.decode(stream[-1], type=dict[str, msgspec.Raw])
        assert bytes(latest["data"]) == await desk.store.job_json(job_id), "an event is the job at that time"

    assert await desk.indexes(job_id) == [f"callsheet:jobs:kitta:{after.status}:{after.archive}"]
    over = after.status in VERDICTS or after.status is Status.EXPIRED
    assert (await desk.due(job_id, "deadlines") is None) is over
    assert over or await desk.due(job_id) is not None, "a job that is alive is looked after"
    assert (await desk.due(f"archive-{job_id}", "tasks") is not None) is (after.archive is Archive.WAITING)
    if after.archive is Archive.STORED:
        assert all(output.stored for output in after.outputs)


# -- many at once ---------------------------------------------------------------------------------------


async def round_trips(desk: Desk) -> int:
    """EVALSHA calls since the statistics were last reset."""
    statistics = cast("dict[str, dict[str, int]]", await desk.redis.info("commandstats"))
    return statistics.get("cmdstat_evalsha", {"calls": 0})["calls"]


@pytest.mark.parametrize(
    ("number", "bytes_each", "expected"),
    [
        (1, 0, 1),
        (BATCH_FACTS, 0, 1),
        (BATCH_FACTS + 1, 0, 2),
        (3 * BATCH_FACTS, 0, 3),
        (BATCH_BYTES // RAW_LIMIT - 1, RAW_LIMIT, 1),
        (BATCH_BYTES // RAW_LIMIT + 1, RAW_LIMIT, 2),
    ],
)
async def test_facts_of_the_same_turn_share_a_round_trip_within_limits(
    desk: Desk, number: int, bytes_each: int, expected: int
) -> None:
    job_id = await desk.track()
    await desk.redis.config_resetstat()
    facts = (desk.tell(job_id, told(Status.PROCESSING), raw=b"x" * bytes_each) for _ in range(number))
    outcomes = Counter(await asyncio.gather(*facts))
    assert await round_trips(desk) == expected
    assert outcomes == Counter(apply=1, same=number - 1)


async def test_facts_in_one_round_trip_come_to_what_they_come_to_one_by_one(desk: Desk) -> None:
    facts = [told(Status.PROCESSING, progress=30), SUCCESS, told(Status.PROCESSING), told(Status.FAILED), SUCCESS]
    together, apart = await desk.track("v-1"), await desk.track("v-2")
    outcomes = await asyncio.gather(*(desk.tell(together, seen) for seen in facts))
    assert outcomes == [await desk.tell(apart, seen) for seen in facts] == ["apply", "apply", "stale", "ask", "same"]
    assert await desk.types(together) == await desk.types(apart)
    assert await why(desk, together) == await why(desk, apart)


async def why(desk: Desk, job_id: str) -> list[str]:
    return [entry["why"] for entry in await desk.timeline(job_id)]


async def test_each_of_many_gets_its_own_answer(desk: Desk) -> None:
    jobs = [await desk.track(f"v-{number}") for number in range(5)]
    seen = told(Status.PROCESSING)
    record = partial(desk.tracker.record, vendor=VENDOR)
    answers = await asyncio.gather(*(record(seen, job_id=job_id) for job_id in (*jobs, "job_unknown", *jobs)))
    assert [answer.job_id for answer in answers] == [*jobs, "job_unknown", *jobs]
    assert [answer.outcome for answer in answers] == [*["apply"] * 5, "unknown_job", *["same"] * 5]


async def test_a_fact_that_redis_cannot_apply_harms_no_other(desk: Desk) -> None:
    jobs = [await desk.track(f"v-{number}") for number in range(3)]
    await desk.redis.hdel(desk.store.key("job", jobs[1]), "status")  # a row that something has damaged
    answers = await asyncio.gather(*(desk.tell(job_id, SUCCESS) for job_id in jobs), return_exceptions=True)
    assert answers[0] == answers[2] == "apply"
    assert isinstance(answers[1], CommitFailed)
    assert str(answers[1])


async def test_who_stops_waiting_does_not_take_the_answer_from_the_others(desk: Desk) -> None:
    jobs = [await desk.track(f"v-{number}") for number in range(3)]
    waiting = [asyncio.create_task(desk.tell(job_id, SUCCESS)) for job_id in jobs]
    await asyncio.sleep(0)  # they wait now
    waiting[1].cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert answers[0] == answers[2] == "apply"
    assert await desk.tell(jobs[1], SUCCESS) in ("apply", "same")


async def test_a_script_that_redis_has_forgotten_is_sent_again(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.redis.script_flush()
    outcomes = await asyncio.gather(desk.tell(job_id, SUCCESS), desk.tell(job_id, SUCCESS))
    assert list(outcomes) == ["apply", "same"]


async def test_an_error_reaches_everybody_who_waits_and_the_facts_can_be_told_again(desk: Desk) -> None:
    jobs = [await desk.track(f"v-{number}") for number in range(BATCH_FACTS + 5)]
    before = await desk.everything()
    async with connect(desk.settings) as operator:
        await operator.client_pause(60_000, all=False)  # nothing is written
        try:
            waiting = [asyncio.create_task(desk.tell(job_id, SUCCESS)) for job_id in jobs]

            async def both_blocked() -> bool:
                clients = await operator.client_list()
                return sum(client["cmd"] == "evalsha" and "b" in client["flags"] for client in clients) == 2

            for _ in range(2):  # a lost connection is made good once
                await eventually_async(both_blocked, "two round trips on their way")
                await operator.client_kill_filter(_type="normal", skipme=True)
        finally:
            await operator.client_unpause()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in answers} == {sync_redis.ConnectionError}
    assert await desk.everything() == before
    assert set(await asyncio.gather(*(desk.tell(job_id, SUCCESS) for job_id in jobs))) == {"apply"}


async def test_while_redis_does_not_answer_nobody_waits_for_those_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.wire.PATIENCE", 0.2)
    monkeypatch.setattr("service.jobs.tracker.BATCH_FACTS", 1)
    job_id = await desk.track()
    await desk.redis.client_pause(60_000, all=False)  # nothing is written
    try:
        async with asyncio.timeout(10):  # one after the other, it would take them a minute
            answers = await asyncio.gather(*(desk.tell(job_id, SUCCESS) for _ in range(200)), return_exceptions=True)
    finally:
        await desk.redis.client_unpause()
    assert {type(answer) for answer in answers} == {sync_redis.TimeoutError}
    assert await desk.tell(job_id, SUCCESS) in ("apply", "same")


async def test_a_redis_that_is_no_longer_the_primary_is_looked_for_anew(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.redis.replicaof("127.0.0.1", "1")
    try:
        before = (await desk.redis.info("stats"))["total_connections_received"]
        with pytest.raises(sync_redis.ReadOnlyError):
            await desk.tell(job_id, SUCCESS)
        assert (await desk.redis.info("stats"))["total_connections_received"] > before
    finally:
        await desk.redis.replicaof("NO", "ONE")
    assert await desk.tell(job_id, SUCCESS) == "apply"


async def test_the_plain_form_does_what_the_asyncio_form_does(desk: Desk) -> None:
    facts: list[Said] = [
        (fact(Source.SUBMIT, Status.QUEUED, model="m", metadata={"order": 7}, cost=ESTIMATE), {"create": True}),
        (told(Status.PROCESSING, progress=20), {"raw": b"{}"}),
        (PROBLEM, {"quarantine": ("shared", b"{}")}),
        (told(Status.SUCCEEDED, outputs=VIDEO, cost=CHARGE), {"expect": {"status": Status.PROCESSING}}),
        (told(Status.FAILED), {}),
        (archived(problem=Problem.NOT_STORED, detail="attempt 1"), {"task": "archive", "retry_in": 5}),
        (archived(archive=Archive.STORED, outputs=copied(VIDEO)), {"expect": {"outputs": OTHER_VIDEO}}),
        (archived(archive=Archive.STORED, outputs=copied(VIDEO)), {"expect": {"outputs": VIDEO}}),
    ]
    one, other = await desk.new_id(), await desk.new_id()
    asynchronous = [await desk.tell(one, seen, **how) for seen, how in facts]
    with connect_sync(desk.settings) as redis:
        plain = [desk.tracker.record_now(redis, seen, vendor=VENDOR, job_id=other, **how) for seen, how in facts]
        assert desk.tracker.record_now(redis, SUCCESS, vendor=VENDOR, job_id="job_x") == Recorded(
            "unknown_job", "job_x"
        )
    assert [recorded.outcome for recorded in plain] == asynchronous
    assert asynchronous == ["apply", "apply", "ask", "apply", "ask", "note", "changed", "apply"]
    assert {recorded.job_id for recorded in plain} == {other}
    assert without_times(await desk.job(one)) == without_times(await desk.job(other))
    assert await desk.types(one) == await desk.types(other)
    assert await why(desk, one) == await why(desk, other)


def without_times(job: Job) -> dict[str, Any]:
    return {
        name: value
        for name, value in msgspec.structs.asdict(job).items()
        if name != "id" and not isinstance(value, datetime)
    }


async def test_the_plain_form_raises_what_redis_refuses(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.redis.hdel(desk.store.key("job", job_id), "status")
    with connect_sync(desk.settings) as redis, pytest.raises(CommitFailed):
        desk.tracker.record_now(redis, SUCCESS, vendor=VENDOR, job_id=job_id)


# -- Redis in trouble -----------------------------------------------------------------------------------


async def test_where_memory_is_full_nothing_is_written_and_everything_can_be_read(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        async with opened_desk(server.url) as desk:
            job_id = await desk.track()
            before = await desk.everything()
            await desk.redis.config_set("maxmemory", 1)
            facts = [desk.tell(job_id, SUCCESS), desk.tell(job_id, PROBLEM, quarantine=("shared", b"?"))]
            facts.append(desk.tell(await desk.new_id(), fact(Source.SUBMIT), create=True))
            answers = await asyncio.gather(*facts, return_exceptions=True)
            assert {type(answer) for answer in answers} == {sync_redis.OutOfMemoryError}
            assert await desk.everything() == before
            assert (await desk.job(job_id)).status is Status.QUEUED
            await desk.redis.config_set("maxmemory", 0)
            assert await desk.tell(job_id, SUCCESS) == "apply"


async def test_facts_on_which_memory_runs_out_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        async with opened_desk(server.url) as desk:
            used = cast("dict[str, int]", await desk.redis.info("memory"))["used_memory"]
            await desk.redis.config_set("maxmemory", used + 6 * 2**20)
            written: list[str] = []
            refused: list[str] = []
            raw = b"".join(b"%d," % number for number in range(12_000))
            while not refused:
                jobs = [await desk.new_id() for _ in range(10)]
                seen = [fact(Source.SUBMIT, Status.PROCESSING, vendor_job_id=f"v-{job_id}") for job_id in jobs]
                answers = await asyncio.gather(
                    *(desk.tell(*told_, create=True, raw=raw) for told_ in zip(jobs, seen, strict=True)),
                    return_exceptions=True,
                )
                for job_id, answer in zip(jobs, answers, strict=True):
                    (written if answer == "apply" else refused).append(job_id)
                    assert answer == "apply" or isinstance(answer, sync_redis.OutOfMemoryError)
            assert written
            for job_id in written:
                assert (await desk.job(job_id)).status is Status.PROCESSING
                assert len(await desk.timeline(job_id)) == 1
                assert await desk.types(job_id) == ["job.submitted", "job.processing"]
            keys = b" ".join(await desk.everything())
            stream = b" ".join(await desk.stream())
            for job_id in refused:
                assert job_id.encode() not in keys + stream
                assert await desk.store.find(VENDOR, f"v-{job_id}") is None
                assert await desk.indexes(job_id) == []


async def test_what_was_answered_outlives_the_death_of_redis(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        async with opened_desk(server.url) as desk:
            job_id = await desk.track()
            await desk.tell(job_id, SUCCESS)
            kept = await desk.store.job_json(job_id), await desk.timeline(job_id), await desk.stream()
            server.process.kill()
            answers = await asyncio.gather(
                *(desk.tell(job_id, told(Status.FAILED)) for _ in range(3)), return_exceptions=True
            )
            assert {type(answer) for answer in answers} == {sync_redis.ConnectionError}
            with valkey_server(tmp_path, port=server.port):
                assert (await desk.store.job_json(job_id), await desk.timeline(job_id), await desk.stream()) == kept
                assert await desk.due(f"archive-{job_id}", "tasks") is not None
                assert await desk.tell(job_id, SUCCESS) == "same"
