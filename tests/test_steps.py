"""The door's rules for a job that takes two of a vendor's jobs: the first finds what the second, the job itself, needs.

What is said about the first is kept apart: it moves the job's status only where it fails, and sets the second off once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import permutations, product
from typing import Any, Final, NamedTuple, cast

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from service.jobs.sums import Sums
from service.model import (
    VERDICTS,
    Archive,
    Cost,
    Event,
    Job,
    JobError,
    Observation,
    Problem,
    Source,
    Status,
    Submission,
)
from tests.support.desk import (
    ASK,
    REFUSED,
    VENDOR,
    VIDEO,
    Desk,
    about,
    check_events,
    fact,
    opened_desk,
    ours,
    polled,
    told,
)

#: The vendor's models: that of the job, and the one that goes before.
MODEL: Final = "advanced-lip-sync"
STEP: Final = "identify-face"

FACES: Final[dict[str, object]] = {"session_id": "s", "face_list": [{"face_id": "f"}]}
ESTIMATE: Final = Cost(estimated=0.0133, unit="USD")


class Steps(Desk):
    """A desk for such jobs. Ids at the vendor are made of the job's own: `first-…` and `second-…`."""

    async def order(self) -> str:
        """A new job that waits to be sent."""
        recorded = await self.tracker.record(
            fact(Source.SUBMIT, model=MODEL, cost=ESTIMATE, metadata={"shot": 7}),
            vendor=VENDOR,
            job_id=await self.new_id(),
            create=True,
            order=Submission(model=MODEL, input={}, vendor_input={}, step=STEP),
        )
        assert recorded.outcome == "note"
        return recorded.job_id

    async def send(self, job_id: str, number: int) -> str:
        """What a worker commits just before it sends: of the two, that number."""
        seen = fact(Source.SUBMIT, Status.UNCONFIRMED)
        return await self.tell(job_id, seen, sending=f"sending {number}", expect={"status": Status.PENDING})

    async def line(self) -> list[str]:
        """The RQ queue of submissions."""
        ids = cast("list[bytes]", await self.redis.lrange("rq:queue:callsheet-submit", 0, -1))
        return [rq_id.decode() for rq_id in ids]

    async def pushed(self, job_id: str) -> int:
        """How often the job's task was put on its queue."""
        return (await self.line()).count(f"submit-{job_id}")

    async def is_noted(self, job_id: str) -> bool:
        """Whether its task is among those that should move."""
        return await self.due(f"submit-{job_id}", "tasks") is not None

    async def step_done(self, job_id: str) -> bool:
        ordered = await self.store.ordered(job_id)
        assert ordered
        return ordered.step_done

    async def claimed(self) -> dict[str, str]:
        """The jobs that are due for a look, and the vendor's ids that it would be asked about."""
        return {claim.job_id: claim.vendor_job_id for claim in await self.store.claim_polls(VENDOR, 1000, 100)}

    async def ids_told(self, job_id: str) -> list[str]:
        """The vendor's ids in the timeline, in the order in which they were learned."""
        return [entry["vendor_job_id"] for entry in await self.timeline(job_id) if "vendor_job_id" in entry]


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Steps]:
    async with opened_desk(redis_url) as desk:
        yield Steps(desk.redis, desk.settings)


def of_first(seen: Observation, job_id: str, named: str = "both") -> Observation:
    """A fact about the first of a job's two, `named` by its id, its model, both or neither."""
    return msgspec.structs.replace(
        seen,
        vendor_job_id=f"first-{job_id}" if named in ("id", "both") else None,
        model=STEP if named in ("model", "both") else None,
    )


def of_second(seen: Observation, job_id: str) -> Observation:
    return msgspec.structs.replace(seen, vendor_job_id=f"second-{job_id}", model=MODEL)


