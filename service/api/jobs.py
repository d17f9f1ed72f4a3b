"""`/v1/jobs`: submit, track, read, list, attach the vendor's id; timelines and outputs."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.api.problems import (
    ApiError,
    StoredFile,
    by_method,
    decode_body,
    decode_object,
    read_body,
    read_query,
)
from service.api.rows import JOB_ID, Rows, VendorJobId, json_answer, refuse_taken
from service.api.submissions import accepted, place_in_line, read_submission
from service.deployment import Deployment
from service.fields import Checks, FieldError
from service.jobs.tracker import How, Recorded
from service.model import (
    MAX_DEPTH,
    Archive,
    Job,
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

FILTERS: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {
    "vendor": frozenset(VENDORS),
    "status": frozenset(status.value for status in Status),
    "archive": frozenset(archive.value for archive in Archive),
    "vendor_job_id": re.compile(VISIBLE + "{1,200}"),
    "id": re.compile(VISIBLE + "{1,200}"),
    "limit": re.compile(r"[1-9][0-9]?|100"),
    "cursor": JOB_ID,
}

#: Our id, as it stands in a job's own, in an event's and in a delivery's.
_OURS: Final = re.compile(r"(?:job|evt)_([0-9a-v]{24})(?![0-9a-v])")
_LETTER: Final = re.compile(r"qua_[0-9a-f]{24}")

#: Beside what every answer says (app.py): a stored file, whatever it is, never runs as a page of this origin.
_INERT: Final = {"Content-Security-Policy": "sandbox; default-src 'none'"}


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


def routes(deployment: Deployment) -> list[Route]:
    jobs = _Jobs(deployment)
    return [
        by_method("/jobs", GET=jobs.list_, POST=jobs.create),
        by_method("/jobs/{id}", GET=jobs.read, PATCH=jobs.attach),
        Route("/jobs/{id}/timeline", jobs.timeline, methods=["GET"]),
        Route("/jobs/{id}/outputs/{number}", jobs.output, methods=["GET"]),
    ]


class _Jobs:
    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.store
        self._tracker = deployment.tracker
        self._storage = deployment.storage
        self._accounts = deployment.settings.accounts
        self._rows = Rows(deployment)

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
            detail=self._rows.no_account(wanted.vendor, "not polled"),
        )
        recorded = await self._create(request, body, seen, {"vendor": wanted.vendor})
        refuse_taken(recorded, wanted.vendor_job_id)
        return await self._rows.answer(recorded.job_id, 201, with_callback_url=True)

    async def _submit(self, request: Request, body: bytes, given: dict[str, msgspec.Raw]) -> Response:
        """The row, the first fact and the task that sends it, in one commit."""
        wanted, order = read_submission(given, _CHECKS)
        if why := self._rows.no_account(wanted.vendor, "cannot submit"):
            raise ApiError(409, why)
        seen, submission = accepted(wanted, order)
        how: How = {
            "vendor": wanted.vendor,
            "order": submission,
            "line": place_in_line(self._accounts[wanted.vendor], order),
        }
        recorded = await self._create(request, body, seen, how)
        return await self._rows.answer(recorded.job_id, 202, with_callback_url=True)

    async def _create(self, request: Request, body: bytes, seen: Observation, how: How) -> Recorded:
        how["job_id"] = new_id("job", await self._store.now_ms())
        how["create"], how["idempotency"] = True, _idempotency(request, body)
        recorded = await self._tracker.record(seen, **how)
        if recorded.outcome == "conflict":
            raise ApiError(409, "this Idempotency-Key was used with another body", job_id=recorded.job_id)
        return recorded

    async def list_(self, request: Request) -> Response:
        """The newest first; `id` is any: ours, the vendor's, an event's, a delivery's, a quarantined callback's."""
        query = read_query(request, FILTERS)
        limit = int(query.get("limit", "20"))
        if "id" in query or "vendor_job_id" in query:
            rows = (await self._by_id(query))[: limit + 1]
        else:
            names = ("vendor", "status", "archive")
            rows = await self._store.jobs_json(limit, query.get("cursor", ""), *(query.get(name, "") for name in names))
        more = len(rows) > limit
        last = msgspec.json.decode(rows[limit - 1], type=Job).id if more else None
        return json_answer(
            b'{"data":[' + b",".join(rows[:limit]) + b'],"next_cursor":' + msgspec.json.encode(last) + b"}"
        )

    async def _by_id(self, query: dict[str, str]) -> list[bytes]:
        """Vendors choose their ids without asking each other, so there may be one job for each."""
        found: dict[str, bytes] = {}
        for job_id in await self._named(query):
            row = await self._store.job_json(job_id)
            job = msgspec.json.decode(row, type=Job) if row else None
            names = ("vendor", "status", "archive", *(["vendor_job_id"] if "id" in query else []))
            if row and job and all(query.get(name, getattr(job, name)) == getattr(job, name) for name in names):
                found[job.id] = row
        before = query.get("cursor", "k")  # sorts after every job id
        return [found[job_id] for job_id in sorted(found, reverse=True) if job_id < before]

    async def _named(self, query: dict[str, str]) -> list[str]:
        """The jobs that an id may mean."""
        any_id = query.get("id") or query["vendor_job_id"]
        if "id" in query and (ours := _OURS.search(any_id)):
            return [f"job_{ours[1]}"]
        if "id" in query and _LETTER.fullmatch(any_id):
            letter = await self._store.letter(any_id)
            return [letter["job_id"].decode()] if letter else []
        found = [await self._store.find(vendor, any_id) for vendor in VENDORS]
        return [job_id for job_id in found if job_id]

    async def read(self, request: Request) -> Response:
        return await self._rows.answer(request.path_params["id"], 200)

    async def attach(self, request: Request) -> Response:
        wanted = decode_body(decode_object(await read_body(request)), AttachRequest, _CHECKS)
        if wanted == AttachRequest():
            return await self.read(request)
        for _ in range(5):  # two callers may add metadata at the same time
            job = await self._rows.job(request)
            ordered = await self._store.ordered(job.id)
            if wanted.vendor_job_id and ordered and ordered.before_it:
                step = ordered.submission.step
                raise ApiError(
                    409, f"the vendor's job before it ({step}) has not been done: 'resolve' says what became of that"
                )
            merged = None if wanted.metadata is None else job.metadata | wanted.metadata
            if wrong := metadata_is_wrong(merged or {}):
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
            refuse_taken(recorded, wanted.vendor_job_id)
            if recorded.outcome != "changed":
                return await self._rows.answer(job.id, 200)
        raise ApiError(409, "the job's metadata is being changed by others; try again")

    async def timeline(self, request: Request) -> Response:
        job = await self._rows.job(request)
        return json_answer(b'{"data":[' + b",".join(await self._store.timeline_json(job.id)) + b"]}")

    async def output(self, request: Request) -> Response:
        job = await self._rows.job(request)
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


def _vendor_is_wrong(vendor: str) -> str | None:
    return None if vendor in VENDORS else f"must be one of {', '.join(sorted(VENDORS))}"


def metadata_is_wrong(metadata: dict[str, object] | None) -> str | None:
    if too_deep(metadata):
        return f"may be nested {MAX_DEPTH} levels deep"
    return f"may have {MAX_METADATA} bytes of JSON" if len(msgspec.json.encode(metadata)) > MAX_METADATA else None


_CHECKS: Final[Checks] = {"vendor": _vendor_is_wrong, "metadata": metadata_is_wrong}


def _idempotency(request: Request, body: bytes) -> tuple[str, bytes] | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= 255:
        raise ApiError(400, "Idempotency-Key may have 1 to 255 characters")
    return f"{request.state.key_name}:{key}", body
