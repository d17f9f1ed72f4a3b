"""The way of a job that takes two of a vendor's: told, parked, asked about and adopted, to its one end."""

from __future__ import annotations

import asyncio
from itertools import permutations, product

import msgspec
import pytest

from service.jobs.sums import Sums
from service.model import Archive, Problem, Source, Status
from tests.support.desk import ASK, REFUSED, VENDOR, VIDEO, about, fact, ours, polled, told
from tests.support.steps import (
    DONE,
    ESTIMATE,
    FACES,
    MODEL,
    STATES,
    STEP,
    VENDORS_WORDS,
    VOICES,
    Steps,
    brought_to,
    facts_about_the_first,
    of_first,
    of_second,
    say,
)

# -- the way of a job -----------------------------------------------------------------------------------


async def test_both_of_the_vendors_jobs_come_to_one_end(desk: Steps) -> None:
    job_id = await desk.order()
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (1, True)
    await desk.send(job_id, 1)
    await desk.tell(job_id, of_first(fact(Source.SUBMIT, Status.QUEUED), job_id, "id"))
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id, job.submitted_at) == (Status.PENDING, None, None)
    assert about(await desk.due(job_id), ASK.grace), "the vendor will be asked about the first"
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (1, False)

    await desk.tell(job_id, of_first(told(Status.SUCCEEDED, result=FACES), job_id))
    assert (await desk.job(job_id)).result == FACES
    assert await desk.due(job_id) is None, "nothing is left to ask for"
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (2, True)
    assert await desk.stream() == []

    await desk.send(job_id, 2)
    await desk.tell(job_id, of_second(fact(Source.SUBMIT, Status.QUEUED), job_id))
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id, job.model) == (Status.QUEUED, f"second-{job_id}", MODEL)
    assert about(await desk.due(job_id), ASK.grace)
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (2, False)

    await desk.tell(job_id, of_second(told(Status.SUCCEEDED, outputs=VIDEO), job_id))
    job = await desk.job(job_id)
    assert (job.status, job.archive, job.outputs) == (Status.SUCCEEDED, Archive.WAITING, VIDEO)
    assert (job.cost, job.metadata) == (ESTIMATE, {"shot": 7})
    assert await desk.types(job_id) == ["job.submitted", "job.succeeded"]
    assert (await desk.events(job_id))[0].data.vendor_job_id == f"second-{job_id}"
    assert await desk.ids_told(job_id) == [f"first-{job_id}", f"second-{job_id}"]
    assert [await desk.store.find(VENDOR, f"{which}-{job_id}") for which in ("first", "second")] == [job_id] * 2


@pytest.mark.parametrize("voices", list(product(("submit", "callback", "poll"), repeat=3)), ids="-".join)
@pytest.mark.parametrize(
    "order", list(permutations((Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED))), ids="-".join
)
async def test_facts_about_the_first_come_to_the_same_end_in_any_order(
    desk: Steps, order: tuple[Status, ...], voices: tuple[str, ...]
) -> None:
    job_id = await brought_to(desk, "unconfirmed before the first")
    for voice, status in zip(voices, order, strict=True):
        for _ in range(2):
            await say(desk, job_id, voice, of_first(facts_about_the_first(status), job_id))
    job = await desk.job(job_id)
    assert (job.status, job.result, job.vendor_job_id) == (Status.PENDING, FACES, None)
    assert await desk.step_done(job_id)
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (1, True)
    assert await desk.stream() == []
    assert await desk.due(job_id) is None
    assert await desk.ids_told(job_id) == [f"first-{job_id}"]


async def test_the_success_of_the_first_sets_the_second_off_once_however_often_it_is_told_at_once(desk: Steps) -> None:
    job_id = await brought_to(desk, "first queued")
    seen = of_first(facts_about_the_first(Status.SUCCEEDED), job_id)
    voices = [voice for voice in ("submit", "callback", "poll") for _ in range(10)]
    outcomes = await asyncio.gather(*(say(desk, job_id, voice, seen) for voice in voices))
    assert sorted(outcomes) == ["apply", *["same"] * 29]
    assert await desk.pushed(job_id) == 1


@pytest.mark.parametrize("moment", ["before it is sent", "before its answer", "after its answer"])
async def test_a_callback_of_the_first_may_overtake_the_answer_to_its_sending(desk: Steps, moment: str) -> None:
    job_id = await brought_to(desk, "pending" if moment == "before it is sent" else "unconfirmed before the first")
    answer = of_first(fact(Source.SUBMIT, Status.QUEUED), job_id, "id")
    if moment == "after its answer":
        await desk.tell(job_id, answer)
    await desk.tell(job_id, of_first(told(Status.SUCCEEDED, result=FACES), job_id))
    if moment == "before its answer":
        assert await desk.tell(job_id, answer) == "stale"
    job = await desk.job(job_id)
    assert (job.status, job.result, job.vendor_job_id) == (Status.PENDING, FACES, None)
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (1, True)