#: The states of a job in the order of its life. To each belongs what brings it there from the one before: a number for
#: a sending, else a fact about the first or the second.
LIFE: Final[dict[str, Any]] = {
    "pending": None,
    "unconfirmed before the first": 1,
    "first queued": (of_first, fact(Source.SUBMIT, Status.QUEUED)),
    "first processing": (of_first, polled(Status.PROCESSING)),
    "pending after": (of_first, polled(Status.SUCCEEDED, result=FACES)),
    "unconfirmed for the second": 2,
    "queued": (of_second, fact(Source.SUBMIT, Status.QUEUED)),
    "processing": (of_second, told(Status.PROCESSING, progress=30)),
}
#: How it may end, and after what.
ENDS: Final[dict[str, tuple[str, Any]]] = {
    "succeeded": ("processing", (of_second, told(Status.SUCCEEDED, outputs=VIDEO))),
    "failed": ("processing", (of_second, told(Status.FAILED, error=REFUSED))),
    "cancelled": ("queued", (of_second, polled(Status.CANCELLED))),
    "expired": ("queued", (None, fact(Source.DEADLINE, Status.EXPIRED))),
    "expired before the first": ("pending", (None, fact(Source.DEADLINE, Status.EXPIRED))),
    "expired during the first": ("first processing", (None, fact(Source.DEADLINE, Status.EXPIRED))),
    "failed by the first": ("first processing", (of_first, polled(Status.FAILED, error=REFUSED))),
    "failed by the operator": ("unconfirmed before the first", (None, ours(Status.FAILED, error=REFUSED))),
}
STATES: Final = (*LIFE, *ENDS)

#: Until here the second was not sent.
BEFORE: Final = list(LIFE)[:5]
#: Until here the first has not succeeded.
DURING: Final = BEFORE[:4]
#: Where it has.
DONE: Final = [*list(LIFE)[4:], *list(ENDS)[:4]]


async def brought_to(desk: Steps, state: str) -> str:
    """A new job that is in this state."""
    job_id = await desk.order()
    last = ENDS[state][0] if state in ENDS else state
    moves = [*list(LIFE.values())[: list(LIFE).index(last) + 1], *([ENDS[state][1]] if state in ENDS else [])]
    for move in moves:
        if isinstance(move, int):
            assert await desk.send(job_id, move) == "apply"
        elif move:
            of, seen = move
            assert await desk.tell(job_id, of(seen, job_id) if of else seen) == "apply"
    word = state.split(" ")[0]
    assert (await desk.job(job_id)).status == ("pending" if word == "first" else word)
    await desk.redis.delete("rq:queue:callsheet-submit")  # a worker has taken what was there
    return job_id


#: Paths by which the vendor's word comes.
VOICES: Final = {"submit": Source.SUBMIT, "callback": Source.CALLBACK, "poll": Source.POLL, "shared": Source.CALLBACK}


async def say(desk: Steps, job_id: str, voice: str, seen: Observation) -> str:
    """Tell a fact by one of the paths. Its outcome."""
    seen = msgspec.structs.replace(seen, source=VOICES[voice])
    if voice == "shared":
        return await desk.hint(seen)
    return await desk.tell(job_id, seen)


def facts_about_the_first(status: Status) -> Observation:
    """All that a vendor may say of it, and none of it is the job's."""
    return Observation(
        source=Source.POLL,
        status=status,
        progress=77,
        result=FACES if status is Status.SUCCEEDED else None,
        error=JobError(code="no_face", message="no face") if status is Status.FAILED else None,
    )


# -- every fact about the first, in every state --------------------------------------------------------------

VENDORS_WORDS: Final = (Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)
PATHS: Final = [
    (voice, named)
    for voice, named in product(VOICES, ("id", "model", "both", "neither"))
    if voice != "shared" or named in ("id", "both")
]

#: How far the first has come in a state in which more can be learned of it.
COME: Final = dict.fromkeys(DURING[:2], 0) | {"first queued": 1, "first processing": 2}
#: The states in which its id is not known.
UNKNOWN: Final = (*DURING[:2], "expired before the first", "failed by the operator")


class Effect(NamedTuple):
    """What a fact does to a job."""

    outcome: str = "nothing"  #: `same` and `stale` are both that
    changed: frozenset[str] = frozenset()
    heard: tuple[str, ...] = ()
    pushed: int = 0
    noted: bool = False  #: its task is among those that should move


def expected(state: str, status: Status, voice: str, noted: bool) -> Effect:
    """The effect of a fact about the first."""
    if voice == "shared" and state in UNKNOWN:
        return Effect("parked", noted=noted)
    rank = {Status.QUEUED: 1, Status.PROCESSING: 2, Status.SUCCEEDED: 3}.get(status, 4)
    if rank <= COME.get(state, 4):
        return Effect(noted=noted)
    if status in VERDICTS and voice == "shared":
        return Effect("ask", noted=noted)
    if rank == 4:
        error = {"error"} if status is Status.FAILED else set()
        return Effect("apply", frozenset({"status", "completed_at"} | error), (f"job.{status}",))
    changed = {"status"} if "unconfirmed" in state else set()
    if status is not Status.SUCCEEDED:
        return Effect("apply", frozenset(changed))
    return Effect("apply", frozenset(changed | {"result"}), pushed=1, noted=True)


