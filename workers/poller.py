"""The poller: asks vendors about jobs whose callback has not come, ends what nobody can end, and sweeps.

Its own process; any number of them share the work. A job that is due is claimed with a lease, so that a poller that
dies delays it and loses nothing. Each vendor has a loop of its own: one that hangs holds up no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import uvloop
from redis import RedisError

from service import logs, metrics
from service.deployment import Deployment, configured, opened
from service.jobs.store import Claim
from service.jobs.tracker import CommitFailed
from service.model import Observation, Problem, Source, Status
from service.vendors import VENDORS
from service.vendors.base import Refusal
from workers import outbound
from workers.held import beating
from workers.stopping import stop_signal, stopped
from workers.vendor_client import Answer, VendorClient

#: Seconds between looks at what is due: how long "at once" may take.
TICK: Final = 0.5
#: A claimed job belongs to its poller for so long after the last sign of life.
LEASE_MS: Final = 30_000
CLAIM: Final = 100
IN_FLIGHT: Final = 16
#: Seconds that calls under way have when the process stops.
GRACE: Final = 5.0
#: From so many due jobs on, a vendor's list call is cheaper than asking for each.
LIST_FROM: Final = 2
MAX_PAGES: Final = 20

#: What a vendor has told and the store has not taken is asked for again after so long.
UNTOLD_MS: Final = 10_000
#: So many errors in a row are enough to stop asking.
ENOUGH_ERRORS: Final = 3

#: Refusals that speak of the vendor or of our account with it, not of the job that was asked about.
_ABOUT_THE_VENDOR: Final = frozenset({"rate_limited", "unauthorized", "insufficient_credit", "vendor_unreachable"})
#: Answers that are none.
_GARBAGE: Final = frozenset({Problem.BAD_JSON, Problem.BAD_SHAPE, Problem.TOO_LARGE})

#: Does some of what is due, and says whether there may be more.
Turn = Callable[[], Awaitable[bool]]

_log = logs.get("poller")


class Poller:
    """All the loops of one poller process."""

    def __init__(self, deployment: Deployment, vendors: VendorClient) -> None:
        self._store = deployment.store
        self._calls = deployment.calls
        self._tracker = deployment.tracker
        self._vendors = vendors
        self._settings = deployment.settings
        self._askable = [slug for slug, account in deployment.settings.accounts.items() if account.complete]

    async def run(self, stop: asyncio.Event) -> None:
        """Poll and sweep until `stop` is set. Calls that are not over soon after are cut: their claims run out."""
        turns: list[Turn] = [partial(self.look_after, slug) for slug in self._askable]
        loops = {asyncio.create_task(self._loop(stop, turn)) for turn in (*turns, self.expire, self.sweep)}
        loops |= {asyncio.create_task(self._loop(stop, turn, every=60)) for turn in (self.watch, self.retire)}
        await stop.wait()
        _, late = await asyncio.wait(loops, timeout=GRACE)
        for loop in late:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    async def _loop(self, stop: asyncio.Event, turn: Turn, every: float = TICK) -> None:
        """Take turns; at once while there is more to do, else after `every` seconds."""
        while not stop.is_set():
            try:
                if await turn():
                    continue
            except (RedisError, CommitFailed, OSError) as error:
                _log.warning("the store does not answer", error=type(error).__name__, detail=str(error)[:200])
            except Exception:  # a turn that stumbles over one job must not end the watch over all the others
                metrics.errors("poller").inc()
                _log.exception("a turn failed")
            await stopped(stop, every)

    # -- asking --------------------------------------------------------------------------------------

    async def look_after(self, slug: str) -> bool:
        """Ask a vendor about those of its jobs that are due. Whether there may be more of them."""
        listed = VENDORS[slug].LIST_PAGE > 0
        # One page tells of many: those that are due soon come along.
        early_ms = int(VENDORS[slug].RHYTHM.every * 1000) if listed else 0
        claims = await self._store.claim_polls(slug, LEASE_MS, CLAIM, early_ms)
        if not claims:
            return False
        left = {claim.vendor_job_id: claim for claim in claims}

        async def hold() -> None:
            until = await self._store.now_ms() + LEASE_MS
            await self._store.poll_again(slug, [claim.job_id for claim in left.values()], until)

        fine = True
        async with beating(hold, LEASE_MS / 3000):
            if listed and len(claims) >= LIST_FROM:
                fine = await self._look_at_list(slug, left)
            if fine and left:
                fine = await self._look_at_each(slug, left)
        if fine:
            await self._calls.well(slug)
        return fine and len(claims) == CLAIM

    async def _look_at_list(self, slug: str, left: dict[str, Claim]) -> bool:
        """Take what the list call tells about the due jobs out of `left`. False: the vendor is unwell.

        Pages are read as long as there are fewer of them than of jobs that would have to be asked for.
        """
        for page_number in range(MAX_PAGES):
            answer = await self._vendors.list_page(slug, page_number)
            page = answer.reading
            if isinstance(page, Refusal):
                if page.code in _ABOUT_THE_VENDOR:
                    return await self._refused(slug, page, answer.retry_after, left)
                _log.warning("list call refused", vendor=slug, code=page.code, detail=page.message[:200])
                break  # each job can still be asked for by its own call
            for seen in page.observations:
                claim = left.get(seen.vendor_job_id or "")
                # Rows are sparse: what failed a job, and what could not be understood, is asked for by its own call.
                if claim and seen.problem is None and seen.status is not Status.FAILED:
                    del left[claim.vendor_job_id]
                    await self._record(slug, claim, seen, b"")
            if len(left) <= page_number + 1 or not page.more:
                break
        return True

    async def _look_at_each(self, slug: str, left: dict[str, Claim]) -> bool:
        """Ask for each job in `left`, some at a time. False: the vendor is unwell.

        An error of the vendor's own, or garbage, may be about the one job that was asked for: that job keeps to its
        rhythm, and the vendor counts as unwell only where that is all that it has.
        """
        turns = asyncio.Semaphore(IN_FLIGHT)
        trial = any(claim.trial for claim in left.values())
        errors: list[Answer[Observation]] = []
        untold: list[str] = []
        answered = unwell = False

        async def look(claim: Claim) -> None:
            nonlocal answered, unwell
            async with turns:
                if unwell or (len(errors) >= ENOUGH_ERRORS and not answered):
                    return
                answer = await self._vendors.status(slug, claim.vendor_job_id)
                code = answer.reading.code if isinstance(answer.reading, Refusal) else answer.reading.problem or ""
                if code in _ABOUT_THE_VENDOR:
                    first, unwell = not unwell, True  # what fails at the same time is one failure
                    if first:
                        await self._refused(slug, answer.reading, answer.retry_after, left)
                    return
                left.pop(claim.vendor_job_id, None)
                if code == "vendor_error" or code in _GARBAGE:
                    errors.append(answer)
                else:
                    answered = True
                try:
                    await self._record(slug, claim, _observed(answer), answer.raw)
                except (RedisError, CommitFailed, OSError) as error:  # raised, it would end the others' looks
                    _log.warning("the store does not answer", error=type(error).__name__, detail=str(error)[:200])
                    untold.append(claim.job_id)

        async with asyncio.TaskGroup() as looks:
            for claim in list(left.values()):
                looks.create_task(look(claim))
        if not unwell and not answered and (len(errors) > 1 or (errors and trial)):
            unwell = True
            await self._refused(slug, errors[0].reading, errors[0].retry_after, left)
        if untold:
            await self._store.poll_again(slug, untold, await self._store.now_ms() + UNTOLD_MS)
        if not unwell:  # whom errors kept from being asked, before an answer came after all
            await self._store.poll_again(slug, [claim.job_id for claim in left.values()], await self._store.now_ms())
        return not unwell

    async def _record(self, slug: str, claim: Claim, seen: Observation, raw: bytes) -> None:
        recorded = await self._tracker.record(seen, vendor=slug, job_id=claim.job_id, raw=raw)
        metrics.polls(slug, seen.problem or recorded.outcome).inc()
        _log.info(
            "poll", vendor=slug, job_id=claim.job_id, status=seen.status, problem=seen.problem, outcome=recorded.outcome
        )

    async def _refused(
        self, slug: str, answer: Refusal | Observation, retry_after: float, left: dict[str, Claim]
    ) -> bool:
        """The vendor is unwell: leave it alone for a while, and look at the claimed jobs when it is tried again."""
        wait = await self._calls.unwell(slug, int(retry_after * 1000))
        at = await self._store.now_ms() + int(wait * 1000)
        jobs = [claim.job_id for claim in left.values()]
        left.clear()  # nobody holds them any longer
        await self._store.poll_again(slug, jobs, at)
        code, detail = (answer.code, answer.message) if isinstance(answer, Refusal) else (answer.problem, answer.detail)
        detail = (detail or "")[:200]
        metrics.polls(slug, code).inc()
        _log.warning("vendor unwell", vendor=slug, code=code, detail=detail, retry_in=wait, jobs=len(jobs))
        return False

    # -- what is due without any vendor ------------------------------------------------------------------

    async def expire(self) -> bool:
        """End the wait for jobs whose deadline has passed. A later verdict still lands."""
        due = await self._store.claim_deadlines(LEASE_MS, CLAIM)
        for job_id in due:
            job = await self._store.job(job_id)
            if job is None:
                continue
            seen = Observation(source=Source.DEADLINE, status=Status.EXPIRED, detail="no verdict by the deadline")
            recorded = await self._tracker.record(seen, vendor=job.vendor, job_id=job_id)
            _log.warning("expired", vendor=job.vendor, job_id=job_id, outcome=recorded.outcome)
        return len(due) == CLAIM

    async def sweep(self) -> bool:
        """Enqueue again whatever should have moved and did not."""
        pushed, more = await self._store.sweep(CLAIM)
        if pushed:
            metrics.swept.inc(pushed)
            _log.info("swept", tasks=pushed)
        return more

    async def retire(self) -> bool:
        """Forget jobs and payloads that have been kept for as long as the settings say."""
        now, day = await self._store.now_ms(), 86_400_000
        jobs, raw = self._settings.job_retention_days, self._settings.raw_retention_days
        gone = await self._store.retire(now - jobs * day, now - raw * day, CLAIM)
        if gone:
            _log.info("retired", jobs_and_letters=gone)
        if crowded_out := await self._store.crowded_out():
            _log.warning("callbacks crowd each other out: the oldest were dropped", **crowded_out)
        return gone == CLAIM

    async def watch(self) -> bool:
        """Look after jobs from before their vendor had credentials. Where there are some, there are more."""
        more = False
        for slug in self._askable:
            found = await self._store.watch(slug, await self._store.now_ms())
            if found:
                _log.info("watched from now on", vendor=slug, jobs=found)
                more = True
        return more


def _observed(answer: Answer[Observation]) -> Observation:
    if isinstance(answer.reading, Observation):
        return answer.reading
    problem = Problem.VENDOR_ERROR if answer.reading.code == "vendor_error" else Problem.UNKNOWN_JOB
    detail = f"{answer.reading.code}: {answer.reading.message}"
    return Observation(source=Source.POLL, problem=problem, detail=detail[:500])


async def run(deployment: Deployment, stop: asyncio.Event) -> None:
    """A poller over a deployment, until `stop` is set."""
    async with outbound.client(allow_private_networks=deployment.settings.allow_private_networks) as http:
        await Poller(deployment, VendorClient(deployment, http)).run(stop)


async def main() -> None:
    settings = configured()
    stop = stop_signal()
    async with opened(settings, "poller") as deployment:
        _log.info("poller started", vendors=[slug for slug, account in settings.accounts.items() if account.complete])
        await run(deployment, stop)
        _log.info("poller stopped")


if __name__ == "__main__":
    uvloop.run(main())
