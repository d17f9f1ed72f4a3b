"""The door: what each fact does to a job, what is written of it, and who hears of it. All against a real Valkey."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, Final, cast

import hypothesis
import msgspec
import pytest
import redis as sync_redis
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.jobs import rules
from service.jobs.store import PARKED_LENGTH, PARKED_SECONDS, TIMELINE_LENGTH, Ask, Store, connect, connect_sync
from service.jobs.tokens import Tokens
from service.jobs.tracker import BATCH_BYTES, BATCH_FACTS, RAW_LIMIT, CommitFailed, Recorded, Tracker
from service.model import (
    VERDICTS,
    Archive,
    Cost,
    Event,
    Job,
    JobError,
    Observation,
    Output,
    Problem,
    Source,
    Status,
    Stored,
    new_id,
)
from service.settings import Settings
from tests.support.deployment import SECRET, settings
from tests.support.processes import eventually_async
from tests.support.servers import valkey_server

#: The rhythm of the one vendor here that can be asked.
ASK: Final = Ask(grace=30_000, every=5_000, slowest=300_000)
VENDOR: Final = "kitta"
#: A vendor without credentials.
MUTE: Final = "chanjing"

VIDEO: Final = (Output(url="https://cdn.example/one.mp4"),)
OTHER_VIDEO: Final = (Output(url="https://cdn.example/two.mp4?signed=again"),)
REFUSED: Final = JobError(code="bad_face", message="no face found")


def copied(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """The outputs with our copy of each."""
    copy = Stored(url="http://127.0.0.1/0", key="kitta/0.mp4", bytes=3, sha256="ab" * 32, content_type="video/mp4")
    return tuple(msgspec.structs.replace(output, stored=copy) for output in outputs)


def fact(source: Source, status: Status | None = None, **facts: Any) -> Observation:
    return Observation(source=source, status=status, **facts)


told: Final = partial(fact, Source.CALLBACK)
polled: Final = partial(fact, Source.POLL)
ours: Final = partial(fact, Source.OPERATOR)
archived: Final = partial(fact, Source.ARCHIVE)
SUCCESS: Final = told(Status.SUCCEEDED, outputs=VIDEO)


class Desk:
    """The door of one process, and the short ways to tell it something and to see what came of it."""

    def __init__(self, redis: Redis, made: Settings) -> None:
        self.redis = redis
        self.settings = made
        self.store = Store(redis, made)
        self.tracker = Tracker(redis, made, {VENDOR: ASK})

    async def new_id(self) -> str:
        return new_id("job", await self.store.now_ms())

    async def track(self, vendor_job_id: str | None = "v-1", vendor: str = VENDOR, **facts: Any) -> str:
        """A new job; `queued` where the vendor's id is known, else `pending`."""
        status = Status.QUEUED if vendor_job_id else None
        seen = fact(Source.SUBMIT, status, vendor_job_id=vendor_job_id, **facts)
        recorded = await self.tracker.record(seen, vendor=vendor, job_id=await self.new_id(), create=True)
        assert recorded.outcome in ("apply", "note")
        return recorded.job_id

    async def tell(self, job_id: str | None, seen: Observation, vendor: str = VENDOR, **how: Any) -> str:
        """Record a fact about a job. Its outcome."""
        recorded = await self.tracker.record(seen, vendor=vendor, job_id=job_id, **how)
        assert recorded.job_id == (job_id or recorded.job_id) or recorded.outcome == "taken"
        return recorded.outcome

    async def hint(self, seen: Observation, vendor: str = VENDOR, **how: Any) -> str:
        """Record a fact that came by the vendor's shared URL. Its outcome."""
        return await self.tell(None, seen, vendor, weak_path=True, **how)

    async def job(self, job_id: str) -> Job:
        job = await self.store.job(job_id)
        assert job
        return job

    async def timeline(self, job_id: str) -> list[dict[str, Any]]:
        return [json.loads(entry) for entry in await self.store.timeline_json(job_id)]

    async def last(self, job_id: str) -> dict[str, Any]:
        """The latest entry of the timeline, without its times."""
        entry = (await self.timeline(job_id))[-1]
        return {name: value for name, value in entry.items() if name not in ("at", "received_at")}

    async def stream(self) -> list[bytes]:
        """Every event's JSON, oldest first."""
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", await self.redis.xrange(self.store.key("stream")))
        assert all(list(entry) == [b"event"] for _, entry in entries)
        return [entry[b"event"] for _, entry in entries]

    async def events(self, job_id: str) -> list[Event]:
        events = [msgspec.json.decode(event, type=Event) for event in await self.stream()]
        return [event for event in events if event.data.id == job_id]

    async def types(self, job_id: str) -> list[str]:
        return [event.type for event in await self.events(job_id)]

    async def due(self, job_id: str, what: str = f"polls:{VENDOR}") -> int | None:
        """Milliseconds from now until something is due; None where it never is."""
        score = await self.redis.zscore(self.store.key(what), job_id)
        return None if score is None else int(score) - await self.store.now_ms()

    async def row(self, job_id: str, **fields: str | int) -> None:
        """Overwrite fields of a job's row: what would otherwise take hours to come about."""
        await self.redis.hset(self.store.key("job", job_id), mapping=cast("dict[Any, Any]", fields))

    async def everything(self) -> dict[bytes, bytes | None]:
        """All that is in Redis."""
        return {key: await self.redis.dump(key) async for key in self.redis.scan_iter(count=1000)}

    async def indexes(self, job_id: str) -> list[str]:
        """Every index that the job stands in."""
        keys = [key async for key in self.redis.scan_iter(self.store.key("jobs", "*"))]
        found = [key.decode() for key in keys if await self.redis.zscore(key, job_id) is not None]
        return sorted(found)