@pytest.mark.parametrize("status", VENDORS_WORDS)
@pytest.mark.parametrize("state", STATES)
async def test_what_a_fact_about_the_first_does(desk: Steps, state: str, status: Status) -> None:
    found, wanted = {}, {}
    for voice, named in PATHS:
        if named == "neither" and state not in (DURING if voice == "submit" else BEFORE):
            continue  # nobody can tell what it is about; or it is what became of preparing or sending the second
        job_id = await brought_to(desk, state)
        before, heard, noted = await desk.job(job_id), await desk.types(job_id), await desk.is_noted(job_id)
        outcome = await say(desk, job_id, voice, of_first(facts_about_the_first(status), job_id, named))
        after = await desk.job(job_id)
        found[voice, named] = Effect(
            outcome="nothing" if outcome in ("same", "stale") else outcome,
            changed=frozenset(name for name in Job.__struct_fields__ if getattr(before, name) != getattr(after, name)),
            heard=tuple((await desk.types(job_id))[len(heard) :]),
            pushed=await desk.pushed(job_id),
            noted=await desk.is_noted(job_id),
        )
        wanted[voice, named] = expected(state, status, voice, noted)
        if outcome == "apply":
            assert after.status is (status if wanted[voice, named].heard else Status.PENDING)
            assert STEP in (await desk.last(job_id))["why"]
        assert await desk.step_done(job_id) is (state in DONE or found[voice, named].pushed == 1)
        assert await desk.indexes(job_id) == [f"callsheet:jobs:{VENDOR}:{after.status}:{after.archive}"]
    assert found == wanted


@pytest.mark.parametrize("named", ["id", "both"])
@pytest.mark.parametrize("state", STATES)
async def test_the_firsts_id_finds_the_job_in_every_state(desk: Steps, state: str, named: str) -> None:
    job_id = await brought_to(desk, state)
    seen = of_first(facts_about_the_first(Status.PROCESSING), job_id, named)
    await desk.tell(job_id, seen)
    assert await desk.store.find(VENDOR, f"first-{job_id}") == job_id
    assert await desk.hint(seen) in ("same", "stale")
    second = (await desk.job(job_id)).vendor_job_id
    assert second == (f"second-{job_id}" if state in DONE[2:] else None)


# -- the way of a job ----------------------------------------------------------------------------------------


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


async def test_a_job_whose_first_has_failed_hears_no_more_of_it(desk: Steps) -> None:
    job_id = await brought_to(desk, "first queued")
    assert await desk.tell(job_id, of_first(told(Status.FAILED, error=REFUSED), job_id)) == "apply"
    job = await desk.job(job_id)
    assert (job.status, job.error, job.model) == (Status.FAILED, REFUSED, MODEL)
    assert await desk.types(job_id) == ["job.failed"]
    assert (await desk.due(job_id), await desk.due(job_id, "deadlines")) == (None, None)
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (0, False)
    assert await desk.tell(job_id, of_first(polled(Status.SUCCEEDED, result=FACES), job_id)) == "stale"
    assert await desk.pushed(job_id) == 0


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


# -- asking -----------------------------------------------------------------------------------------------


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


async def test_a_first_that_has_expired_sets_nothing_off(desk: Steps) -> None:
    job_id = await brought_to(desk, "expired during the first")
    assert await desk.tell(job_id, of_first(polled(Status.SUCCEEDED, result=FACES), job_id)) == "stale"
    assert (await desk.pushed(job_id), await desk.is_noted(job_id)) == (0, False)
    assert (await desk.job(job_id)).status is Status.EXPIRED
    assert await desk.types(job_id) == ["job.expired"]


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


# -- ids -------------------------------------------------------------------------------------------------


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


# -- whatever is said in whatever order ---------------------------------------------------------------------

#: What is told, how the vendor puts it, by which path, and what of it is named.
Word = tuple[str, Status, str, str]


@st.composite
def words(draw: st.DrawFn) -> Word:
    which = draw(st.sampled_from(("first", "first", "second")))
    named = draw(st.sampled_from(("id", "both")))
    return which, draw(st.sampled_from(VENDORS_WORDS)), draw(st.sampled_from(tuple(VOICES))), named


#: What comes from elsewhere, and what cannot be understood.
OTHERS: Final[tuple[Word, ...]] = tuple(
    (what, Status.PENDING, "", "") for what in ("send", "send", "resend", "fail", "expire", "odd", "odd first", "look")
)


