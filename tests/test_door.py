"""The door: what each fact does to a job, what is written of it, and who hears of it. All against a real Valkey."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
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
from service.jobs.scripts import PARKED_LENGTH, PARKED_SECONDS, TIMELINE_LENGTH, Ask
from service.jobs.store import Store, connect, connect_sync
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


def ms(moment: str) -> int:
    """An ISO-8601 time in milliseconds."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def about(due: int | None, expected: int) -> bool:
    """Whether something is due in `expected` ms, give or take the moment that has passed since it was written."""
    return due is not None and expected - 2_000 <= due <= expected


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
        created = await desk.tracker.record(seen, vendor=VENDOR, job_id=job_id, create=True, idempotency=(key, b"{}"))
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
    "order", list(permutations((Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED))), ids="-".join
)
async def test_callbacks_in_any_order_come_to_the_same_end(desk: Desk, order: tuple[Status, ...]) -> None:
    job_id = await desk.track(None)
    for status in order:
        await desk.tell(job_id, told(status, outputs=VIDEO if status is Status.SUCCEEDED else None))
    job = await desk.job(job_id)
    assert (job.status, job.progress, job.outputs, job.archive) == (Status.SUCCEEDED, 100, VIDEO, Archive.WAITING)
    types = await desk.types(job_id)
    assert types == [type_ for type_ in ("job.submitted", "job.processing", "job.succeeded") if type_ in types], (
        "in the order of a job's life, each once"
    )
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
    submitted, began = created.replace(year=created.year - 2), created.replace(year=created.year - 1)
    await desk.tell(job_id, told(Status.PROCESSING, submitted_at=submitted, started_at=began))
    await desk.tell(job_id, SUCCESS)
    job = await desk.job(job_id)
    assert (job.submitted_at, job.started_at) == (submitted, began)
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


async def test_each_type_is_announced_once_whatever_turns_a_job_takes(desk: Desk) -> None:
    job_id = await desk.track()
    for _ in range(2):
        await desk.tell(job_id, polled(Status.SUCCEEDED, outputs=VIDEO))
        for archive in (Archive.FAILED, Archive.WAITING, Archive.FAILED):
            await desk.tell(job_id, archived(archive=archive))
        await desk.tell(job_id, polled(Status.FAILED, error=REFUSED))
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded", "job.store_failed", "job.failed"]


async def test_a_success_that_is_taken_back_is_not_stored_any_more(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    await desk.tell(job_id, polled(Status.FAILED, error=REFUSED))
    job = await desk.job(job_id)
    assert (job.archive, job.error) == (Archive.NONE, REFUSED)
    assert await desk.due(f"archive-{job_id}", "tasks") is None


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
    began = await desk.store.now_ms()
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=5), raw=b"first") == "parked"
    assert await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=9), raw=b"second") == "parked"
    ended = await desk.store.now_ms()
    assert await desk.stream() == []
    job_id = await desk.track("v-1")
    job = await desk.job(job_id)
    assert (job.status, job.progress) == (Status.PROCESSING, 9)
    assert await desk.types(job_id) == ["job.submitted", "job.processing"]
    created, *applied = await desk.timeline(job_id)
    assert "received_at" not in created
    assert [entry["raw"] for entry in applied] == ["first", "second"]
    assert all(began <= ms(entry["received_at"]) <= ended <= ms(entry["at"]) for entry in applied)
    assert not await desk.redis.exists(desk.store.key("parked", VENDOR, "v-1"))


@pytest.mark.parametrize("by", ["attaching", "a callback"])
async def test_parked_facts_are_applied_by_whatever_tells_the_vendor_id(desk: Desk, by: str) -> None:
    await desk.hint(told(Status.PROCESSING, vendor_job_id="v-1", progress=9))
    job_id = await desk.track(None)
    source = Source.SUBMIT if by == "attaching" else Source.CALLBACK
    await desk.tell(job_id, fact(source, Status.QUEUED, vendor_job_id="v-1"))
    assert (await desk.job(job_id)).status is Status.PROCESSING


