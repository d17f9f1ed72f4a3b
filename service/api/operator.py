"""What operators do about one job: have its vendor asked now, and say what became of an unconfirmed one."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.auth import need
from service.api.problems import ApiError, decode_body, decode_object, read_body
from service.api.rows import Rows, VendorJobId, refuse_taken
from service.deployment import Deployment
from service.fields import FieldError
from service.jobs import tasks
from service.jobs.tracker import How
from service.model import Archive, JobError, Observation, Source, Status


class ResolveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has found out about a job that was sent and not answered.

    `adopt`: the vendor has it, as `vendor_job_id`. `resend` and `fail`: the vendor has not taken it.
    """

    action: Literal["adopt", "resend", "fail"]
    vendor_job_id: VendorJobId | None = None


def routes(deployment: Deployment) -> list[Route]:
    operator = _Operator(deployment)
    return [
        Route("/jobs/{id}/refresh", operator.refresh, methods=["POST"]),
        Route("/jobs/{id}/resolve", operator.resolve, methods=["POST"]),
    ]


class _Operator:
    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.store
        self._tracker = deployment.tracker
        self._rows = Rows(deployment)

    async def refresh(self, request: Request) -> Response:
        job = await self._rows.job(request)
        why = (
            "its vendor_job_id is not known"
            if job.vendor_job_id is None
            else self._rows.no_account(job.vendor, "not polled")
        )
        failed = job.archive is Archive.FAILED
        ordered = await self._store.ordered(job.id)
        lost = ordered is not None and job.status is Status.UNCONFIRMED
        first = ordered is not None and job.status is Status.PENDING and ordered.before_it
        if why and not failed and not lost and not first:
            raise ApiError(409, f"the vendor cannot be asked about this job: {why}")
        seen = Observation(
            source=Source.OPERATOR,
            archive=Archive.WAITING if failed else None,
            detail="asked to look again" + (" and to store the outputs" if failed else ""),
        )
        how: How = {"vendor": job.vendor, "job_id": job.id, "poll_now": True}
        if lost:
            how |= {"task": tasks.SUBMIT, "retry_in": 0}
        await self._tracker.record(seen, **how)
        return await self._rows.answer(job.id, 202)

    async def resolve(self, request: Request) -> Response:
        need(request, "admin")
        wanted = decode_body(decode_object(await read_body(request)), ResolveRequest, {})
        job = await self._rows.job(request)
        if (wanted.action == "adopt") != (wanted.vendor_job_id is not None):
            wrong = FieldError("vendor_job_id", "goes with the action adopt, and only with it")
            raise ApiError(422, "the request has fields that cannot be used", [wrong])
        how: How = {"vendor": job.vendor, "job_id": job.id, "expect": {"status": Status.UNCONFIRMED}}
        if wanted.action == "adopt":
            seen = Observation(
                source=Source.SUBMIT,
                status=Status.QUEUED,
                vendor_job_id=wanted.vendor_job_id,
                detail="the operator knows its id at the vendor",
            )
        elif wanted.action == "resend":
            words = "the operator: the vendor has not taken it; it is sent again"
            seen = Observation(source=Source.OPERATOR, status=Status.PENDING, detail=words)
            how |= {
                "task": tasks.SUBMIT,
                "retry_in": 0,
                "expect": {"status": Status.UNCONFIRMED, "vendor_job_id": None},
            }
        else:
            error = JobError(code="not_taken", message="the vendor has not taken it, says the operator", retryable=True)
            seen = Observation(source=Source.OPERATOR, status=Status.FAILED, error=error, detail=error.message)
        recorded = await self._tracker.record(seen, **how)
        refuse_taken(recorded, wanted.vendor_job_id)
        if recorded.outcome == "other_job":
            raise ApiError(409, f"the job already has the vendor_job_id {job.vendor_job_id!r}")
        if recorded.outcome == "changed":
            known = f", and has the vendor_job_id {job.vendor_job_id!r}" if job.vendor_job_id else ""
            raise ApiError(409, f"only an unconfirmed job can be resolved so; this one is {job.status.value}{known}")
        return await self._rows.answer(job.id, 200)
