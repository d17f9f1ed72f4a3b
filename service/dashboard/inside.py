"""The API from within: the same routes, scopes and refusals as its clients meet, without the network.

So that the dashboard knows nothing by itself, and a page can do no more than a request with the same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import check_method
from service.api.problems import ApiError
from service.dashboard.session import Session


class Inside:
    def __init__(self, api: ASGIApp) -> None:
        self._api = api

    async def get(self, session: Session, path: str, query: Mapping[str, str] | None = None) -> Any:
        """What the API answers, decoded; empty values are not asked."""
        return await self.call(session, "GET", path, {name: value for name, value in (query or {}).items() if value})

    async def call(
        self, session: Session, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        """What the API answers, decoded.

        Raises:
            ApiError: where it refuses, and whatever else its routes raise.
        """
        sent = b"" if body is None else msgspec.json.encode(body)
        answer, status = bytearray(), 0

        async def receive() -> Message:
            return {"type": "http.request", "body": sent, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))

        await self._api(_scope(session, method, path, urlencode(query or {})), receive, send)
        if status >= 400:
            raise ApiError(status, "there is nothing of that name")
        return msgspec.json.decode(answer) if answer else None

    async def pass_on(self, session: Session, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the API answer a request itself, as if it were about `path`."""
        about = _scope(session, scope["method"], path, "")
        await self._api({**about, "headers": scope["headers"]}, receive, send)


def _scope(session: Session, method: str, path: str, query: str) -> Scope:
    check_method(session.scopes, method)
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        "state": {"key_name": session.key_name, "scopes": session.scopes},
    }
