"""`/v1/quarantine`: callbacks that could not be understood, and reading them again with today's code."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.auth import need
from service.api.problems import ApiError, read_query
from service.deployment import Deployment
from service.jobs.tokens import SHARED
from service.vendors import VENDORS

PAGE: Final = {"limit": re.compile(r"[1-9][0-9]?|100"), "cursor": re.compile(r"[0-9]{1,16}-qua_[0-9a-f]{24}")}


class LetterView(msgspec.Struct, frozen=True, kw_only=True):
    """One quarantined callback. `count` callbacks with this very body came by this URL."""

    id: str
    vendor: str
    job_id: str | None
    problem: str
    detail: str | None
    received_at: str
    last_received_at: str
    count: int


def routes(deployment: Deployment) -> list[Route]:
    quarantine = _Quarantine(deployment)
    return [
        Route("/quarantine", quarantine.list_, methods=["GET"]),
        Route("/quarantine/{id}", quarantine.show, methods=["GET"]),
        Route("/quarantine/{id}/replay", quarantine.replay, methods=["POST"]),
    ]


class _Quarantine:
    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.store
        self._tracker = deployment.tracker

    async def list_(self, request: Request) -> Response:
        query = read_query(request, PAGE)
        limit = int(query.get("limit", "20"))
        rows, cursor = await self._store.quarantined(limit, query.get("cursor", ""))
        return _json({"data": [_view(row) for row in rows], "next_cursor": cursor})

    async def show(self, request: Request) -> Response:
        """One letter as it came, and what today's code reads in it."""
        letter = await self._letter(request)
        view, body = _view(letter), letter["body"]
        more = {"raw": body.decode(errors="replace"), "reads": VENDORS[view.vendor].read_callback(body)}
        return _json(msgspec.structs.asdict(view) | more)

    async def replay(self, request: Request) -> Response:
        need(request, "admin")
        letter = await self._letter(request)
        view, subject, body = _view(letter), letter["subject"].decode(), letter["body"]
        seen = VENDORS[view.vendor].read_callback(body)
        shared = subject == SHARED
        if seen.problem or (shared and seen.vendor_job_id is None):
            raise ApiError(422, f"still not understood: {seen.problem or 'no_job_id'}: {seen.detail or ''}")
        recorded = await self._tracker.record(
            seen, vendor=view.vendor, job_id=None if shared else subject, raw=body, weak_path=shared
        )
        if recorded.outcome in ("other_job", "taken", "unknown_job"):
            raise ApiError(409, f"understood, but not for the job it came for: {recorded.outcome}")
        await self._store.release(view.id)
        return _json({"id": view.id, "outcome": recorded.outcome, "job_id": recorded.job_id or None})

    async def _letter(self, request: Request) -> dict[str, bytes]:
        letter_id = request.path_params["id"]
        letter = await self._store.letter(letter_id) if re.fullmatch(r"qua_[0-9a-f]{24}", letter_id) else None
        if letter is None:
            raise ApiError(404, f"there is no quarantined callback {letter_id[:40]!r}")
        return letter


def _view(row: dict[str, bytes]) -> LetterView:
    return LetterView(
        id=row["id"].decode(),
        vendor=row["vendor"].decode(),
        job_id=row["job_id"].decode() or None,
        problem=row["problem"].decode(),
        detail=msgspec.json.decode(row["detail"], type=str | None),
        received_at=row["received_at"].decode(),
        last_received_at=row["last_received_at"].decode(),
        count=int(row["count"]),
    )


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
