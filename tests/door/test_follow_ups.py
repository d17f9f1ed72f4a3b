"""What a fact sets off: our copy of the outputs, and when the vendor is asked."""

from __future__ import annotations

from typing import Final

import pytest

from service.model import Archive, Observation, Output, Problem, Source, Status
from tests.support.desk import (
    MUTE,
    OTHER_VIDEO,
    PROBLEM,
    SUCCESS,
    VENDOR,
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
    ("source", "archive", "given", "outcome", "link", "then"),
    [
        (Source.POLL, Archive.WAITING, OTHER_VIDEO, "update", OTHER_VIDEO, Archive.WAITING),
        (Source.POLL, Archive.FAILED, OTHER_VIDEO, "update", OTHER_VIDEO, Archive.WAITING),
        (Source.POLL, Archive.FAILED, VIDEO, "same", VIDEO, Archive.FAILED),  # the same dead link again
        (Source.POLL, Archive.STORED, OTHER_VIDEO, "same", copied(VIDEO), Archive.STORED),
        # What was not asked for is no answer to a dead link: an old callback may come again at any time.
        (Source.CALLBACK, Archive.WAITING, OTHER_VIDEO, "same", VIDEO, Archive.WAITING),
        (Source.CALLBACK, Archive.FAILED, OTHER_VIDEO, "same", VIDEO, Archive.FAILED),
    ],
)
async def test_a_fresh_link_from_the_asked_vendor_replaces_one_that_is_still_needed(
    desk: Desk,
    source: Source,
    archive: Archive,
    given: tuple[Output, ...],
    outcome: str,
    link: tuple[Output, ...],
    then: Archive,
) -> None:
    job_id = await brought_to(desk, archive)
    assert await desk.tell(job_id, fact(source, Status.SUCCEEDED, outputs=given)) == outcome
    job = await desk.job(job_id)
    assert (job.outputs, job.archive) == (link, then)


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