@asynccontextmanager
async def opened_desk(redis_url: str, **overrides: Any) -> AsyncIterator[Desk]:
    made = settings(redis_url, **overrides)
    async with connect(made) as redis:
        yield Desk(redis, made)


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    async with opened_desk(redis_url) as desk:
        yield desk


def about(ms: int | None, expected: int) -> bool:
    """Whether something is due in `expected` ms, give or take the moment that has passed since it was written."""
    return ms is not None and expected - 2_000 <= ms <= expected


# -- a job comes to be ------------------------------------------------------------------------------------


async def test_a_job_whose_vendor_id_is_unknown_is_pending_and_nobody_hears_of_it(desk: Desk) -> None:
    job_id = await desk.track(None, model="lip-sync-2", metadata={"order": 7})
    job = await desk.job(job_id)
    assert (job.status, job.model, job.metadata) == (Status.PENDING, "lip-sync-2", {"order": 7})
    assert (job.vendor_job_id, job.submitted_at, job.archive) == (None, None, Archive.NONE)
    assert await desk.stream() == []
    assert await desk.due(job_id) is None


async def test_a_job_whose_vendor_id_is_known_is_queued_and_will_be_asked_for(desk: Desk) -> None:
    job_id = await desk.track("v-1")
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (Status.QUEUED, "v-1")
    assert job.submitted_at == job.created_at
    assert await desk.types(job_id) == ["job.submitted"]
    assert await desk.store.find(VENDOR, "v-1") == job_id
    assert about(await desk.due(job_id), ASK.grace)


async def test_a_new_job_expires_when_its_deadline_has_passed(desk: Desk) -> None:
    job_id = await desk.track()
    job = await desk.job(job_id)
    assert job.expires_at
    assert (job.expires_at - job.created_at).total_seconds() == desk.settings.job_deadline
    assert about(await desk.due(job_id, "deadlines"), desk.settings.job_deadline * 1000)


