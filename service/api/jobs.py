"""`/v1/jobs`: submit, track, read, list, attach the vendor's id, refresh, resolve; timelines and outputs."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.api.auth import need
from service.api.problems import (
    ApiError,
    StoredFile,
    by_method,
    decode_body,
    decode_object,
    read_body,
    read_query,
)
from service.api.submissions import accepted, place_in_line, read_submission
from service.deployment import Deployment
from service.fields import Checks, FieldError
from service.jobs import tasks
from service.jobs.tracker import How, Recorded
from service.model import (
    MAX_DEPTH,
    MAX_JOB_ID,
    Archive,
    Job,
    JobError,
    Observation,
    Source,
    Status,
    new_id,
    too_deep,
)
from service.storage import file_name, served_type
from service.vendors import VENDORS
from service.vendors.inputs import VISIBLE

MAX_METADATA: Final = 16 * 1024

VendorJobId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_JOB_ID, pattern=rf"^{VISIBLE}+(?![\s\S])")]

_JOB_ID: Final = re.compile(r"job_[0-9a-v]{24}")
FILTERS: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {
    "vendor": frozenset(VENDORS),
    "status": frozenset(status.value for status in Status),
    "archive": frozenset(archive.value for archive in Archive),
    "vendor_job_id": re.compile(VISIBLE + "{1,200}"),
    "limit": re.compile(r"[1-9][0-9]?|100"),
    "cursor": _JOB_ID,
}

#: What keeps a stored file, whatever it is, from running in a browser as a page of this origin.
_INERT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TrackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A job that somebody else submits, or has submitted."""

    vendor: str
    vendor_job_id: VendorJobId | None = None
    model: str | None = None
    metadata: dict[str, object] = {}


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What became known about a tracked job."""

    vendor_job_id: VendorJobId | None = None
    metadata: dict[str, object] | None = None


class ResolveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has found out about a job that was sent and not answered.

    `adopt`: the vendor has it, as `vendor_job_id`. `resend` and `fail`: the vendor has not taken it.
    """

    action: Literal["adopt", "resend", "fail"]
    vendor_job_id: VendorJobId | None = None


def routes(deployment: Deployment) -> list[Route]:
    jobs = _Jobs(deployment)
    return [
        by_method("/jobs", GET=jobs.list_, POST=jobs.create),
        by_method("/jobs/{id}", GET=jobs.read, PATCH=jobs.attach),
        Route("/jobs/{id}/timeline", jobs.timeline, methods=["GET"]),
        Route("/jobs/{id}/outputs/{number}", jobs.output, methods=["GET"]),
        Route("/jobs/{id}/refresh", jobs.refresh, methods=["POST"]),
        Route("/jobs/{id}/resolve", jobs.resolve, methods=["POST"]),
    ]


