"""What every route about one job needs: the job, its row as an answer, and the refusals that they share."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from service.api.problems import ApiError
from service.deployment import Deployment
from service.fields import FieldError
from service.jobs.tracker import Recorded
from service.model import MAX_JOB_ID, Job
from service.vendors.inputs import VISIBLE

_FORM: Final = {"form": "the vendor's id, without white space"}
VendorJobId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=MAX_JOB_ID, pattern=rf"^{VISIBLE}+(?![\s\S])", extra=_FORM)
]

JOB_ID: Final = re.compile(r"job_[0-9a-v]{24}")


class Rows:
    """The rows of jobs, as the API reads and answers them."""

    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.store
        self._tokens = deployment.tokens
        self._accounts = deployment.settings.accounts

    async def job(self, request: Request) -> Job:
        return msgspec.json.decode(await self.row(request.path_params["id"]), type=Job)

    async def row(self, job_id: str) -> bytes:
        row = await self._store.job_json(job_id) if JOB_ID.fullmatch(job_id) else None
        if row is None:
            raise ApiError(404, f"there is no job {job_id[:40]!r}")
        return row

    async def answer(self, job_id: str, status: int, *, with_callback_url: bool = False) -> Response:
        row = await self.row(job_id)
        if not with_callback_url:
            return json_answer(row, status)
        url = self._tokens.url(msgspec.json.decode(row, type=Job).vendor, job_id)
        row = row[:-1] + b',"callback_url":' + msgspec.json.encode(url) + b"}"
        return json_answer(row, status, {"Location": f"/v1/jobs/{job_id}", "Cache-Control": "no-store"})

    def no_account(self, vendor: str, so: str) -> str | None:
        account = self._accounts[vendor]
        return None if account.complete else f"{so}: {vendor} has no credentials; set {account.wanted}"


def refuse_taken(recorded: Recorded, vendor_job_id: str | None) -> None:
    if recorded.outcome == "taken":
        detail = f"the vendor's job {vendor_job_id!r} is tracked as {recorded.job_id}"
        raise ApiError(409, detail, [FieldError("vendor_job_id", detail)], job_id=recorded.job_id)


def json_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")