@hypothesis.given(said=st.lists(words() | st.sampled_from(OTHERS), min_size=1, max_size=18))
@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
async def test_whatever_is_said_in_whatever_order_such_a_job_stays_sound(desk: Steps, said: list[Word]) -> None:
    await desk.redis.delete(desk.store.key("stream"), "rq:queue:callsheet-submit")  # of the example before
    job_id = await desk.order()
    for number, word in enumerate(said):
        await said_and_checked(desk, job_id, word, number)
    events = [msgspec.json.decode(event, type=Event) for event in await desk.stream()]
    check_events(job_id, events)


async def said_and_checked(desk: Steps, job_id: str, word: Word, number: int) -> None:
    """Tell one fact, and hold the job before it against the job after it."""
    what, status, _, _ = word
    before, done = await desk.job(job_id), await desk.step_done(job_id)
    types, known, pushed = await desk.types(job_id), await desk.ids_told(job_id), await desk.pushed(job_id)
    if what == "second" and (not done or before.status is Status.PENDING):
        return  # it was not sent: there is nothing that could be said of it
    outcome = await told_by(desk, job_id, word, number)
    after, now_done = await desk.job(job_id), await desk.step_done(job_id)

    if what == "first":
        ended = outcome == "apply" and status in (Status.FAILED, Status.CANCELLED)
        turned = (before.status, after.status) == (Status.UNCONFIRMED, Status.PENDING)
        assert after.status is (status if ended else before.status) or (turned and outcome == "apply")
        assert not (done and ended), "a first that has succeeded ends nothing"
        assert (await desk.types(job_id))[len(types) :] == ([f"job.{status}"] if ended else [])
        assert (now_done and not done) == (outcome == "apply" and status is Status.SUCCEEDED)
        assert await desk.pushed(job_id) - pushed == now_done - done
        assert (after.vendor_job_id, after.progress) == (before.vendor_job_id, before.progress)
    else:
        assert now_done is done
        assert await desk.pushed(job_id) - pushed == (what == "resend" and outcome == "apply")
    if what in ("send", "resend", "fail"):
        needed = Status.PENDING if what == "send" else Status.UNCONFIRMED
        assert outcome == ("apply" if before.status is needed else "changed")

    assert after.model == MODEL or what == "second"
    ids = await desk.ids_told(job_id)
    assert ids[: len(known)] == known
    assert set(ids) <= {f"first-{job_id}", f"second-{job_id}"}
    assert len(set(ids)) == len(ids)
    assert after.vendor_job_id in (None, f"second-{job_id}")
    assert after.vendor_job_id or f"second-{job_id}" not in ids
    announced = set(await desk.types(job_id))
    assert (after.submitted_at is not None) is ("job.submitted" in announced) or "job.expired" in announced
    assert await desk.indexes(job_id) == [f"callsheet:jobs:{VENDOR}:{after.status}:{after.archive}"]
    over = after.status in VERDICTS or after.status is Status.EXPIRED
    assert (await desk.due(job_id, "deadlines") is None) is over
    assert over or await desk.is_noted(job_id) or await desk.due(job_id) is not None, "it moves by itself"
    assert after.status in (Status.PENDING, Status.UNCONFIRMED) or not await desk.is_noted(job_id)


async def told_by(desk: Steps, job_id: str, word: Word, number: int) -> str:
    """Tell it; the outcome."""
    what, status, voice, named = word
    unconfirmed = {"status": Status.UNCONFIRMED}
    odd = told(problem=Problem.UNKNOWN_STATUS, detail="paused")
    match what:
        case "first":
            return await say(desk, job_id, voice, of_first(facts_about_the_first(status), job_id, named))
        case "second":
            return await say(desk, job_id, voice, of_second(fact(Source.POLL, status), job_id))
        case "send":
            return await desk.send(job_id, number)
        case "resend":
            return await desk.tell(job_id, ours(Status.PENDING), task="submit", retry_in=0, expect=unconfirmed)
        case "fail":
            return await desk.tell(job_id, ours(Status.FAILED, error=REFUSED), expect=unconfirmed)
        case "expire":
            return await desk.tell(job_id, fact(Source.DEADLINE, Status.EXPIRED))
        case "odd":
            return await desk.tell(job_id, odd)
        case "odd first":
            return await desk.tell(job_id, of_first(odd, job_id))
        case _:
            return await desk.tell(job_id, ours(detail="look again"), poll_now=True)
