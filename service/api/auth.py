"""Who may use the API: bearer keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import ApiError, problem_response


class BearerKeys:
    """Lets requests through that carry one of the API keys, and notes in `scope["state"]["key_name"]` whose it is."""

    def __init__(self, app: ASGIApp, api_keys: Mapping[str, str]) -> None:
        self._app = app
        self._digests = {name: hashlib.sha256(key.encode()).digest() for name, key in api_keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = self._name(scope)
        if name is None:
            refused = ApiError(
                401,
                "send an API key as 'Authorization: Bearer …'",
                headers={"WWW-Authenticate": 'Bearer realm="callsheet"'},
            )
            await problem_response(refused)(scope, receive, send)
            return
        scope.setdefault("state", {})["key_name"] = name
        await self._app(scope, receive, send)

    def _name(self, scope: Scope) -> str | None:
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(key.strip()).digest()
        found = None
        for name, known in self._digests.items():  # every key is compared, whichever matches
            if hmac.compare_digest(digest, known):
                found = name
        return found