async def test_a_parked_verdict_from_the_shared_url_makes_us_ask_the_vendor(desk: Desk) -> None:
    await desk.hint(told(Status.SUCCEEDED, vendor_job_id="v-1", outputs=VIDEO))
    job_id = await desk.track("v-1")
    assert (await desk.job(job_id)).status is Status.QUEUED
    assert about(await desk.due(job_id), 0)


async def test_a_parked_verdict_is_counted_where_the_vendor_cannot_be_asked(desk: Desk) -> None:
    await desk.hint(told(Status.SUCCEEDED, vendor_job_id="c-1", outputs=VIDEO), MUTE)
    job_id = await desk.track("c-1", MUTE)
    job = await desk.job(job_id)
    assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.WAITING)
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded"]


async def test_what_is_parked_has_its_limits(desk: Desk) -> None:
    key = desk.store.key("parked", VENDOR, "v-1")
    facts = [told(Status.PROCESSING, vendor_job_id="v-1", detail=str(n)) for n in range(PARKED_LENGTH + 5)]
    await asyncio.gather(*(desk.hint(seen) for seen in facts))
    assert await desk.redis.llen(key) == PARKED_LENGTH
    assert PARKED_SECONDS - 10 < await desk.redis.ttl(key) <= PARKED_SECONDS
    job_id = await desk.track("v-1")
    details = [entry["detail"] for entry in (await desk.timeline(job_id))[1:]]
    assert details == [str(n) for n in range(5, PARKED_LENGTH + 5)], "the latest"


# -- facts that could not be understood ---------------------------------------------------------------------

PROBLEM: Final = told(problem=Problem.UNKNOWN_STATUS, detail="unknown status 'paused'")


async def test_a_parked_fact_that_cannot_be_applied_spoils_neither_the_registration_nor_the_others(desk: Desk) -> None:
    parked = desk.store.key("parked", VENDOR, "v-1")
    assert await desk.tell(None, told(Status.PROCESSING, vendor_job_id="v-1")) == "parked"
    (good,) = await desk.redis.lrange(parked, 0, -1)
    broken = msgspec.msgpack.encode({"at": 1, "fact": msgspec.msgpack.encode({"vendor": VENDOR}).decode("latin-1")})
    assert await desk.redis.lpush(parked, broken) == 2

    job_id = await desk.track("v-1")
    assert (await desk.job(job_id)).status is Status.PROCESSING
    assert await desk.redis.lrange(parked, 0, -1) == [broken], f"kept, and {good!r} is not"


async def test_what_cannot_be_understood_may_still_name_the_job_that_its_url_belongs_to(desk: Desk) -> None:
    job_id, other = await desk.track(None), await desk.track("taken")
    named = told(problem=Problem.UNKNOWN_STATUS, vendor_job_id="v-9")
    assert await desk.tell(job_id, named, quarantine=(job_id, b"{}")) == "ask"
    assert (await desk.job(job_id)).vendor_job_id == "v-9"
    assert (await desk.job(job_id)).status is Status.PENDING
    due = await desk.due(job_id)
    assert due is not None
    assert due <= 0

    second = await desk.track(None)
    assert await desk.tell(second, told(problem=Problem.NO_OUTPUT, vendor_job_id="taken")) == "ask"
    assert (await desk.job(second)).vendor_job_id is None
    assert await desk.store.find(VENDOR, "taken") == other