class _Jobs:
    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.store
        self._tracker = deployment.tracker
        self._tokens = deployment.tokens
        self._storage = deployment.storage
        self._accounts = deployment.settings.accounts

    async def create(self, request: Request) -> Response:
        body = await read_body(request)
        given = decode_object(body)
        if given.keys() & {"input", "vendor_input"}:
            return await self._submit(request, body, given)
        wanted = decode_body(given, TrackRequest, _CHECKS)
        seen = Observation(
            source=Source.SUBMIT,
            status=Status.QUEUED if wanted.vendor_job_id else None,
            vendor_job_id=wanted.vendor_job_id,
            model=wanted.model,
            metadata=wanted.metadata,
            detail=self._no_account(wanted.vendor, "not polled"),
        )
        recorded = await self._create(request, body, seen, {"vendor": wanted.vendor})
        _refuse_taken(recorded, wanted.vendor_job_id)
        return await self._answer(recorded.job_id, 201, with_callback_url=True)

    async def _submit(self, request: Request, body: bytes, given: dict[str, msgspec.Raw]) -> Response:
        """The row, the first fact and the task that sends it, in one commit."""
        wanted, order = read_submission(given, _CHECKS)
        if why := self._no_account(wanted.vendor, "cannot submit"):
            raise ApiError(409, why)
        seen, submission = accepted(wanted, order)
        how: How = {
            "vendor": wanted.vendor,
            "order": submission,
            "line": place_in_line(self._accounts[wanted.vendor], order),
        }
        recorded = await self._create(request, body, seen, how)
        return await self._answer(recorded.job_id, 202, with_callback_url=True)

    async def _create(self, request: Request, body: bytes, seen: Observation, how: How) -> Recorded:
        how["job_id"] = new_id("job", await self._store.now_ms())
        how["create"], how["idempotency"] = True, _idempotency(request, body)
        recorded = await self._tracker.record(seen, **how)
        if recorded.outcome == "conflict":
            raise ApiError(409, "this Idempotency-Key was used with another body", job_id=recorded.job_id)
        return recorded

    async def list_(self, request: Request) -> Response:
        query = read_query(request, FILTERS)
        limit = int(query.get("limit", "20"))
        if vendor_job_id := query.get("vendor_job_id"):
            rows = (await self._by_vendor_job_id(vendor_job_id, query))[: limit + 1]
        else:
            names = ("vendor", "status", "archive")
            rows = await self._store.jobs_json(limit, query.get("cursor", ""), *(query.get(name, "") for name in names))
        more = len(rows) > limit
        last = msgspec.json.decode(rows[limit - 1], type=Job).id if more else None
        return _json(b'{"data":[' + b",".join(rows[:limit]) + b'],"next_cursor":' + msgspec.json.encode(last) + b"}")

    async def _by_vendor_job_id(self, vendor_job_id: str, query: dict[str, str]) -> list[bytes]:
        """Vendors choose their ids without asking each other, so there may be one job for each."""
        found: dict[str, bytes] = {}
        for vendor in [query["vendor"]] if "vendor" in query else VENDORS:
            job_id = await self._store.find(vendor, vendor_job_id)
            row = await self._store.job_json(job_id) if job_id else None
            job = msgspec.json.decode(row, type=Job) if row else None
            if (
                row
                and job
                and query.get("status", job.status) == job.status
                and query.get("archive", job.archive) == job.archive
            ):
                found[job.id] = row
        before = query.get("cursor", "k")  # sorts after every job id
        return [found[job_id] for job_id in sorted(found, reverse=True) if job_id < before]

    async def read(self, request: Request) -> Response:
        return await self._answer(request.path_params["id"], 200)

    async def attach(self, request: Request) -> Response:
        wanted = decode_body(decode_object(await read_body(request)), AttachRequest, _CHECKS)
        if wanted == AttachRequest():
            return await self.read(request)
        for _ in range(5):  # two callers may add metadata at the same time
            job = await self._job(request)
            merged = None if wanted.metadata is None else job.metadata | wanted.metadata
            if wrong := _metadata_is_wrong(merged or {}):
                raise ApiError(422, "the job's metadata would grow too large", [FieldError("metadata", wrong)])
            recorded = await self._tracker.record(
                Observation(
                    source=Source.SUBMIT if wanted.vendor_job_id else Source.OPERATOR,
                    status=Status.QUEUED if wanted.vendor_job_id else None,
                    vendor_job_id=wanted.vendor_job_id,
                    metadata=merged,
                ),
                vendor=job.vendor,
                job_id=job.id,
                expect={} if merged is None else {"metadata": job.metadata},
            )
            if recorded.outcome == "other_job":
                raise ApiError(409, f"the job already has the vendor_job_id {job.vendor_job_id!r}")
            _refuse_taken(recorded, wanted.vendor_job_id)
            if recorded.outcome != "changed":
                return await self._answer(job.id, 200)
        raise ApiError(409, "the job's metadata is being changed by others; try again")

    async def timeline(self, request: Request) -> Response:
        job = await self._job(request)
        return _json(b'{"data":[' + b",".join(await self._store.timeline_json(job.id)) + b"]}")

    async def output(self, request: Request) -> Response:
        job = await self._job(request)
        found = re.fullmatch(r"[0-9]{1,4}", request.path_params["number"])
        number = int(found[0]) if found else len(job.outputs)
        stored = job.outputs[number].stored if number < len(job.outputs) else None
        if stored is None:
            raise ApiError(404, f"the job has no such stored output; its archive is {job.archive.value!r}")
        path = self._storage.path(stored.key)
        if path is None:
            return RedirectResponse(await self._storage.signed_url(stored.key), 302, {"Cache-Control": "no-store"})
        if not path.is_file():
            raise ApiError(404, "the stored file is gone from storage")
        return StoredFile(
            path, media_type=served_type(stored.content_type), filename=file_name(stored.key), headers=_INERT
        )

    async def refresh(self, request: Request) -> Response:
        job = await self._job(request)
        why = (
            "its vendor_job_id is not known"
            if job.vendor_job_id is None
            else self._no_account(job.vendor, "not polled")
        )
        failed = job.archive is Archive.FAILED
        lost = job.status is Status.UNCONFIRMED and await self._store.ordered(job.id) is not None
        if why and not failed and not lost:
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
        return await self._answer(job.id, 202)

    async def resolve(self, request: Request) -> Response:
        need(request, "admin")
        wanted = decode_body(decode_object(await read_body(request)), ResolveRequest, {})
        job = await self._job(request)
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
            how |= {"task": tasks.SUBMIT, "retry_in": 0}
        else:
            error = JobError(code="not_taken", message="the vendor has not taken it, says the operator", retryable=True)
            seen = Observation(source=Source.OPERATOR, status=Status.FAILED, error=error, detail=error.message)
        recorded = await self._tracker.record(seen, **how)
        _refuse_taken(recorded, wanted.vendor_job_id)
        if recorded.outcome == "changed":
            raise ApiError(409, f"only an unconfirmed job can be resolved; this one is {job.status.value}")
        return await self._answer(job.id, 200)

    async def _job(self, request: Request) -> Job:
        return msgspec.json.decode(await self._row(request.path_params["id"]), type=Job)

    async def _row(self, job_id: str) -> bytes:
        row = await self._store.job_json(job_id) if _JOB_ID.fullmatch(job_id) else None
        if row is None:
            raise ApiError(404, f"there is no job {job_id[:40]!r}")
        return row

    async def _answer(self, job_id: str, status: int, *, with_callback_url: bool = False) -> Response:
        row = await self._row(job_id)
        if not with_callback_url:
            return _json(row, status)
        url = self._tokens.url(msgspec.json.decode(row, type=Job).vendor, job_id)
        row = row[:-1] + b',"callback_url":' + msgspec.json.encode(url) + b"}"
        return _json(row, status, {"Location": f"/v1/jobs/{job_id}", "Cache-Control": "no-store"})

    def _no_account(self, vendor: str, so: str) -> str | None:
        account = self._accounts[vendor]
        return None if account.complete else f"{so}: {vendor} has no credentials; set {account.wanted}"


def _vendor_is_wrong(vendor: str) -> str | None:
    return None if vendor in VENDORS else f"must be one of {', '.join(sorted(VENDORS))}"


def _metadata_is_wrong(metadata: dict[str, object] | None) -> str | None:
    if too_deep(metadata):
        return f"may be nested {MAX_DEPTH} levels deep"
    return f"may have {MAX_METADATA} bytes of JSON" if len(msgspec.json.encode(metadata)) > MAX_METADATA else None


_CHECKS: Final[Checks] = {"vendor": _vendor_is_wrong, "metadata": _metadata_is_wrong}


def _idempotency(request: Request, body: bytes) -> tuple[str, bytes] | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= 255:
        raise ApiError(400, "Idempotency-Key may have 1 to 255 characters")
    return f"{request.state.key_name}:{key}", body


def _refuse_taken(recorded: Recorded, vendor_job_id: str | None) -> None:
    if recorded.outcome == "taken":
        detail = f"the vendor's job {vendor_job_id!r} is tracked as {recorded.job_id}"
        raise ApiError(409, detail, [FieldError("vendor_job_id", detail)], job_id=recorded.job_id)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")
