"""`GET /v1/audit`, and the middleware that notes what operators do before they are answered."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec
from redis import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import need
from service.api.endpoints import PAGE
from service.api.problems import ApiError, read_query
from service.api.rows import json_answer
from service.deployment import Deployment
from service.jobs import audit
from service.jobs.store import Store

_VERBS: Final = {"POST": "create", "PATCH": "change", "DELETE": "delete"}
#: What services do all day; it is in the jobs' own timelines.
_NO_OPERATORS: Final = frozenset({"jobs.create", "jobs.change"})
_SUBJECT_LENGTH: Final = 160


class Audited:
    """Notes every request that changes something, what became of it too, unless it is what services do all day.

    A handler that makes something says what in `request.state.made`.
    """

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self._app = app
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and "endpoint" in scope:  # a route of ours
                await self._note(scope, message["status"])
            await send(message)

        if scope["method"] not in _VERBS:
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, noted)
        except ApiError as refused:  # for the dashboard, which asks from within
            await self._note(scope, refused.status)
            raise

    async def _note(self, scope: Scope, status: int) -> None:
        kind, _, rest = scope["path"].removeprefix(scope.get("root_path", "")).strip("/").partition("/")
        action = f"{kind}.{rest.partition('/')[2] or _VERBS[scope['method']]}"
        subject = scope["path_params"].get("id") or scope["state"].get("made", "")
        if action not in _NO_OPERATORS:
            with suppress(RedisError, OSError):  # it is done, and in the log
                await audit.note(
                    self._store, scope["state"]["key_name"], action, subject[:_SUBJECT_LENGTH], str(status)
                )


def routes(deployment: Deployment) -> list[Route]:
    async def list_(request: Request) -> Response:
        need(request, "admin")
        query = read_query(request, PAGE)
        entries, cursor = await audit.page(deployment.store, int(query.get("limit", "20")), query.get("cursor", ""))
        return json_answer(msgspec.json.encode({"data": entries, "next_cursor": cursor}))

    return [Route("/audit", list_, methods=["GET"])]