@pytest.mark.parametrize("named", ["model", "neither"])
async def test_an_answer_that_names_the_firsts_model_is_not_taken_for_the_second(desk: Steps, named: str) -> None:
    """A callback without the first's id has overtaken it."""
    job_id = await brought_to(desk, "unconfirmed before the first")
    assert await desk.tell(job_id, of_first(told(Status.SUCCEEDED, result=FACES), job_id, named)) == "apply"
    assert await desk.tell(job_id, of_first(fact(Source.SUBMIT, Status.QUEUED), job_id)) == "stale"
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (Status.PENDING, None)
    assert await desk.is_noted(job_id), "the second will be sent"
    assert await desk.ids_told(job_id) == [f"first-{job_id}"]
    assert await desk.stream() == []


async def test_what_names_nothing_is_about_the_second_once_that_was_sent(desk: Steps) -> None:
    for named in ("both", "model", "neither"):
        job_id = await brought_to(desk, "unconfirmed before the first")
        await desk.tell(job_id, of_first(told(Status.SUCCEEDED, result=FACES), job_id, named))
        await desk.send(job_id, 2)
        assert await desk.tell(job_id, told(Status.SUCCEEDED, outputs=VIDEO)) == "apply", named
        assert (await desk.job(job_id)).status is Status.SUCCEEDED


@pytest.mark.parametrize("status", [Status.PROCESSING, Status.SUCCEEDED])
@pytest.mark.parametrize("by", ["submit", "callback", "poll", "problem", "operator"])
async def test_what_was_parked_under_the_firsts_id_counts_once_it_is_known(
    desk: Steps, status: Status, by: str
) -> None:
    job_id = await brought_to(desk, "unconfirmed before the first")
    parked = of_first(facts_about_the_first(status), job_id)
    assert await desk.hint(msgspec.structs.replace(parked, source=Source.CALLBACK)) == "parked"
    names = of_first(fact(VOICES.get(by, Source.CALLBACK), Status.QUEUED), job_id, "id")
    if by == "problem":
        names = of_first(told(problem=Problem.UNKNOWN_STATUS, detail="paused"), job_id, "id")
    elif by == "operator":  # as /v1/jobs/{id}/resolve adopts it
        names = of_first(fact(Source.SUBMIT, Status.QUEUED, detail="adopted"), job_id, "id")
    await desk.tell(job_id, names)
    assert await desk.store.find(VENDOR, f"first-{job_id}") == job_id
    assert not await desk.redis.exists(desk.store.key("parked", VENDOR, f"first-{job_id}"))
    assert (await desk.job(job_id)).status in (Status.PENDING, Status.UNCONFIRMED)
    if status is Status.SUCCEEDED:  # hinted: the vendor is asked about it
        assert await desk.claimed() == {job_id: f"first-{job_id}"}
        assert await desk.pushed(job_id) == 0
        await desk.tell(job_id, of_first(polled(Status.SUCCEEDED, result=FACES), job_id))
        assert await desk.pushed(job_id) == 1
    elif by != "problem":
        assert await desk.tell(job_id, of_first(told(Status.PROCESSING), job_id)) == "same"
    assert (await desk.job(job_id)).vendor_job_id is None
    assert await desk.stream() == []


async def test_what_was_parked_under_the_seconds_id_counts_once_it_is_known(desk: Steps) -> None:
    job_id = await brought_to(desk, "unconfirmed for the second")
    assert await desk.hint(of_second(told(Status.PROCESSING, progress=5), job_id)) == "parked"
    await desk.tell(job_id, of_second(fact(Source.SUBMIT, Status.QUEUED), job_id))
    assert (await desk.job(job_id)).status is Status.PROCESSING
    assert await desk.types(job_id) == ["job.submitted", "job.processing"]


