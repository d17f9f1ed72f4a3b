"""Facts only move a job forward, and of two verdicts the asked vendor's counts."""

from __future__ import annotations

from itertools import permutations

import pytest

from service.model import Archive, Cost, Observation, Source, Status
from tests.support.desk import (
    CHARGE,
    ESTIMATE,
    MUTE,
    OTHER_VIDEO,
    REFUSED,
    SUCCESS,
    VIDEO,
    Desk,
    about,
    archived,
    copied,
    fact,
    ours,
    polled,
    told,
)

# -- facts only move forward ----------------------------------------------------------------------------


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


# -- cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [None, SUCCESS], ids=["with the verdict", "after it"])
async def test_the_charge_stands_beside_the_estimate_whenever_it_comes(desk: Desk, first: Observation | None) -> None:
    job_id = await desk.track(cost=ESTIMATE)
    assert (await desk.job(job_id)).cost == ESTIMATE
    if first:
        await desk.tell(job_id, first)
    charged = told(Status.SUCCEEDED, outputs=VIDEO, cost=CHARGE)
    assert await desk.tell(job_id, charged) == ("update" if first else "apply")
    assert (await desk.job(job_id)).cost == Cost(estimated=5.5, charged=4, unit="credits")


@pytest.mark.parametrize("estimate", [None, ESTIMATE], ids=["alone", "beside an estimate"])
async def test_a_charge_that_is_known_already_is_no_news(desk: Desk, estimate: Cost | None) -> None:
    job_id = await desk.track(cost=estimate)
    seen = told(Status.SUCCEEDED, outputs=VIDEO, cost=CHARGE)
    assert await desk.tell(job_id, seen) == "apply"
    assert await desk.tell(job_id, seen) == "same"
    assert (await desk.last(job_id))["why"] == "known already"


# -- two verdicts that contradict each other ------------------------------------------------------------


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


async def test_a_verdict_that_is_taken_back_takes_along_what_came_of_it(desk: Desk) -> None:
    job_id = await desk.track()
    await desk.tell(job_id, SUCCESS)
    await desk.tell(job_id, polled(Status.FAILED, error=REFUSED))
    job = await desk.job(job_id)
    assert (job.archive, job.error) == (Archive.NONE, REFUSED)
    assert await desk.due(f"archive-{job_id}", "tasks") is None
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
