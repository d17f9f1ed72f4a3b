"""Reads, claims and leases: what every process of a deployment shares through Redis. Nothing here changes a job."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from itertools import islice, product
from typing import Any, Final, cast

import msgspec
import pytest

from service.deployment import Deployment
from service.jobs.calls import Calls
from service.jobs.scripts import Line
from service.jobs.store import Store
from service.model import Archive, Job, Observation, Output, Problem, Source, Status, new_id
from tests.support.processes import eventually_async

OUTPUTS: Final = (Output(url="https://cdn.example/one.mp4"),)
LEASE_MS: Final = 60_000
#: When the ids of the jobs here begin, in ms.
BEGIN: Final = 1_800_000_000_000


async def track(deployment: Deployment, number: int = 0, vendor: str = "kitta", **facts: Any) -> str:
    """A new job that the vendor has; later numbers have later ids."""
    job_id = new_id("job", BEGIN + number)
    seen = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id=f"v-{job_id}")
    await deployment.tracker.record(seen, vendor=vendor, job_id=job_id, create=True)
    if facts:
        await deployment.tracker.record(Observation(source=Source.POLL, **facts), vendor=vendor, job_id=job_id)
    return job_id


async def make_due(deployment: Deployment, name: str, *job_ids: str) -> None:
    await deployment.redis.zadd(deployment.store.key(*name.split(":")), dict.fromkeys(job_ids, 1))


# -- reading jobs -------------------------------------------------------------------------------------

#: What the jobs of a page are made of: vendor, and the facts that are known.
KINDS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("kitta", {}),
    ("kitta", {"status": Status.PROCESSING}),
    ("kitta", {"status": Status.SUCCEEDED, "outputs": OUTPUTS}),
    ("chanjing", {"status": Status.SUCCEEDED, "outputs": OUTPUTS}),
    ("chanjing", {"status": Status.SUCCEEDED}),
    ("chanjing", {"status": Status.FAILED}),
    ("apimodels", {"status": Status.CANCELLED}),
)


async def tracked(deployment: Deployment, number: int) -> list[Job]:
    """Jobs of every kind, oldest first."""
    choose = random.Random(7)
    kinds = [choose.choice(KINDS) for _ in range(number)]
    made = (track(deployment, n, vendor, **facts) for n, (vendor, facts) in enumerate(kinds))
    jobs = [await deployment.store.job(job_id) for job_id in await asyncio.gather(*made)]
    return [job for job in jobs if job]


async def pages(store: Store, limit: int, *filters: str) -> AsyncIterator[list[str]]:
    """The ids on page after page."""
    cursor = ""
    while True:
        rows = await store.jobs_json(limit, cursor, *filters)
        ids = [msgspec.json.decode(row, type=Job).id for row in rows]
        yield ids[:limit]
        if len(ids) <= limit:
            return
        cursor = ids[limit - 1]


@pytest.mark.parametrize("limit", [1, 7, 100, 400])
async def test_pages_hold_every_job_once_newest_first(deployment: Deployment, limit: int) -> None:
    jobs = await tracked(deployment, 300)
    found = [job_id async for page in pages(deployment.store, limit) for job_id in page]
    assert found == [job.id for job in reversed(jobs)]


async def test_a_page_says_whether_there_are_more(deployment: Deployment) -> None:
    jobs = await tracked(deployment, 10)
    assert [len(await deployment.store.jobs_json(limit)) for limit in (1, 9, 10, 11)] == [2, 10, 10, 10]
    assert await deployment.store.jobs_json(5, jobs[0].id) == []


async def test_filters_choose_and_leave_nothing_out(deployment: Deployment) -> None:
    jobs = await tracked(deployment, 150)
    vendors = ("", "kitta", "chanjing", "lipsync_studio")
    filters = list(product(vendors, ("", *Status), ("", *Archive)))
    expected = {
        (vendor, status, archive): [
            job.id
            for job in reversed(jobs)
            if vendor in ("", job.vendor) and status in ("", job.status) and archive in ("", job.archive)
        ]
        for vendor, status, archive in filters
    }
    found = {
        chosen: [job_id async for page in pages(deployment.store, 40, *chosen) for job_id in page] for chosen in filters
    }
    assert found == expected
    assert sum(map(bool, expected.values())) > 20, "there was something to choose from"


async def test_pages_stay_as_they_are_while_jobs_arrive_and_move_on(deployment: Deployment) -> None:
    jobs = await tracked(deployment, 200)
    found: list[str] = []
    number = 1000
    async for page in pages(deployment.store, 20):
        found += page
        await asyncio.gather(*(track(deployment, number + new) for new in range(5)))
        moving = (job for job in jobs if job.status is Status.QUEUED)
        for job in islice(moving, 3):
            seen = Observation(source=Source.POLL, status=Status.PROCESSING)
            await deployment.tracker.record(seen, vendor=job.vendor, job_id=job.id)
        number += 5
    assert found == [job.id for job in reversed(jobs)]


async def test_more_callers_at_once_than_there_are_connections_wait_for_their_turn(deployment: Deployment) -> None:
    job_id = await track(deployment)
    jobs = await asyncio.gather(*(deployment.store.job(job_id) for _ in range(300)))
    assert all(jobs)


async def test_an_unknown_job_is_none(store: Store) -> None:
    assert await store.job("job_" + "0" * 24) is None
    assert await store.find("kitta", "nobody") is None
    assert await store.letter("qua_" + "0" * 24) is None
    assert await store.timeline_json("job_" + "0" * 24) == []
    assert await store.attempts("job_" + "0" * 24) == 0


async def quarantine(deployment: Deployment, number: int) -> set[str]:
    """Letters that arrive in the same moment. Their bodies."""
    seen = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON, detail="not JSON")
    bodies = [f"letter {n}" for n in range(number)]
    letters = (deployment.tracker.record(seen, vendor="kitta", quarantine=("shared", body.encode())) for body in bodies)
    await asyncio.gather(*letters)
    return set(bodies)


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 10])
async def test_pages_of_quarantine_hold_every_letter_once(deployment: Deployment, limit: int) -> None:
    bodies = await quarantine(deployment, 7)
    found: list[str] = []
    cursor: Any = None
    while not found or cursor is not None:
        rows, cursor = await deployment.store.quarantined(limit, *([] if cursor is None else [cursor]))
        assert len(rows) <= limit
        for row in rows:
            letter = await deployment.store.letter(row["id"].decode())
            assert letter
            found.append(letter["body"].decode())
    assert sorted(found) == sorted(bodies)


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_no_letter_is_left_out_while_those_before_it_are_released(deployment: Deployment, limit: int) -> None:
    bodies = await quarantine(deployment, 7)
    found: list[str] = []
    cursor: Any = None
    while not found or cursor is not None:
        rows, cursor = await deployment.store.quarantined(limit, *([] if cursor is None else [cursor]))
        for row in rows:
            letter = await deployment.store.letter(row["id"].decode())
            assert letter
            found.append(letter["body"].decode())
            await deployment.store.release(row["id"].decode())
    assert sorted(found) == sorted(bodies)


async def test_a_released_letter_is_gone(deployment: Deployment) -> None:
    await quarantine(deployment, 2)
    rows, _ = await deployment.store.quarantined(10)
    await deployment.store.release(rows[0]["id"].decode())
    left, _ = await deployment.store.quarantined(10)
    assert [row["id"] for row in left] == [rows[1]["id"]]
    assert await deployment.store.letter(rows[0]["id"].decode()) is None


# -- claims: who looks after what is due ---------------------------------------------------------------------


async def test_what_is_due_is_claimed_with_the_vendors_id_longest_due_first(deployment: Deployment) -> None:
    first, second, later = [await track(deployment, number) for number in range(3)]
    await deployment.redis.zadd("callsheet:polls:kitta", {first: 2, second: 1})
    claims = await deployment.store.claim_polls("kitta", LEASE_MS, 10)
    assert [(claim.job_id, claim.vendor_job_id) for claim in claims] == [(second, f"v-{second}"), (first, f"v-{first}")]
    assert later not in [claim.job_id for claim in claims]


async def test_two_claimers_never_hold_the_same_job(deployment: Deployment) -> None:
    jobs = await asyncio.gather(*(track(deployment, number) for number in range(100)))
    await make_due(deployment, "polls:kitta", *jobs)
    claims = await asyncio.gather(*(deployment.store.claim_polls("kitta", LEASE_MS, 7) for _ in range(20)))
    held = Counter(claim.job_id for claimed in claims for claim in claimed)
    assert held == Counter(jobs)
    assert await deployment.store.claim_polls("kitta", LEASE_MS, 100) == []


async def test_a_claim_whose_lease_is_over_is_claimed_by_another(deployment: Deployment) -> None:
    job_id = await track(deployment)
    await make_due(deployment, "polls:kitta", job_id)
    assert await deployment.store.claim_polls("kitta", 50, 10)
    claims = await eventually_async(lambda: deployment.store.claim_polls("kitta", LEASE_MS, 10), "the lease's end")
    assert [claim.job_id for claim in claims] == [job_id]


async def test_what_a_poll_learns_takes_the_place_of_the_claim(deployment: Deployment) -> None:
    job_id = await track(deployment)
    await make_due(deployment, "polls:kitta", job_id)
    await deployment.store.claim_polls("kitta", LEASE_MS, 10)
    seen = Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=OUTPUTS)
    await deployment.tracker.record(seen, vendor="kitta", job_id=job_id)
    assert await deployment.redis.zscore("callsheet:polls:kitta", job_id) is None


async def test_claims_of_one_vendor_leave_those_of_another(deployment: Deployment) -> None:
    kitta, chanjing = await track(deployment), await track(deployment, vendor="chanjing")
    await make_due(deployment, "polls:kitta", kitta)
    await make_due(deployment, "polls:chanjing", chanjing)
    assert [claim.job_id for claim in await deployment.store.claim_polls("kitta", LEASE_MS, 10)] == [kitta]
    assert [claim.job_id for claim in await deployment.store.claim_polls("chanjing", LEASE_MS, 10)] == [chanjing]


async def test_deadlines_are_claimed_once_and_again_after_the_lease(deployment: Deployment) -> None:
    jobs = [await track(deployment, number) for number in range(5)]
    await make_due(deployment, "deadlines", *jobs[:4])
    claims = await asyncio.gather(*(deployment.store.claim_deadlines(1_000, 2) for _ in range(3)))
    assert sorted(len(claimed) for claimed in claims) == [0, 2, 2]
    assert {job_id for claimed in claims for job_id in claimed} == set(jobs[:4])
    again = await eventually_async(lambda: deployment.store.claim_deadlines(LEASE_MS, 10), "the leases' end")
    assert set(again) <= set(jobs[:4])


async def test_poll_again_puts_off_what_is_watched_and_brings_nothing_back(deployment: Deployment) -> None:
    watched, finished = await track(deployment), await track(deployment, status=Status.FAILED)
    await deployment.store.poll_again("kitta", [watched, finished], 12_345)
    await deployment.store.poll_again("kitta", [], 12_345)
    assert await deployment.redis.zscore("callsheet:polls:kitta", watched) == 12_345
    assert await deployment.redis.zscore("callsheet:polls:kitta", finished) is None


async def test_jobs_from_before_the_vendor_had_credentials_are_watched_from_now_on(deployment: Deployment) -> None:
    kinds: list[dict[str, Any]] = [{}, {"status": Status.PROCESSING}, {"status": Status.SUCCEEDED, "outputs": OUTPUTS}]
    queued, processing, succeeded = [await track(deployment, n, **facts) for n, facts in enumerate(kinds)]
    seen_already, elsewhere = await track(deployment, 3), await track(deployment, 4, "chanjing")
    await deployment.redis.delete("callsheet:polls:chanjing")
    await deployment.redis.zrem("callsheet:polls:kitta", queued, processing)
    before = await deployment.redis.zscore("callsheet:polls:kitta", seen_already)

    assert await deployment.store.watch("kitta", 5) == 2
    due = {name.decode(): score for name, score in await members(deployment, "callsheet:polls:kitta")}
    assert due == {queued: 5, processing: 5, seen_already: before}
    assert succeeded not in due
    assert await deployment.store.watch("kitta", 6) == 0
    assert await deployment.redis.zscore("callsheet:polls:chanjing", elsewhere) is None


async def test_a_look_at_what_is_not_watched_takes_some_of_many_jobs_and_comes_round(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.store.WATCHED", 2)
    jobs = [await track(deployment, number) for number in range(5)]
    await deployment.redis.zrem("callsheet:polls:kitta", *jobs)
    assert [await deployment.store.watch("kitta", 5) for _ in range(4)] == [2, 2, 1, 0]
    await deployment.redis.zrem("callsheet:polls:kitta", jobs[1], jobs[3])
    assert [await deployment.store.watch("kitta", 5) for _ in range(3)] == [1, 0, 1]


async def members(deployment: Deployment, key: str) -> list[tuple[bytes, float]]:
    found = await deployment.redis.zrange(key, 0, -1, withscores=True)
    return cast("list[tuple[bytes, float]]", found)


# -- how a vendor is doing --------------------------------------------------------------------------------


async def wait_over(deployment: Deployment, vendor: str = "kitta") -> None:
    """The vendor may be tried again."""
    await deployment.redis.hset(deployment.store.key("vendor", vendor), "retry_at", "1")


async def test_the_wait_for_an_unwell_vendor_doubles_up_to_five_minutes(calls: Calls) -> None:
    assert [await calls.unwell("kitta") for _ in range(12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    await calls.well("kitta")
    assert await calls.unwell("kitta") == 1


@pytest.mark.parametrize(("asked_for", "expected"), [(500, 1), (1_500, 1.5), (3_600_000, 3_600)])
async def test_a_vendor_that_asks_to_be_left_alone_is(calls: Calls, asked_for: int, expected: float) -> None:
    assert await calls.unwell("kitta", asked_for) == expected


async def test_vendors_are_unwell_one_by_one(calls: Calls) -> None:
    for _ in range(3):
        await calls.unwell("kitta")
    assert await calls.unwell("chanjing") == 1


async def test_no_job_of_an_unwell_vendor_is_claimed_until_one_process_tries_it_with_one(
    deployment: Deployment,
) -> None:
    store, calls = deployment.store, deployment.calls
    jobs = [await track(deployment, number) for number in range(5)]
    await make_due(deployment, "polls:kitta", *jobs)
    await calls.unwell("kitta")
    assert await store.claim_polls("kitta", LEASE_MS, 10) == []

    await wait_over(deployment)
    tries = await asyncio.gather(*(store.claim_polls("kitta", LEASE_MS, 10) for _ in range(5)))
    assert sorted(len(claims) for claims in tries) == [0, 0, 0, 0, 1]

    await calls.well("kitta")
    assert len(await store.claim_polls("kitta", LEASE_MS, 10)) == 4


async def test_a_try_whose_process_died_is_made_by_another(deployment: Deployment) -> None:
    store, calls = deployment.store, deployment.calls
    jobs = [await track(deployment, number) for number in range(2)]
    await make_due(deployment, "polls:kitta", *jobs)
    await calls.unwell("kitta")
    await wait_over(deployment)
    assert len(await store.claim_polls("kitta", 50, 10)) == 1
    again = await eventually_async(lambda: store.claim_polls("kitta", LEASE_MS, 10), "another try")
    assert len(again) == 1


async def test_without_a_job_to_try_it_with_an_unwell_vendor_waits_for_the_first_that_is_due(
    deployment: Deployment,
) -> None:
    store, calls = deployment.store, deployment.calls
    job_id = await track(deployment)
    await calls.unwell("kitta")
    await wait_over(deployment)
    assert await store.claim_polls("kitta", LEASE_MS, 10) == []
    await make_due(deployment, "polls:kitta", job_id)
    assert [claim.job_id for claim in await store.claim_polls("kitta", LEASE_MS, 10)] == [job_id]


# -- how often a vendor may be called ------------------------------------------------------------------------


async def test_no_window_holds_more_calls_than_are_allowed_however_many_want_one(deployment: Deployment) -> None:
    allowed, window_ms, wanted = 4, 100, 20
    calls: list[int] = []

    async def take() -> bool:
        wait = await deployment.calls.take_turn("kitta", "read", Line(allowed, window_ms))
        assert 0 <= wait <= (window_ms + 1) / 1000
        return wait == 0

    async with deployment.redis.monitor() as monitor:
        await asyncio.gather(*(eventually_async(take, "a turn") for _ in range(wanted)))
        async for command in monitor.listen():
            if call := re.search(r"^LPUSH callsheet:calls:kitta:read (\d+)", command["command"]):
                calls.append(int(call[1]))
            if len(calls) == wanted:
                break
    assert all(later - call > window_ms for call, later in zip(calls, calls[allowed:], strict=False))


@pytest.mark.parametrize(
    ("ages_ms", "expected"),
    [
        ([], 0.0),
        ([0, 0], 0.0),
        ([1_000, 2_000, 9_000], 1.0),
        ([9_000, 9_000, 9_000], 1.0),
        ([0, 0, 0], 10.0),
        ([0, 0, 11_000], 0.0),
    ],
)
async def test_a_turn_comes_when_the_oldest_of_the_last_calls_leaves_the_window(
    deployment: Deployment, ages_ms: list[int], expected: float
) -> None:
    now = await deployment.store.now_ms()
    if ages_ms:
        await deployment.redis.rpush("callsheet:calls:kitta:read", *(str(now - age) for age in ages_ms))
    wait = await deployment.calls.take_turn("kitta", "read", Line(3, 10_000))
    assert wait == 0 if expected == 0 else expected - 0.5 < wait <= expected + 0.001


async def test_who_asks_for_a_turn_at_the_same_time_asks_together(deployment: Deployment) -> None:
    await deployment.calls.take_turn("chanjing", "read", Line(3, 10_000))  # the script is loaded
    await deployment.redis.config_resetstat()
    takes = (deployment.calls.take_turn("kitta", "read", Line(3, 10_000)) for _ in range(5))
    waits = await asyncio.gather(*takes)
    assert [wait == 0 for wait in waits] == [True, True, True, False, False]
    statistics = cast("dict[str, dict[str, int]]", await deployment.redis.info("commandstats"))
    assert statistics["cmdstat_evalsha"]["calls"] == 1


async def test_turns_are_counted_by_vendor_and_kind(calls: Calls) -> None:
    for vendor, kind in (("kitta", "read"), ("kitta", "submit"), ("chanjing", "read")):
        assert await calls.take_turn(vendor, kind, Line(1, 10_000)) == 0
        assert await calls.take_turn(vendor, kind, Line(1, 10_000)) > 0


async def test_a_log_of_calls_is_forgotten_with_its_window(deployment: Deployment) -> None:
    await deployment.calls.take_turn("kitta", "read", Line(3, 10_000))
    assert 0 < await deployment.redis.pttl("callsheet:calls:kitta:read") <= 10_000


# -- temporary tokens ---------------------------------------------------------------------------------------


async def test_a_cached_token_is_there_until_it_is_refused_or_dies(deployment: Deployment) -> None:
    calls = deployment.calls
    assert await calls.cached_token("chanjing") is None
    await calls.cache_token("chanjing", "first", 600)
    assert await calls.cached_token("chanjing") == "first"
    assert 590 < await deployment.redis.ttl("callsheet:token:chanjing") <= 600
    await calls.drop_token("chanjing", "first")
    assert await calls.cached_token("chanjing") is None


async def test_a_refused_token_does_not_take_its_successor_along(calls: Calls) -> None:
    await calls.cache_token("chanjing", "second", 600)
    await calls.drop_token("chanjing", "first")
    assert await calls.cached_token("chanjing") == "second"


@pytest.mark.parametrize("seconds", [0, -5])
async def test_a_token_that_is_dead_already_is_not_kept(deployment: Deployment, seconds: int) -> None:
    await deployment.calls.cache_token("chanjing", "old", seconds)
    assert await deployment.redis.ttl("callsheet:token:chanjing") <= 1


# -- leases -------------------------------------------------------------------------------------------------


async def test_of_many_who_want_a_lease_one_gets_it(store: Store) -> None:
    got = await asyncio.gather(*(store.lease("archive-1", f"run {number}", LEASE_MS) for number in range(20)))
    assert got.count(True) == 1
    assert await store.lease("archive-2", "another", LEASE_MS)


async def test_only_its_owner_renews_a_lease(deployment: Deployment) -> None:
    store = deployment.store
    assert await store.lease("archive-1", "owner", 1_000)
    assert not await store.renew("archive-1", "another", 60_000)
    assert await deployment.redis.pttl("callsheet:lease:archive-1") <= 1_000
    assert await store.renew("archive-1", "owner", 60_000)
    assert await deployment.redis.pttl("callsheet:lease:archive-1") > 50_000


async def test_only_its_owner_gives_up_a_lease(store: Store) -> None:
    assert await store.lease("archive-1", "owner", LEASE_MS)
    await store.give_up("archive-1", "another")
    assert not await store.lease("archive-1", "another", LEASE_MS)
    await store.give_up("archive-1", "owner")
    assert await store.lease("archive-1", "another", LEASE_MS)


async def test_a_lease_ends_by_itself_and_cannot_be_renewed_then(store: Store) -> None:
    assert await store.lease("archive-1", "owner", 30)
    assert await eventually_async(lambda: store.lease("archive-1", "another", LEASE_MS), "the lease's end")
    assert not await store.renew("archive-1", "owner", LEASE_MS)
    await store.give_up("archive-1", "owner")
    assert await store.renew("archive-1", "another", LEASE_MS)


async def test_a_lease_that_nobody_holds_is_not_renewed_into_being(store: Store) -> None:
    assert not await store.renew("archive-1", "owner", LEASE_MS)
    assert await store.lease("archive-1", "another", LEASE_MS)