@pytest.mark.parametrize("status", [Status.PROCESSING, Status.SUCCEEDED])
async def test_a_callback_of_the_second_may_overtake_the_answer_to_its_sending(desk: Steps, status: Status) -> None:
    job_id = await brought_to(desk, "unconfirmed for the second")
    outputs = VIDEO if status is Status.SUCCEEDED else None
    assert await desk.tell(job_id, of_second(told(status, outputs=outputs), job_id)) == "apply"
    answer = msgspec.structs.replace(of_second(fact(Source.SUBMIT, Status.QUEUED), job_id), model=None)
    assert await desk.tell(job_id, answer) == "stale"
    job = await desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (status, f"second-{job_id}")
    assert await desk.types(job_id) == ["job.submitted", f"job.{status}"]


async def test_a_late_failure_of_the_first_does_not_end_what_has_been_sent(desk: Steps) -> None:
    """The second is at the vendor, perhaps; it would be paid for and forgotten."""
    job_id = await brought_to(desk, "unconfirmed for the second")
    await desk.tell(job_id, of_first(told(Status.FAILED, error=REFUSED), job_id))
    await desk.tell(job_id, of_second(fact(Source.SUBMIT, Status.QUEUED), job_id))
    assert (await desk.job(job_id)).status is Status.QUEUED
    assert about(await desk.due(job_id), ASK.grace)


@pytest.mark.parametrize("state", ["pending after", "unconfirmed for the second"])
async def test_a_job_that_cannot_be_prepared_or_is_refused_after_its_first_fails(desk: Steps, state: str) -> None:
    """No face was found, say."""
    job_id = await brought_to(desk, state)
    assert await desk.tell(job_id, fact(Source.SUBMIT, Status.FAILED, error=REFUSED)) == "apply"
    job = await desk.job(job_id)
    assert (job.status, job.error, job.model) == (Status.FAILED, REFUSED, MODEL)
    assert await desk.types(job_id) == ["job.failed"]
    assert not await desk.is_noted(job_id)


# -- asking ---------------------------------------------------------------------------------------------


async def test_the_vendor_is_asked_about_the_first_and_then_about_the_second(desk: Steps) -> None:
    job_id = await brought_to(desk, "first queued")
    await desk.tell(job_id, ours(detail="asked to look again"), poll_now=True)
    assert await desk.claimed() == {job_id: f"first-{job_id}"}
    await desk.tell(job_id, of_first(polled(Status.QUEUED), job_id))
    assert about(await desk.due(job_id), ASK.every), "in the usual rhythm"
    await desk.tell(job_id, of_first(polled(Status.SUCCEEDED, result=FACES), job_id))
    await desk.tell(job_id, ours(detail="asked to look again"), poll_now=True)
    assert await desk.claimed() == {}, "there is nothing to ask about"
    await desk.send(job_id, 2)
    await desk.tell(job_id, of_second(fact(Source.SUBMIT, Status.QUEUED), job_id))
    await desk.tell(job_id, ours(detail="asked to look again"), poll_now=True)
    assert await desk.claimed() == {job_id: f"second-{job_id}"}


@pytest.mark.parametrize("state", ["first queued", "first processing"])
async def test_a_hinted_verdict_on_the_first_makes_us_ask_about_it(desk: Steps, state: str) -> None:
    for status in (Status.SUCCEEDED, Status.FAILED):
        job_id = await brought_to(desk, state)
        hint = msgspec.structs.replace(facts_about_the_first(status), source=Source.CALLBACK)
        assert await desk.hint(of_first(hint, job_id)) == "ask"
        assert await desk.claimed() == {job_id: f"first-{job_id}"}
        assert (await desk.last(job_id))["why"] == "not counted until the vendor is asked"
        await desk.tell(job_id, of_first(facts_about_the_first(status), job_id))
        assert (await desk.job(job_id)).status is (Status.FAILED if status is Status.FAILED else Status.PENDING)
        assert await desk.pushed(job_id) == (status is Status.SUCCEEDED)


@pytest.mark.parametrize(
    ("state", "heard"), [("expired during the first", ["job.expired"]), ("failed by the first", ["job.failed"])]
)
async def test_a_first_whose_job_is_over_sets_nothing_off(desk: Steps, state: str, heard: list[str]) -> None:
    job_id = await brought_to(desk, state)
    before = await desk.job(job_id)
    assert (before.error, before.model) == (REFUSED if "failed" in state else None, MODEL)
    assert (await desk.due(job_id), await desk.due(job_id, "deadlines")) == (None, None)
    assert await desk.tell(job_id, of_first(polled(Status.SUCCEEDED, result=FACES), job_id)) == "stale"
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (0, False)
    assert await desk.job(job_id) == before
    assert await desk.types(job_id) == heard


