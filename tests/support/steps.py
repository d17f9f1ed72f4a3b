"""A job that takes two of a vendor's jobs, in any state of its life: the first finds what the second needs."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

from service.model import Cost, JobError, Observation, Source, Status, Submission
from tests.support.desk import REFUSED, VENDOR, VIDEO, Desk, fact, ours, polled, told

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


VENDORS_WORDS: Final = (Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)