async def test_what_was_not_understood_is_kept_whole_and_the_vendor_is_asked_at_once(desk: Desk) -> None:
    job_id = await desk.track()
    row = await desk.store.job_json(job_id)
    body = b'{"status": "paused", "padding": "' + b"x" * 100_000 + b'"}'
    assert await desk.tell(job_id, PROBLEM, raw=body, quarantine=(job_id, body)) == "ask"
    assert await desk.store.job_json(job_id) == row
    assert about(await desk.due(job_id), 0)
    entry = await desk.last(job_id)
    assert (entry["problem"], entry["detail"]) == ("unknown_status", "unknown status 'paused'")
    assert (entry["status"], entry["applied"], entry["why"]) == (None, False, "the vendor is asked")
    letters, _ = await desk.store.quarantined(10)
    letter = await desk.store.letter(letters[0]["id"].decode())
    assert letter
    assert letter["body"] == body
    assert (letter["vendor"], letter["job_id"], letter["subject"]) == (
        VENDOR.encode(),
        job_id.encode(),
        job_id.encode(),
    )
    assert (letter["problem"], json.loads(letter["detail"])) == (b"unknown_status", PROBLEM.detail)


async def test_the_same_letter_again_is_counted_and_another_is_another(desk: Desk) -> None:
    first, second = await desk.track("v-1"), await desk.track("v-2")
    for job_id, body in ((first, b"?"), (first, b"?"), (first, b"!"), (second, b"?"), (first, b"?")):
        await desk.tell(job_id, PROBLEM, quarantine=(job_id, body))
    letters, _ = await desk.store.quarantined(10)
    assert sorted((letter["job_id"].decode(), int(letter["count"])) for letter in letters) == sorted(
        [(first, 3), (first, 1), (second, 1)]
    )
    assert all(letter["received_at"] <= letter["last_received_at"] for letter in letters)


async def test_a_letter_without_a_job_is_kept_too(desk: Desk) -> None:
    seen = told(problem=Problem.NO_JOB_ID, detail="names no job")
    assert await desk.hint(seen, quarantine=("shared", b"{}")) == "quarantined"
    [letter], _ = await desk.store.quarantined(10)
    assert (letter["job_id"], letter["problem"]) == (b"", b"no_job_id")


async def test_what_was_not_understood_but_names_a_job_is_noted_on_it(desk: Desk) -> None:
    job_id = await desk.track("v-1")
    seen = told(problem=Problem.UNKNOWN_STATUS, detail="?", vendor_job_id="v-1")
    assert await desk.hint(seen, quarantine=("shared", b"{}")) == "ask"
    assert (await desk.last(job_id))["problem"] == "unknown_status"
    assert about(await desk.due(job_id), 0)


async def test_what_is_too_large_to_keep_and_names_no_job_leaves_nothing_behind(desk: Desk) -> None:
    before = await desk.everything()
    await desk.hint(told(problem=Problem.TOO_LARGE, detail="larger than a callback may be"))
    assert await desk.everything() == before


async def test_what_was_not_understood_is_noted_on_the_job_behind_its_url_whatever_job_it_names(desk: Desk) -> None:
    job_id, other = await desk.track("v-1"), await desk.track("v-2")
    seen = told(problem=Problem.OTHER_JOB, detail="names another job", vendor_job_id="v-2")
    assert await desk.tell(job_id, seen, quarantine=(job_id, b"{}")) == "ask"
    assert (await desk.last(job_id))["problem"] == "other_job"
    assert len(await desk.timeline(other)) == 1


async def test_what_polling_stumbles_over_is_listed_once_until_something_else_is_learned(desk: Desk) -> None:
    job_id = await desk.track()
    lost = polled(problem=Problem.UNKNOWN_JOB, detail="not_found")
    odd = polled(problem=Problem.UNKNOWN_STATUS, detail="unknown status 'paused'")
    for seen in (lost, lost, odd, odd, odd, lost, polled(Status.PROCESSING), lost, lost):
        await desk.tell(job_id, seen)
    listed = [entry.get("problem") for entry in await desk.timeline(job_id)]
    assert listed == [None, "unknown_job", "unknown_status", "unknown_job", None, "unknown_job"]
    assert about(await desk.due(job_id), ASK.every), "and polling goes on"


