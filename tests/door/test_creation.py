"""How a job comes to be, once, and what a caller may expect of one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from service.jobs.tracker import Recorded
from service.model import Archive, Observation, Source, Status
from tests.support.desk import ASK, MUTE, OTHER_VIDEO, SUCCESS, VENDOR, VIDEO, Desk, about, fact, ours, polled, told


async def test_a_job_whose_vendor_id_is_unknown_is_pending_and_nobody_hears_of_it(desk: Desk) -> None:
    job_id = await desk.track(None, model="lip-sync-2", metadata={"order": 7})
    job = await desk.job(job_id)
    assert (job.status, job.model, job.metadata) == (Status.PENDING, "lip-sync-2", {"order": 7})
    assert (job.vendor_job_id, job.submitted_at, job.archive) == (None, None, Archive.NONE)
    assert await desk.stream() == []
    assert await desk.due(job_id) is None


async def test_a_job_whose_vendor_id_is_known_is_queued_and_will_be_asked_for_until_it_expires(desk: Desk) -> None:
    job_id = await desk.track("v-1")
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (Status.QUEUED, "v-1")
    assert job.submitted_at == job.created_at
    assert await desk.types(job_id) == ["job.submitted"]
    assert await desk.store.find(VENDOR, "v-1") == job_id
    assert about(await desk.due(job_id), ASK.grace)
    assert job.expires_at
    assert (job.expires_at - job.created_at).total_seconds() == desk.settings.job_deadline
    assert about(await desk.due(job_id, "deadlines"), desk.settings.job_deadline * 1000)


@pytest.mark.parametrize(
    "seen", [fact(Source.SUBMIT, Status.QUEUED), told(Status.PROCESSING)], ids=["submit", "callback"]
)
async def test_the_vendor_id_is_attached_later_and_the_first_look_is_due_after_the_grace(
    desk: Desk, seen: Observation
) -> None:
    job_id = await desk.track(None)
    assert await desk.tell(job_id, msgspec.structs.replace(seen, vendor_job_id="v-9")) == "apply"
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (seen.status, "v-9")
    assert await desk.store.find(VENDOR, "v-9") == job_id
    assert (await desk.types(job_id))[0] == "job.submitted"
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