async def test_the_vendor_id_is_attached_later_and_the_first_look_is_due_after_the_grace(desk: Desk) -> None:
    job_id = await desk.track(None)
    assert await desk.tell(job_id, fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-9")) == "apply"
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (Status.QUEUED, "v-9")
    assert await desk.types(job_id) == ["job.submitted"]
    assert about(await desk.due(job_id), ASK.grace)


async def test_the_vendor_id_in_a_callback_is_attached_too(desk: Desk) -> None:
    job_id = await desk.track(None)
    assert await desk.tell(job_id, told(Status.PROCESSING, vendor_job_id="v-9")) == "apply"
    assert await desk.store.find(VENDOR, "v-9") == job_id
    assert about(await desk.due(job_id), ASK.grace)


async def test_the_age_that_sets_the_rhythm_begins_when_the_vendor_has_the_job(desk: Desk) -> None:
    job_id = await desk.track(None)
    await desk.row(job_id, _since=await desk.store.now_ms() - 3_600_000)
    await desk.tell(job_id, fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-9"))
    await desk.tell(job_id, polled(Status.QUEUED))
    assert about(await desk.due(job_id), ASK.every)


async def test_vendors_choose_their_ids_without_asking_each_other(desk: Desk) -> None:
    first, second = await desk.track("same", VENDOR), await desk.track("same", MUTE)
    assert await desk.store.find(VENDOR, "same") == first
    assert await desk.store.find(MUTE, "same") == second


@pytest.mark.parametrize(
    ("expected", "seen", "how"),
    [
        ("unknown_job", told(Status.PROCESSING), {"job_id": "job_" + "0" * 24}),
        ("other_job", told(Status.SUCCEEDED, vendor_job_id="v-2", outputs=VIDEO), {"job_id": "first"}),
        ("taken", fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-1"), {"job_id": "second"}),
        ("taken", fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-1"), {"job_id": "new", "create": True}),
        ("changed", told(Status.PROCESSING), {"job_id": "first", "expect": {"status": Status.PENDING}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_fact_that_cannot_be_about_this_job_writes_nothing(
    desk: Desk, expected: str, seen: Observation, how: dict[str, Any]
) -> None:
    jobs = {"first": await desk.track("v-1"), "second": await desk.track(None), "new": await desk.new_id()}
    job_id = jobs.get(how["job_id"], how["job_id"])
    before = await desk.everything()
    recorded = await desk.tracker.record(seen, vendor=VENDOR, **{**how, "job_id": job_id})
    assert recorded == Recorded(expected, jobs["first"] if expected == "taken" else job_id)
    assert await desk.everything() == before


async def test_an_idempotency_key_makes_one_job_whatever_happens_in_between(desk: Desk) -> None:
    seen = fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-1")

    async def create(body: bytes) -> Recorded:
        key = ("tests:order-7", body)
        job_id = await desk.new_id()
        return await desk.tracker.record(seen, vendor=VENDOR, job_id=job_id, create=True, idempotency=key)

    first = await create(b'{"order":7}')
    assert first.outcome == "apply"
    await desk.tell(first.job_id, SUCCESS)
    before = await desk.everything()
    assert await create(b'{"order":7}') == Recorded("repeated", first.job_id)
    assert await create(b'{"order":8}') == Recorded("conflict", first.job_id)
    assert await desk.everything() == before


async def test_keys_of_idempotency_are_told_apart_and_forgotten_after_a_day(desk: Desk) -> None:
    for key in ("a:1", "b:1", "a:1 x"):
        job_id = await desk.new_id()
        seen = fact(Source.SUBMIT)
        created = await desk.tracker.record(
            seen, vendor=VENDOR, job_id=job_id, create=True, idempotency=(key, b"{}")
        )
        assert created.outcome == "note"
        assert 86_390 < await desk.redis.ttl(desk.store.key("idempotency", key)) <= 86_400


async def test_a_refused_creation_leaves_its_idempotency_key_free(desk: Desk) -> None:
    await desk.track("v-1")

    async def create(vendor_job_id: str) -> str:
        seen = fact(Source.SUBMIT, Status.QUEUED, vendor_job_id=vendor_job_id)
        how: dict[str, Any] = {"create": True, "idempotency": ("tests:1", b"{}")}
        return await desk.tell(await desk.new_id(), seen, **how)

    assert await create("v-1") == "taken"
    assert await create("v-2") == "apply"


async def test_a_creation_that_is_recorded_again_with_the_same_id_does_not_begin_the_job_anew(desk: Desk) -> None:
    """Its answer was lost on the way, say; meanwhile the vendor has finished the job."""
    job_id = await desk.new_id()
    seen = fact(Source.SUBMIT, metadata={"order": 7})
    await desk.tell(job_id, seen, create=True)
    await desk.tell(job_id, msgspec.structs.replace(SUCCESS, vendor_job_id="v-1"))
    before = await desk.job(job_id)
    await desk.tell(job_id, seen, create=True)
    assert await desk.job(job_id) == before
    assert await desk.indexes(job_id) == ["callsheet:jobs:kitta:succeeded:waiting"]


# -- facts only move forward ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seen",
    [
        told(Status.QUEUED),
        told(Status.PROCESSING, progress=40),
        SUCCESS,
        told(Status.FAILED, error=REFUSED),
        told(Status.CANCELLED),
    ],
    ids=lambda seen: str(seen.status),
)
async def test_a_duplicate_changes_nothing_and_is_noted(desk: Desk, seen: Observation) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, seen)
    row, events = await desk.store.job_json(job_id), await desk.stream()
    for _ in range(3):
        assert await desk.tell(job_id, seen) == "same"
    assert await desk.store.job_json(job_id) == row
    assert await desk.stream() == events
    noted = (await desk.timeline(job_id))[-3:]
    assert all(entry["status"] == seen.status and not entry["applied"] for entry in noted)
    assert {entry["why"] for entry in noted} == {"known already"}


@pytest.mark.parametrize(
    "order", permutations((Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED)), ids=lambda order: "-".join(order)
)
async def test_callbacks_in_any_order_come_to_the_same_end(desk: Desk, order: tuple[Status, ...]) -> None:
    job_id = await desk.track(None)
    for status in order:
        await desk.tell(job_id, told(status, outputs=VIDEO if status is Status.SUCCEEDED else None))
    job = await desk.job(job_id)
    assert (job.status, job.progress, job.outputs, job.archive) == (Status.SUCCEEDED, 100, VIDEO, Archive.WAITING)
    types = await desk.types(job_id)
    assert types == [
        type_ for type_ in ("job.submitted", "job.processing", "job.succeeded") if type_ in types
    ], "in the order of a job's life, each once"
    assert {"job.submitted", "job.succeeded"} <= set(types)
    assert len(await desk.timeline(job_id)) == 4


@pytest.mark.parametrize(
    ("verdict", "type_"),
    [
        (SUCCESS, "job.succeeded"),
        (told(Status.FAILED, error=REFUSED), "job.failed"),
        (told(Status.CANCELLED), "job.cancelled"),
        (told(Status.PROCESSING), "job.processing"),
    ],
)
@pytest.mark.parametrize("before", [Status.PENDING, Status.UNCONFIRMED])
async def test_who_hears_what_became_of_a_job_has_heard_before_that_the_vendor_has_it(
    desk: Desk, before: Status, verdict: Observation, type_: str
) -> None:
    job_id = await desk.track(None)
    if before is Status.UNCONFIRMED:
        await desk.tell(job_id, fact(Source.SUBMIT, Status.UNCONFIRMED))
    await desk.tell(job_id, verdict)
    assert await desk.types(job_id) == ["job.submitted", type_]
    submitted, news = (event.data for event in await desk.events(job_id))
    assert (submitted.status, news.status) == (Status.QUEUED, verdict.status)
    assert submitted.submitted_at == news.submitted_at is not None
    entry = await desk.last(job_id)
    assert (entry["why"], entry["applied"]) == (f"was {before}", True)


async def test_a_late_processing_callback_still_tells_when_the_work_began(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    began = (await desk.job(job_id)).created_at
    assert await desk.tell(job_id, told(Status.PROCESSING, started_at=began, progress=10)) == "update"
    job = await desk.job(job_id)
    assert (job.status, job.started_at, job.progress) == (Status.SUCCEEDED, began, 100)
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded"]


async def test_the_vendors_times_are_kept_and_ours_stand_in_for_the_others(desk: Desk) -> None:
    job_id = await desk.track()
    created = (await desk.job(job_id)).created_at
    began = created.replace(year=created.year - 1)
    await desk.tell(job_id, told(Status.PROCESSING, started_at=began))
    await desk.tell(job_id, SUCCESS)
    job = await desk.job(job_id)
    assert job.started_at == began
    assert job.completed_at is not None
    assert job.completed_at >= created


async def test_a_verdict_of_the_vendor_takes_the_place_of_our_guess_that_there_is_none(desk: Desk) -> None:
    job_id = await desk.track()
    assert await desk.tell(job_id, fact(Source.DEADLINE, Status.EXPIRED, detail="no verdict")) == "apply"
    assert await desk.due(job_id) is None
    assert await desk.due(job_id, "deadlines") is None
    assert await desk.tell(job_id, told(Status.PROCESSING)) == "stale"
    assert await desk.tell(job_id, SUCCESS) == "apply"
    job = await desk.job(job_id)
    assert (job.status, job.archive, job.outputs) == (Status.SUCCEEDED, Archive.WAITING, VIDEO)
    assert await desk.types(job_id) == ["job.submitted", "job.expired", "job.succeeded"]


async def test_a_verdict_that_comes_in_two_halves_is_made_whole(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, told(Status.SUCCEEDED))
    assert (await desk.job(job_id)).archive is Archive.NONE
    assert await desk.tell(job_id, told(Status.SUCCEEDED, outputs=VIDEO, result={"duration": 4.2})) == "update"
    job = await desk.job(job_id)
    assert (job.outputs, job.result, job.archive) == (VIDEO, {"duration": 4.2}, Archive.WAITING)
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [([10, 50, 30], 50), ([0], 0), ([None, 7, None], 7), ([100, 99], 100), ([5, 5, 5], 5)],
)
async def test_progress_only_goes_forward(desk: Desk, said: list[int | None], expected: int) -> None:
    job_id = await desk.track()
    for progress in said:
        await desk.tell(job_id, polled(Status.PROCESSING, progress=progress))
    assert (await desk.job(job_id)).progress == expected


async def test_a_poll_without_news_leaves_no_trace_in_the_timeline(desk: Desk) -> None:
    job_id = await desk.track()
    assert await desk.tell(job_id, polled(Status.PROCESSING, progress=10)) == "apply"
    listed = await desk.timeline(job_id)
    assert await desk.tell(job_id, polled(Status.PROCESSING, progress=10)) == "same"
    assert await desk.tell(job_id, polled(Status.QUEUED)) == "stale"
    assert await desk.timeline(job_id) == listed
    assert await desk.tell(job_id, polled(Status.PROCESSING, progress=20)) == "update"
    assert (await desk.last(job_id))["why"] == "more about the same status"


# -- cost ---------------------------------------------------------------------------------------------

ESTIMATE: Final = Cost(estimated=5.5, unit="credits")
CHARGE: Final = Cost(charged=4, unit="credits")


async def test_the_charge_stands_beside_the_estimate(desk: Desk) -> None:
    job_id = await desk.track(cost=ESTIMATE)
    assert (await desk.job(job_id)).cost == ESTIMATE
    await desk.tell(job_id, told(Status.SUCCEEDED, outputs=VIDEO, cost=CHARGE))
    assert (await desk.job(job_id)).cost == Cost(estimated=5.5, charged=4, unit="credits")


async def test_a_charge_that_comes_after_the_verdict_is_news(desk: Desk) -> None:
    job_id = await desk.track(cost=ESTIMATE)
    await desk.tell(job_id, SUCCESS)
    assert await desk.tell(job_id, told(Status.SUCCEEDED, outputs=VIDEO, cost=CHARGE)) == "update"
    assert (await desk.job(job_id)).cost == Cost(estimated=5.5, charged=4, unit="credits")


@pytest.mark.parametrize("estimate", [None, ESTIMATE], ids=["alone", "beside an estimate"])
async def test_a_charge_that_is_known_already_is_no_news(desk: Desk, estimate: Cost | None) -> None:
    job_id = await desk.track(cost=estimate)
    seen = told(Status.SUCCEEDED, outputs=VIDEO, cost=CHARGE)
    assert await desk.tell(job_id, seen) == "apply"
    assert await desk.tell(job_id, seen) == "same"
    assert (await desk.last(job_id))["why"] == "known already"


# -- two verdicts that contradict each other --------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "events", "listed"),
    [
        (Status.FAILED, ["job.succeeded", "job.failed"], [("callback", False), ("poll", True)]),
        (Status.CANCELLED, ["job.succeeded", "job.cancelled"], [("callback", False), ("poll", True)]),
        # The answer is what is known already, so there is no entry of its own.
        (Status.SUCCEEDED, ["job.succeeded"], [("callback", False)]),
    ],
)
async def test_of_two_contradicting_verdicts_the_asked_vendor_decides(
    desk: Desk, answer: Status, events: list[str], listed: list[tuple[str, bool]]
) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    before = await desk.store.job_json(job_id)
    assert await desk.due(job_id) is None
    assert await desk.tell(job_id, told(Status.FAILED, error=REFUSED)) == "ask"
    assert await desk.store.job_json(job_id) == before, "not before the vendor has answered"
    assert about(await desk.due(job_id), 0)
    assert (await desk.last(job_id))["why"] == "not counted until the vendor is asked"

    outputs = VIDEO if answer is Status.SUCCEEDED else None
    await desk.tell(job_id, polled(answer, outputs=outputs, error=REFUSED if answer is Status.FAILED else None))
    assert (await desk.job(job_id)).status is answer
    assert await desk.due(job_id) is None
    assert (await desk.types(job_id))[1:] == events
    entries = [(entry["source"], entry["applied"]) for entry in await desk.timeline(job_id)]
    assert entries[1:] == [("callback", True), *listed]


async def test_a_contradiction_that_nobody_can_be_asked_about_says_so(desk: Desk) -> None:
    job_id = await desk.track("c-1", MUTE)
    await desk.tell(job_id, SUCCESS, MUTE)
    assert await desk.tell(job_id, told(Status.FAILED), MUTE) == "ask"
    assert (await desk.last(job_id))["why"] == "the vendor cannot be asked: no credentials"
    assert (await desk.job(job_id)).status is Status.SUCCEEDED

    unlinked = await desk.track(None)
    await desk.tell(unlinked, SUCCESS)
    await desk.tell(unlinked, told(Status.FAILED))
    assert (await desk.last(unlinked))["why"] == "the vendor cannot be asked: its job id is not known"


async def test_our_own_word_never_overrules_a_verdict(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    for status in (Status.FAILED, Status.EXPIRED, Status.CANCELLED):
        assert await desk.tell(job_id, ours(status)) == "stale"
    assert await desk.due(job_id) is None


async def test_a_success_that_is_taken_back_is_not_stored_any_more(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    await desk.tell(job_id, polled(Status.FAILED, error=REFUSED))
    job = await desk.job(job_id)
    assert (job.archive, job.error) == (Archive.NONE, REFUSED)
    assert await desk.due(job_id, "tasks") is None


async def test_a_failure_that_is_taken_back_takes_its_error_along(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, told(Status.FAILED, error=REFUSED))
    await desk.tell(job_id, polled(Status.SUCCEEDED, outputs=VIDEO))
    job = await desk.job(job_id)
    assert (job.error, job.archive) == (None, Archive.WAITING)


async def test_a_stored_job_always_has_a_copy_of_each_output(desk: Desk) -> None:
    """Whatever turns its verdict takes: a success that was stored, then taken back, then renewed with another link."""
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    await desk.tell(job_id, archived(archive=Archive.STORED, outputs=copied(VIDEO)))
    await desk.tell(job_id, polled(Status.FAILED, error=REFUSED))
    await desk.tell(job_id, polled(Status.SUCCEEDED, outputs=OTHER_VIDEO))
    job = await desk.job(job_id)
    assert job.archive is not Archive.STORED or all(output.stored for output in job.outputs)


# -- the vendor's shared URL, and jobs that nobody has registered yet ------------------------------------------


@pytest.mark.parametrize("confirmed", [Status.SUCCEEDED, Status.PROCESSING])
async def test_a_hinted_verdict_is_not_counted_until_the_asked_vendor_confirms_it(
    desk: Desk, confirmed: Status
) -> None:
    job_id = await desk.track("v-1")
    before = await desk.store.job_json(job_id)
    hint = told(Status.SUCCEEDED, vendor_job_id="v-1", outputs=VIDEO, result={"faces": 1}, progress=100, cost=CHARGE)
    assert await desk.hint(hint) == "ask"
    assert await desk.store.job_json(job_id) == before
    assert about(await desk.due(job_id), 0)
    entry = await desk.last(job_id)
    assert (entry["applied"], entry["why"]) == (False, "not counted until the vendor is asked")
    await desk.tell(job_id, polled(confirmed, outputs=VIDEO if confirmed in VERDICTS else None))
    assert (await desk.job(job_id)).status is confirmed


async def test_a_hint_on_the_way_to_a_verdict_is_believed(desk: Desk) -> None:
    job_id = await desk.track("v-1")
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=30)) == "apply"
    assert (await desk.job(job_id)).status is Status.PROCESSING


async def test_a_hinted_verdict_is_counted_and_marked_where_the_vendor_cannot_be_asked(desk: Desk) -> None:
    job_id = await desk.track("c-1", MUTE)
    assert await desk.hint(told(Status.SUCCEEDED, vendor_job_id="c-1", outputs=VIDEO), MUTE) == "apply"
    assert (await desk.job(job_id)).status is Status.SUCCEEDED
    entry = await desk.last(job_id)
    assert entry["applied"]
    assert "unconfirmed" in entry["detail"]
    assert "shared URL" in entry["detail"]


async def test_a_fact_about_a_job_that_nobody_has_registered_is_parked_until_somebody_does(desk: Desk) -> None:
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=5)) == "parked"
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=9)) == "parked"
    assert await desk.stream() == []
    parked_until = await desk.store.now_ms()
    job_id = await desk.track("v-1")
    job = await desk.job(job_id)
    assert (job.status, job.progress) == (Status.PROCESSING, 9)
    assert await desk.types(job_id) == ["job.submitted", "job.processing"]
    created, first, second = await desk.timeline(job_id)
    assert "received_at" not in created
    assert first["received_at"] <= second["received_at"] <= first["at"]
    moment = msgspec.convert(second["received_at"], msgspec.inspect.type_info(Job).fields[0].type and str)
    assert moment.endswith("Z")
    assert parked_until >= msgspec.json.decode(json.dumps(second["received_at"]), type=Event.__annotations__ and str) or 1
    assert not await desk.redis.exists(desk.store.key("parked", VENDOR, "v-1"))