# -- what the caller expects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ("status", Status.QUEUED, Status.PROCESSING),
        ("archive", Archive.NONE, Archive.WAITING),
        ("outputs", (), VIDEO),
        ("metadata", {"a": [1, 2.5, "é"], "b": None}, {"b": None, "a": [1, 2.5, "é"]}),
        ("vendor_job_id", "v-1", "v-2"),
        ("model", None, "lip-sync-2"),
    ],
)
async def test_a_fact_counts_only_while_the_job_is_as_expected(
    desk: Desk, field: str, right: object, wrong: object
) -> None:
    job_id = await desk.track("v-1", metadata={"a": [1, 2.5, "é"], "b": None})
    assert await desk.tell(job_id, told(Status.PROCESSING), expect={field: wrong}) == "changed"
    assert await desk.tell(job_id, told(Status.PROCESSING), expect={field: right}) == "apply"


async def test_what_was_read_from_a_job_can_be_expected_of_it(desk: Desk) -> None:
    job_id = await desk.track(None)
    await desk.tell(job_id, msgspec.structs.replace(SUCCESS, outputs=VIDEO + OTHER_VIDEO, vendor_job_id="ü/1"))
    job = await desk.job(job_id)
    for name in ("id", "vendor", "vendor_job_id", "status", "progress", "archive", "outputs", "metadata"):
        assert await desk.tell(job_id, ours(detail=name), expect={name: getattr(job, name)}) == "note", name


# -- archive: what became of our copy -----------------------------------------------------------------------

#: A row for the archive that the job has, a column for the one that is observed. `+` applied, `=` known, `.` stale.
ARCHIVE_TABLE: Final = """
             none  waiting  stored  failed
    none      =       .       .       .
    waiting   +       =       +       +
    stored    .       .       =       .
    failed    .       +       +       =
"""


def archive_cells() -> list[tuple[Archive, Archive, str]]:
    header, *rows = (line.split() for line in ARCHIVE_TABLE.strip().splitlines())
    words = {"+": "apply", "=": "same", ".": "stale"}
    return [
        (Archive(current), Archive(observed), words[sign])
        for current, *signs in rows
        for observed, sign in zip(header, signs, strict=True)
    ]


async def brought_to(desk: Desk, archive: Archive) -> str:
    """A succeeded job (a processing one, for `none`) whose archive is `archive`."""
    job_id = await desk.track(None)
    await desk.tell(job_id, told(Status.PROCESSING) if archive is Archive.NONE else SUCCESS)
    if archive is Archive.STORED:
        await desk.tell(job_id, archived(archive=archive, outputs=copied(VIDEO)))
    elif archive is Archive.FAILED:
        await desk.tell(job_id, archived(archive=archive, detail="gone"))
    assert (await desk.job(job_id)).archive is archive
    return job_id


@pytest.mark.parametrize(("current", "observed", "expected"), archive_cells())
async def test_the_archive_moves_as_written_out_and_never_touches_the_status(
    desk: Desk, current: Archive, observed: Archive, expected: str
) -> None:
    job_id = await brought_to(desk, current)
    status = (await desk.job(job_id)).status
    types = await desk.types(job_id)
    outputs = copied(VIDEO) if observed is Archive.STORED else None
    assert await desk.tell(job_id, archived(archive=observed, outputs=outputs)) == expected
    job = await desk.job(job_id)
    assert job.archive is (observed if expected == "apply" else current)
    assert job.status is status
    news = {Archive.STORED: ["job.stored"], Archive.FAILED: ["job.store_failed"]}.get(observed, [])
    assert await desk.types(job_id) == types + (news if expected == "apply" else [])
    waiting = job.archive is Archive.WAITING
    assert (await desk.due(f"archive-{job_id}", "tasks") is not None) is waiting
    assert await desk.indexes(job_id) == [f"callsheet:jobs:kitta:{status}:{job.archive}"]


