"""Who may use the API, and for what: bearer keys, of which only hashes are known here, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import logs
from service.api.problems import ApiError, problem_response
from service.settings import ApiKey

#: Wrong keys from one address in a minute, after which it is told to wait. A right key is let through all the same:
#: behind a router everybody may have one address.
WRONG_KEYS: Final = 100
#: Addresses that are remembered; more than these begin anew.
_ADDRESSES: Final = 10_000
_ADDRESS_LENGTH: Final = 64  #: characters; behind a router it is whatever a header says

_log = logs.get("api")


class Keys:
    """The keys of this deployment: whose a given one is, and how often an address may be wrong about it."""

    def __init__(self, api_keys: Mapping[str, ApiKey]) -> None:
        self._keys = [(name, bytes.fromhex(key.digest), key.scopes) for name, key in api_keys.items()]
        self._wrong: dict[str, tuple[int, float]] = {}  #: address → wrong keys, and when the first of them came

    def holder(self, key: bytes, scope: Scope, *, told: bool) -> tuple[str, frozenset[str]]:
        """The name of a key and what it may do; `told`: the request says something, which is counted if it is wrong.

        Raises:
            ApiError: 401 where it is none of ours; 429 where too many from this address were wrong.
        """
        digest, found = hashlib.sha256(key).digest(), None
        for name, known, scopes in self._keys:  # every key is compared, whichever matches
            if hmac.compare_digest(digest, known):
                found = name, scopes
        if found is None:
            address = str((scope.get("client") or ("unknown", 0))[0])[:_ADDRESS_LENGTH]
            raise self._refusal(address, told=told)
        return found

    def _refusal(self, address: str, *, told: bool) -> ApiError:
        count, since = self._wrong.get(address, (0, 0.0))
        now = time.monotonic()
        if now - since > 60:
            count, since = 0, now
        if len(self._wrong) >= _ADDRESSES:
            self._wrong.clear()
        self._wrong[address] = count + told, since
        if count == WRONG_KEYS:
            _log.warning("wrong API keys", address=address, keys=count)
        if count >= WRONG_KEYS:
            wait = {"Retry-After": str(int(61 - (now - since)))}
            return ApiError(429, "too many wrong API keys from this address", headers=wait)
        authenticate = {"WWW-Authenticate": 'Bearer realm="callsheet"'}
        return ApiError(401, "send an API key as 'Authorization: Bearer …'", headers=authenticate)


class BearerKeys:
    """Lets requests through that carry one of the API keys with the scope that their method needs.

    Notes in `scope["state"]` whose key it is (`key_name`) and what it may do (`scopes`).
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = header.partition(b" ")
        try:
            key = key.strip() if scheme.lower() == b"bearer" else b""
            name, scopes = self._keys.holder(key, scope, told=bool(header))
            check_method(scopes, scope["method"])
        except ApiError as refused:
            await problem_response(refused)(scope, receive, send)
            return
        scope.setdefault("state", {}).update(key_name=name, scopes=scopes)
        await self._app(scope, receive, send)


def check_method(scopes: frozenset[str], method: str) -> None:
    """Raises a 403 unless these scopes are enough for a method of HTTP; some routes `need` more."""
    _check(scopes, "read" if method in ("GET", "HEAD", "OPTIONS") else "submit")


def _check(scopes: frozenset[str], needed: str) -> None:
    if not scopes & {needed, "admin"}:
        raise ApiError(403, f"this API key has not the scope {needed!r}; it has {', '.join(sorted(scopes))}")


def need(request: Request, scope: str) -> None:
    """Raises a 403 unless the request's key has the scope."""
    _check(request.state.scopes, scope)
