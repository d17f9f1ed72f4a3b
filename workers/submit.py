"""Sends a job to its vendor, once: the row is there → what it lacks is found → it is marked → it is sent → the answer.

`send_order` is the RQ task. It is safe to run twice and to be killed anywhere: a lease lets one run in, and whoever
wants to send first commits that it is `unconfirmed`, which only one can. From then on nobody sends it again by himself:
where no answer was recorded, a callback may tell, or the vendor's list (`LOOKS` times), and else the operator has to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Final, Unpack
from uuid import uuid4

import httpx
import msgspec
from msgspec.structs import replace

from service import logs, metrics
from service.deployment import Deployment, configured, opened
from service.jobs import tasks
from service.jobs.scripts import Line
from service.jobs.store import Ordered
from service.jobs.tracker import Circumstances
from service.model import Job, JobError, Observation, Problem, Source, Status
from service.vendors import VENDORS, catalogue
from service.vendors.base import ListPage, Refusal
from service.vendors.catalogue import Order
from workers import outbound
from workers.held import Lease, held
from workers.upload import NotReady, Uploader, said
from workers.vendor_client import CALL_SECONDS, Answer, VendorClient

#: Refusals after which the same order goes out again: they say that the vendor took nothing, and not because of it.
_PASSING: Final = frozenset({"rate_limited", "vendor_unreachable"})
#: How far the vendor's clock may be from ours, where its list is searched for a job that was sent.
SKEW: Final = timedelta(seconds=5)
MAX_PAGES: Final = 20

_log = logs.get("submit")


class Submitter:
    """What sending takes."""

    def __init__(self, deployment: Deployment, http: httpx.AsyncClient, interrupted: asyncio.Event) -> None:
        """`http` is a client that uses no connection twice."""
        self._store = deployment.store
        self._calls = deployment.calls
        self._tracker = deployment.tracker
        self._tokens = deployment.tokens
        self._accounts = deployment.settings.accounts
        self._vendors = VendorClient(deployment, http)
        self._uploader = Uploader(self._vendors, http, deployment.settings.max_output_bytes, interrupted)

    async def send(self, job_id: str) -> str:
        """One step on the way of a job to its vendor. Returns what came of it in a word."""
        async with held(self._store, tasks.SUBMIT, job_id) as lease:
            if lease is None:
                return "held by another run"
            job, ordered = await self._store.job(job_id), await self._store.ordered(job_id)
            if job is None or ordered is None:
                return "nothing to do"
            if job.status not in (Status.PENDING, Status.UNCONFIRMED):
                return "nothing to do"
            step = self._go_on if job.status is Status.PENDING else self._look_for
            outcome = await step(job, ordered, lease)
            if outcome not in ("apply", "note", "waits"):  # a callback was here meanwhile, and found the lease held
                await self._store.alive(lease.name, 1)
            return outcome

    async def _go_on(self, job: Job, ordered: Ordered, lease: Lease) -> str:
        asked = ordered.submission
        if not (account := self._accounts[job.vendor]).complete:  # whoever accepted it has some
            trouble = NotReady("vendor_unreachable", f"this worker has no credentials: set {account.wanted}")
            return await self._not_ready(job, ordered, trouble)
        try:
            order = catalogue.rebuild(job.vendor, asked.model, asked.input, asked.vendor_input)
        except (LookupError, msgspec.ValidationError) as gone:  # an earlier release had accepted it
            return await self._failed(job, Refusal(code="invalid_input", message=str(gone)), b"")
        try:
            async with lease.alive():
                said(await self._vendors.ready(job.vendor))
                first = None if ordered.step_done else catalogue.first_of(order)
                order = first or await self._complete(job, order, ordered)
        except NotReady as trouble:
            return await self._not_ready(job, ordered, trouble)
        return await self._order(job, order, ordered, lease)

    # -- what the order lacks ----------------------------------------------------------------------------

    async def _complete(self, job: Job, order: Order, ordered: Ordered) -> Order:
        """The order with what the step before it found, and with files in place of URLs."""
        found = dict(ordered.prepared)
        if ordered.step_done and order.model.first and not found:
            choice = order.model.first.choose(order.vendor_input, job.result or {})
            if isinstance(choice, JobError):
                raise NotReady(choice.code, choice.message)
            found = choice.vendor_input
            await self._prepared(job, found, choice.words)
        for field, url in catalogue.to_upload(order).items():
            target = order.model.uploads[field]
            if target not in found:
                found[target] = await self._uploader.upload(job.vendor, field, url)
                await self._prepared(job, found, f"{field} is at the vendor as {found[target]}")
        return catalogue.prepared(order, found)

    async def _prepared(self, job: Job, found: dict[str, object], words: str) -> None:
        await self._record(job, Observation(source=Source.SUBMIT, detail=words), prepared=found)

    async def _not_ready(self, job: Job, ordered: Ordered, trouble: NotReady) -> str:
        """Nothing was ordered yet: try again later, or give the job up where that is no use."""
        made, delays = ordered.attempts, tasks.PREPARE_RETRIES
        if trouble.code not in _PASSING and (not trouble.passing or made >= len(delays)):
            no = Refusal(code=trouble.code, message=trouble.message)
            return await self._failed(job, no, b"", retryable=trouble.passing)
        wait = max(trouble.retry_after, delays[min(made, len(delays) - 1)])
        words = f"attempt {made + 1}: {trouble.code}: {trouble.message}; next in {wait:.0f} s"
        seen = Observation(source=Source.SUBMIT, problem=Problem.NOT_SENT, detail=words)
        return await self._record(job, seen, task=tasks.SUBMIT, retry_in=wait)

    # -- sending -----------------------------------------------------------------------------------------

    async def _order(self, job: Job, order: Order, ordered: Ordered, lease: Lease, *, renewed: bool = False) -> str:
        """Send it when its turn has come. Exactly one run gets past the mark, and none of them twice.

        `renewed`: the vendor has refused our token once already, and this is with a new one.
        """
        slug, model = job.vendor, order.model.name
        limit = self._accounts[slug].limits.get("submit")
        if wait := await self._calls.submit_turn(slug, job.id, Line.of(limit) if limit else None):
            metrics.rate_limit_wait_seconds(slug, "submit").observe(wait)
            return await self._wait(job, wait)
        sending, began = uuid4().hex, time.monotonic()
        seen = Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED, detail=f"{model}: sent")
        expect: dict[str, object] = {"status": Status.PENDING}
        if not ordered.step_done:
            expect["_step_at"] = None  # a job whose first step is under way is pending again
        marked = await self._record(job, seen, sending=sending, expect=expect)
        if marked != "apply":
            return marked
        callback_url = self._tokens.url(slug, job.id)
        request = VENDORS[slug].submit_request(model, order.input, order.vendor_input, callback_url)
        async with lease.alive():
            answer = await self._vendors.submit(slug, request)
        no = answer.reading.code if isinstance(answer.reading, Refusal) else answer.reading.problem
        metrics.submissions(slug, "unanswered" if answer.lost else no or "taken").inc()
        if isinstance(answer.reading, Refusal):
            age_ms = int((time.monotonic() - began) * 1000)
            done = await self._refused(job, answer.reading, answer, sending, age_ms, again=answer.stale and not renewed)
            again = done == "apply" and answer.stale and not renewed
            return await self._order(job, order, ordered, lease, renewed=True) if again else done
        if answer.reading.problem is not None:
            return await self._unanswered(job, answer.reading, answer.raw, sending)
        taken = await self._record(job, replace(answer.reading, model=model, detail=model), raw=answer.raw)
        await self._calls.well(slug, "submit")
        return taken

    async def _wait(self, job: Job, seconds: float) -> str:
        """Until its turn; said again only where that is not about when it was said to be."""
        known = job.scheduled_at.timestamp() - await self._store.now_ms() / 1000 if job.scheduled_at else -SKEW.seconds
        if abs(known - seconds) < SKEW.seconds:
            await self._store.alive(f"{tasks.SUBMIT}-{job.id}", seconds)
            return "waits"
        seen = Observation(source=Source.SUBMIT, detail="waits for its turn")
        return await self._record(job, seen, task=tasks.SUBMIT, retry_in=seconds)

    async def _refused(
        self, job: Job, no: Refusal, answer: Answer[Observation], sending: str, age_ms: int, *, again: bool
    ) -> str:
        if answer.lost:
            words = f"{no.code}: {no.message}"
            seen = Observation(source=Source.SUBMIT, problem=Problem.NO_ANSWER, detail=words)
            return await self._unanswered(job, seen, answer.raw, sending)
        if again:
            seen = Observation(source=Source.SUBMIT, status=Status.PENDING, detail="not taken: the token had died")
            return await self._record(job, seen, expect={"_sent": sending})
        if no.code not in _PASSING:
            await self._calls.well(job.vendor, "submit")  # it answers
            return await self._failed(job, no, answer.raw, sending)
        wait = await self._calls.unwell(job.vendor, int(answer.retry_after * 1000), "submit", age_ms)
        seen = Observation(source=Source.SUBMIT, status=Status.PENDING, detail=f"not taken: {no.code}: {no.message}")
        return await self._record(
            job, seen, raw=answer.raw, task=tasks.SUBMIT, retry_in=wait, expect={"_sent": sending}
        )

    async def _failed(
        self, job: Job, no: Refusal, raw: bytes, sending: str | None = None, *, retryable: bool = False
    ) -> str:
        """The vendor does not want it, or it cannot be made into what the vendor wants."""
        error = JobError(code=no.code, message=no.message, retryable=no.retryable or retryable)
        seen = Observation(source=Source.SUBMIT, status=Status.FAILED, error=error, detail=f"{no.code}: {no.message}")
        expect = {"_sent": sending} if sending else {"status": Status.PENDING}
        return await self._record(job, seen, raw=raw, expect=expect)

    # -- sent, and not answered --------------------------------------------------------------------------

    async def _unanswered(self, job: Job, seen: Observation, raw: bytes, sending: str) -> str:
        """Nobody knows what became of it. It stays `unconfirmed` until somebody does."""
        expect = {"status": Status.UNCONFIRMED, "_sent": sending}  # the operator may have sent it on its way again
        if seen.vendor_job_id:  # the poller asks what it is
            return await self._record(job, seen, raw=raw, task=tasks.SUBMIT, poll_now=True, expect=expect)
        if VENDORS[job.vendor].LIST_PAGE:
            return await self._record(job, seen, raw=raw, task=tasks.SUBMIT, retry_in=tasks.LOOKS[0], expect=expect)
        return await self._hand_over(job, seen.detail or "", expect, raw)

    async def _hand_over(self, job: Job, why: str, expect: Mapping[str, object], raw: bytes = b"") -> str:
        _log.error("sent and not answered: an operator has to look", vendor=job.vendor, job_id=job.id, why=why)
        words = f"{why}; a callback may still tell, or say what is true with 'callsheet jobs resolve'"
        seen = Observation(source=Source.SUBMIT, problem=Problem.NO_ANSWER, detail=words)
        return await self._record(job, seen, raw=raw, task=tasks.SUBMIT, expect=expect)

    async def _look_for(self, job: Job, ordered: Ordered, lease: Lease) -> str:
        """Look for the job in the vendor's list; adopt what can be nothing else."""
        expect = {"status": Status.UNCONFIRMED, "_sent_at": ordered.sent_at_ms}
        if not VENDORS[job.vendor].LIST_PAGE:
            return await self._hand_over(job, "the process that sent it died before the answer came", expect)
        async with lease.alive():
            found = await self._candidates(job, ordered)
        if isinstance(found, list) and len(found) == 1:
            seen = replace(found[0], source=Source.POLL, detail="found in the vendor's list")
            return await self._record(job, seen)
        why = found if isinstance(found, str) else f"{len(found) or 'none'} of the vendor's jobs could be this one"
        if ordered.attempts >= len(tasks.LOOKS):
            return await self._hand_over(job, why, expect)
        seen = Observation(source=Source.POLL, problem=Problem.NO_ANSWER, detail=why)
        again_in = tasks.LOOKS[ordered.attempts]
        return await self._record(job, seen, task=tasks.SUBMIT, retry_in=again_in, expect=expect)

    async def _candidates(self, job: Job, ordered: Ordered) -> list[Observation] | str:
        """The vendor's jobs that nobody here knows, made when this one was sent; or why there is no telling."""
        since = datetime.fromtimestamp(ordered.sent_at_ms / 1000, tz=job.created_at.tzinfo)
        until = since + timedelta(seconds=CALL_SECONDS)
        found: list[Observation] = []
        for number in range(MAX_PAGES):
            page = (await self._vendors.list_page(job.vendor, number)).reading
            if isinstance(page, Refusal):
                return f"the vendor's list cannot be read: {page.code}: {page.message}"
            asked = ordered.submission.input
            older, more = await self._strangers(job, asked, page, since - SKEW, until + SKEW)
            found += more
            if older or not page.more:
                break
        # Behind the list: what was being sent while that was read is unconfirmed now, or has its id.
        others = await self._store.unsettled(job.vendor)
        near = CALL_SECONDS + 2 * SKEW.seconds
        if any(abs(at - ordered.sent_at_ms) < near * 1000 for id_, at in others.items() if id_ != job.id):
            return "of other jobs that were sent at about the same time nobody knows either"
        if any(seen.submitted_at is None for seen in found):
            return "the vendor does not tell when its jobs were made"
        return found

    async def _strangers(
        self, job: Job, asked: Mapping[str, object], page: ListPage, since: datetime, until: datetime
    ) -> tuple[bool, list[Observation]]:
        """Those of a page that no job of ours has, made between the two times; and whether it goes back further."""
        ids = [row.vendor_job_id for row in page.observations if row.vendor_job_id]
        unknown, found = await self._store.unknown(job.vendor, ids), list[Observation]()
        for row in page.observations:
            id_, seen, raw = row.vendor_job_id, row, b""
            if id_ in unknown and row.submitted_at is None:  # rows are sparse
                answer = await self._vendors.status(job.vendor, id_)
                if isinstance(answer.reading, Observation) and answer.reading.problem is None:
                    seen, raw = answer.reading, answer.raw
            if seen.submitted_at is not None and seen.submitted_at < since:
                return True, found  # the newest come first
            fits = seen.submitted_at is None or seen.submitted_at <= until
            alike = seen.model in (None, job.model) and VENDORS[job.vendor].resembles(asked, raw)
            if id_ in unknown and fits and alike:
                found.append(seen)
        return False, found

    async def _record(self, job: Job, seen: Observation, **how: Unpack[Circumstances]) -> str:
        recorded = await self._tracker.record(seen, vendor=job.vendor, job_id=job.id, **how)
        _log.info(
            "submit",
            vendor=job.vendor,
            job_id=job.id,
            status=seen.status,
            problem=seen.problem,
            detail=seen.detail,
            outcome=recorded.outcome,
        )
        return recorded.outcome


#: The submitter of a worker that runs many tasks at once. Under any other RQ worker each task brings its own.
shared: ContextVar[Submitter] = ContextVar("submitter")


async def send_order(job_id: str) -> str:
    """The RQ task: one step on the way of a job to its vendor."""
    if submitter := shared.get(None):
        return await submitter.send(job_id)
    settings = configured()
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks, reuse=False) as http,
    ):
        return await Submitter(deployment, http, asyncio.Event()).send(job_id)
