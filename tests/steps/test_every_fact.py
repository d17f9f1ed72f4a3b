"""The door's rules for a job that takes two of a vendor's jobs: every fact about the first, in every state and order.

What is said about the first is kept apart: it moves the job's status only where it fails, and sets the second off once.
"""

from __future__ import annotations

from itertools import product
from typing import Final, NamedTuple

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from service.model import VERDICTS, Event, Job, Problem, Source, Status
from tests.support.desk import REFUSED, VENDOR, check_events, fact, ours, told
from tests.support.steps import (
    BEFORE,
    DONE,
    DURING,
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