async def test_a_success_with_outputs_sets_our_copy_in_motion(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    assert await desk.redis.lrange("rq:queue:callsheet-archive", 0, -1) == [f"archive-{job_id}".encode()]
    assert about(await desk.due(f"archive-{job_id}", "tasks"), 60_000)


async def test_what_is_stored_says_where_and_when(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    seen = archived(archive=Archive.STORED, outputs=copied(VIDEO))
    assert await desk.tell(job_id, seen, expect={"outputs": VIDEO}) == "apply"
    job = await desk.job(job_id)
    assert job.outputs == copied(VIDEO)
    assert job.completed_at is not None
    assert job.stored_at is not None
    assert job.stored_at >= job.completed_at
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded", "job.stored"]


async def test_a_file_that_was_brought_from_an_old_link_does_not_count(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    await desk.tell(job_id, polled(Status.SUCCEEDED, outputs=OTHER_VIDEO))
    seen = archived(archive=Archive.STORED, outputs=copied(VIDEO))
    assert await desk.tell(job_id, seen, expect={"outputs": VIDEO}) == "changed"
    assert (await desk.job(job_id)).archive is Archive.WAITING


async def test_an_attempt_that_failed_is_counted_and_tried_again_after_its_delay(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    for attempt, delay in enumerate((2, 600), 1):
        seen = archived(problem=Problem.NOT_STORED, detail=f"attempt {attempt}")
        assert await desk.tell(job_id, seen, task="archive", retry_in=delay) == "note"
        assert await desk.store.attempts(job_id) == attempt
        assert about(await desk.due(f"archive-{job_id}", "tasks"), delay * 1000)
        entry = await desk.last(job_id)
        assert (entry["problem"], entry["applied"], entry["detail"]) == ("not_stored", False, f"attempt {attempt}")
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded"]


async def test_a_late_word_of_a_failed_attempt_does_not_wake_a_task_that_is_done(desk: Desk) -> None:
    job_id = await brought_to(desk, Archive.STORED)
    await desk.tell(job_id, archived(problem=Problem.NOT_STORED, detail="a slower run"), task="archive", retry_in=2)
    assert await desk.due(f"archive-{job_id}", "tasks") is None
    assert (await desk.job(job_id)).archive is Archive.STORED


async def test_an_operator_may_have_a_failed_copy_tried_again_from_the_start(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    await desk.tell(job_id, archived(problem=Problem.NOT_STORED, detail="attempt 1"), task="archive", retry_in=2)
    await desk.tell(job_id, archived(archive=Archive.FAILED, detail="attempt 2"), task="archive")
    await desk.redis.delete("rq:queue:callsheet-archive")
    assert await desk.tell(job_id, ours(archive=Archive.WAITING), poll_now=True) == "apply"
    assert await desk.store.attempts(job_id) == 0
    assert await desk.redis.lrange("rq:queue:callsheet-archive", 0, -1) == [f"archive-{job_id}".encode()]
    assert about(await desk.due(job_id), 0), "and the vendor is asked for links that live"
    await desk.tell(job_id, archived(archive=Archive.STORED, outputs=copied(VIDEO)))
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded", "job.store_failed", "job.stored"]


@pytest.mark.parametrize(
    ("source", "archive", "outcome", "link", "then"),
    [
        (Source.POLL, Archive.WAITING, "update", OTHER_VIDEO, Archive.WAITING),
        (Source.POLL, Archive.FAILED, "update", OTHER_VIDEO, Archive.WAITING),
        (Source.POLL, Archive.STORED, "same", copied(VIDEO), Archive.STORED),
        # What was not asked for is no answer to a dead link: an old callback may come again at any time.
        (Source.CALLBACK, Archive.WAITING, "same", VIDEO, Archive.WAITING),
        (Source.CALLBACK, Archive.FAILED, "same", VIDEO, Archive.FAILED),
    ],
)
async def test_a_fresh_link_from_the_asked_vendor_replaces_one_that_is_still_needed(
    desk: Desk, source: Source, archive: Archive, outcome: str, link: tuple[Output, ...], then: Archive
) -> None:
    job_id = await brought_to(desk, archive)
    assert await desk.tell(job_id, fact(source, Status.SUCCEEDED, outputs=OTHER_VIDEO)) == outcome
    job = await desk.job(job_id)
    assert (job.outputs, job.archive) == (link, then)


async def test_the_same_dead_link_again_does_not_set_a_failed_copy_in_motion(desk: Desk) -> None:
    job_id = await brought_to(desk, Archive.FAILED)
    assert await desk.tell(job_id, polled(Status.SUCCEEDED, outputs=VIDEO)) == "same"
    assert (await desk.job(job_id)).archive is Archive.FAILED


# -- when the vendor is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "remaining", "expected"),
    [
        (0, 86_400, 5),  # never more often than `every`
        (49, 86_400, 5),
        (100, 86_400, 10),  # a tenth of the age
        (1_800, 86_400, 180),
        (3_000, 86_400, 300),
        (80_000, 6_400, 300),  # never less often than `slowest`
        (86_200, 200, 199),  # one last look just before the deadline
        (86_392, 8, 7),
        (86_399, 1, 5),
        (86_401, -1, None),  # it is over
    ],
)
async def test_polls_follow_the_age_of_the_job_and_end_at_its_deadline(
    desk: Desk, age: int, remaining: int, expected: int | None
) -> None:
    job_id = await desk.track()
    now = await desk.store.now_ms()
    await desk.row(job_id, _since=now - age * 1000, _expires=now + remaining * 1000)
    for seen in (polled(Status.PROCESSING), polled(Status.PROCESSING), polled(problem=Problem.BAD_JSON, detail="?")):
        await desk.tell(job_id, seen)
        due = await desk.due(job_id)
        assert due is None if expected is None else about(due, expected * 1000 + 30)


async def test_callbacks_do_not_put_off_the_next_look(desk: Desk) -> None:
    job_id = await desk.track()
    for progress in (1, 2, 3):
        before = await desk.redis.zscore(f"callsheet:polls:{VENDOR}", job_id)
        await desk.tell(job_id, told(Status.PROCESSING, progress=progress))
        assert await desk.redis.zscore(f"callsheet:polls:{VENDOR}", job_id) == before


@pytest.mark.parametrize("source", [Source.CALLBACK, Source.POLL, Source.OPERATOR])
@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
async def test_after_a_verdict_nothing_is_due_any_more(desk: Desk, source: Source, status: Status) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, fact(source, status))
    assert await desk.due(job_id) is None
    assert await desk.due(job_id, "deadlines") is None


@pytest.mark.parametrize("seen", [ours(detail="look again"), told(Status.QUEUED), SUCCESS])
async def test_the_vendor_can_be_asked_at_once_whatever_the_fact_says(desk: Desk, seen: Observation) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, seen, poll_now=True)
    assert about(await desk.due(job_id), 0)


async def test_a_vendor_that_cannot_be_asked_is_never_due(desk: Desk) -> None:
    job_id = await desk.track("c-1", MUTE)
    await desk.tell(job_id, PROBLEM, MUTE, poll_now=True)
    assert await desk.due(job_id, f"polls:{MUTE}") is None
    assert (await desk.last(job_id))["why"] == "the vendor cannot be asked: no credentials"


# -- the timeline and its evidence --------------------------------------------------------------------------


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
    told_ = [{name: value for name, value in entry.items() if name != "at"} for entry in entries[1:]]
    assert told_ == [
        {
            "source": "callback",
            "status": "processing",
            "applied": True,
            "why": "was queued",
            "detail": "half-way",
            "raw": '{"status":"running"}',
        },
        {
            "source": "callback",
            "status": "queued",
            "applied": False,
            "why": "older than what is known",
            "raw": '{"status":"waiting"}',
        },
        {
            "source": "callback",
            "status": "succeeded",
            "applied": True,
            "why": "was processing",
            "raw": '{"status":"done"}',
        },
        {"source": "callback", "status": "succeeded", "applied": False, "why": "known already"},
    ]


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


# -- what everybody hears -------------------------------------------------------------------------------


class Ears:
    """Subscribed to an events channel of all jobs, and to those of single jobs."""

    def __init__(self, desk: Desk, pubsub: Any) -> None:
        self._desk = desk
        self._pubsub = pubsub

    async def heard(self) -> tuple[list[bytes], dict[str, list[bytes]]]:
        """What was published since the last question: to all, and by the job's channel."""
        await self._desk.redis.publish("callsheet:events", b"end")
        everybody: list[bytes] = []
        single: dict[str, list[bytes]] = {}
        async for message in self._pubsub.listen():
            if message["type"] == "pmessage":
                single.setdefault(message["channel"].decode().removeprefix("callsheet:events:"), []).append(
                    message["data"]
                )
            elif message["type"] == "message":
                if message["data"] == b"end":
                    break
                everybody.append(message["data"])
        return everybody, single


@asynccontextmanager
async def listening(desk: Desk) -> AsyncIterator[Ears]:
    async with desk.redis.pubsub() as pubsub:
        await pubsub.subscribe("callsheet:events")
        await pubsub.psubscribe("callsheet:events:*")
        ears = Ears(desk, pubsub)
        await ears.heard()
        yield ears


async def test_every_channel_carries_the_same_events(desk: Desk) -> None:
    async with listening(desk) as ears:
        first, second = await desk.track("v-1"), await desk.track("v-2")
        await asyncio.gather(desk.tell(first, SUCCESS), desk.tell(second, told(Status.FAILED, error=REFUSED)))
        await desk.tell(first, archived(archive=Archive.STORED, outputs=copied(VIDEO)))
        everybody, single = await ears.heard()
        assert everybody == await desk.stream()
        assert [json.loads(event)["type"] for event in single[first]] == [
            "job.submitted",
            "job.succeeded",
            "job.stored",
        ]
        assert [json.loads(event)["type"] for event in single[second]] == ["job.submitted", "job.failed"]
        assert Counter(everybody) == Counter([*single[first], *single[second]])


async def test_an_event_holds_the_job_as_it_was_then(desk: Desk) -> None:
    job_id = await desk.track()
    for seen in (
        told(Status.PROCESSING, progress=20),
        SUCCESS,
        archived(archive=Archive.STORED, outputs=copied(VIDEO)),
    ):
        await desk.tell(job_id, seen)
        latest = msgspec.json.decode((await desk.stream())[-1], type=dict[str, msgspec.Raw])
        assert bytes(latest["data"]) == await desk.store.job_json(job_id)
        assert sorted(latest) == ["data", "id", "timestamp", "type"]


async def test_events_have_ids_of_their_own_and_the_time_of_the_commit(desk: Desk) -> None:
    before = await desk.store.now_ms()
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    after = await desk.store.now_ms()
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


# -- whatever is said in whatever order ---------------------------------------------------------------------

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

#: The order in which the statuses of a job are announced.
ANNOUNCED: Final = {
    "job.submitted": 0,
    "job.processing": 1,
    "job.expired": 2,
    "job.succeeded": 3,
    "job.failed": 3,
    "job.cancelled": 3,
}


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


def check_events(job_id: str, events: list[Event]) -> None:
    types = [event.type for event in events]
    assert len(set(types)) == len(types), "each type once"
    statuses = [type_ for type_ in types if type_ in ANNOUNCED]
    assert [ANNOUNCED[type_] for type_ in statuses] == sorted(ANNOUNCED[type_] for type_ in statuses)
    for copy in ("job.stored", "job.store_failed"):
        assert copy not in types or "job.succeeded" in types[: types.index(copy)]
    assert all(event.data.id == job_id for event in events)
    assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)


# -- many at once -----------------------------------------------------------------------------------------


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


# -- Redis in trouble --------------------------------------------------------------------------------------


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