@pytest.mark.parametrize("state", DONE)
async def test_a_poll_of_the_first_that_comes_late_leaves_no_trace(desk: Steps, state: str) -> None:
    """The poller had asked before the callback came."""
    job_id = await brought_to(desk, state)
    row, listed, due = await desk.store.job_json(job_id), await desk.timeline(job_id), await desk.due(job_id)
    for status in (Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED):
        await desk.tell(job_id, of_first(facts_about_the_first(status), job_id))
    assert await desk.store.job_json(job_id) == row
    assert await desk.timeline(job_id) == listed
    assert state == "expired" or (await desk.due(job_id) is None) is (due is None)


async def test_what_cannot_be_understood_about_the_first_makes_us_ask_about_it(desk: Steps) -> None:
    job_id = await brought_to(desk, "first queued")
    odd = of_first(told(problem=Problem.UNKNOWN_STATUS, detail="paused"), job_id)
    assert await desk.tell(job_id, odd, quarantine=(job_id, b"{}")) == "ask"
    assert await desk.claimed() == {job_id: f"first-{job_id}"}
    assert (await desk.job(job_id)).vendor_job_id is None


# -- ids ------------------------------------------------------------------------------------------------


async def test_a_fact_about_another_of_the_vendors_jobs_is_refused(desk: Steps) -> None:
    job_id = await brought_to(desk, "first queued")
    for seen in (told(Status.PROCESSING, vendor_job_id="x"), fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="x")):
        assert await desk.tell(job_id, seen) == "other_job"
    job_id = await brought_to(desk, "queued")
    assert await desk.tell(job_id, told(Status.PROCESSING, vendor_job_id="x")) == "other_job"
    assert await desk.tell(job_id, told(Status.PROCESSING, vendor_job_id="x", model=STEP)) == "other_job"


@pytest.mark.parametrize(
    "state", ["pending", "unconfirmed before the first", "pending after", "unconfirmed for the second"]
)
async def test_an_id_that_another_job_has_is_refused(desk: Steps, state: str) -> None:
    other = await desk.track("v-1")
    job_id = await brought_to(desk, state)
    before = await desk.everything()
    recorded = await desk.tracker.record(
        fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-1"), vendor=VENDOR, job_id=job_id
    )
    assert (recorded.outcome, recorded.job_id) == ("taken", other)
    assert await desk.everything() == before


async def test_the_operator_may_adopt_either(desk: Steps) -> None:
    for state, status, known in (
        ("unconfirmed before the first", Status.PENDING, None),
        ("unconfirmed for the second", Status.QUEUED, "v-2"),
    ):
        job_id = await brought_to(desk, state)
        adopted = fact(Source.SUBMIT, Status.QUEUED, vendor_job_id="v-2" if known else "v-1")
        assert await desk.tell(job_id, adopted, expect={"status": Status.UNCONFIRMED}) == "apply"
        job = await desk.job(job_id)
        assert (job.status, job.vendor_job_id) == (status, known)
        assert await desk.ids_told(job_id) == ([f"first-{job_id}", "v-2"] if known else ["v-1"])
        assert about(await desk.due(job_id), ASK.grace)
        assert await desk.types(job_id) == (["job.submitted"] if known else [])


@pytest.mark.parametrize(
    ("state", "done"), [("unconfirmed before the first", False), ("unconfirmed for the second", True)]
)
async def test_the_operator_may_have_either_sent_again(desk: Steps, state: str, done: bool) -> None:
    job_id = await brought_to(desk, state)
    assert await desk.tell(job_id, ours(Status.PENDING), task="submit", retry_in=0) == "apply"
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (1, True)
    assert (await desk.step_done(job_id), (await desk.job(job_id)).status) == (done, Status.PENDING)
    assert await desk.send(job_id, 3) == "apply"
    of = of_second if done else of_first
    assert await desk.tell(job_id, of(fact(Source.SUBMIT, Status.QUEUED), job_id)) == "apply"
    assert (await desk.job(job_id)).status is (Status.QUEUED if done else Status.PENDING)


async def test_costs_count_such_a_job_once_and_when_the_second_is_taken(desk: Steps) -> None:
    for state in STATES:
        job_id = await brought_to(desk, state)
        for status in VENDORS_WORDS[:3]:
            await desk.tell(job_id, of_first(facts_about_the_first(status), job_id))
    sums = {
        (found.model, found.what): found.amount
        for found in await Sums(desk.redis, desk.store, desk.settings).costs("", "9")
        if found.amount
    }
    taken = len(DONE[2:])  # and those of which the second was never taken are not
    assert sums == {(MODEL, "jobs"): taken, (MODEL, "estimated"): pytest.approx(taken * 0.0133)}
