"""Who is looking at the dashboard: a signed cookie that names a key of the API, and the token that its forms carry.

Nothing is kept of a session. The signature covers the digest of the key as well, so that taking a key out of `API_KEYS`
(or replacing it) ends its sessions at once; neither the key nor the digest is in the cookie.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from service.api.problems import ApiError
from service.settings import Settings

SECONDS: Final = 12 * 3600
_COOKIE: Final = re.compile(r"((?:[0-9a-f]{2}){1,300})\.([0-9]{10,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")


class Session(msgspec.Struct, frozen=True):
    key_name: str
    scopes: frozenset[str]
    csrf: str  #: goes into each form of this session, and comes back with it

    def may(self, scope: str) -> bool:
        return not self.scopes.isdisjoint({scope, "admin"})


class Sessions:
    """Begins, reads and ends the sessions of one deployment."""

    def __init__(self, settings: Settings) -> None:
        self._macs = [hmac.new(key.encode(), b"callsheet session\0", hashlib.sha256) for key in settings.secret_keys]
        self._keys = settings.api_keys
        address = urlsplit(settings.public_url)
        self._origin = f"{address.scheme}://{address.netloc}"
        self._secure = address.scheme == "https"
        self._name = "__Host-callsheet" if self._secure else "callsheet"

    def begin(self, response: Response, key_name: str) -> None:
        head = f"{key_name.encode().hex()}.{int(time.time()) + SECONDS}.{secrets.token_urlsafe(16)}"
        value = f"{head}.{self._sign(0, f'{head}.{self._keys[key_name].digest}')}"
        response.set_cookie(self._name, value, SECONDS, secure=self._secure, httponly=True, samesite="lax")

    def end(self, response: Response) -> None:
        response.delete_cookie(self._name, secure=self._secure, httponly=True, samesite="lax")

    def read(self, request: Request) -> Session | None:
        """The session of a request; None where there is none, or where it is over."""
        found = _COOKIE.fullmatch(request.cookies.get(self._name, ""))
        if found is None or int(found[2]) < time.time():
            return None
        name = bytes.fromhex(found[1]).decode(errors="replace")
        key = self._keys.get(name)
        head, good = found[0].rpartition(".")[0], False
        for number in range(len(self._macs)):
            expected = self._sign(number, f"{head}.{key.digest if key else ''}")
            good |= hmac.compare_digest(expected, found[4])
        if key is None or not good:
            return None
        return Session(name, key.scopes, self._sign(0, f"csrf {found[0]}"))

    def check_origin(self, request: Request) -> None:
        """Raises a 403 unless a page of ours sends the request: browsers name the sender with every POST."""
        origin = request.headers.get("origin", "")
        if origin != self._origin and urlsplit(origin).netloc != request.headers.get("host", ""):
            raise ApiError(403, "this was not sent by a page of this service")

    def check_form(self, request: Request, session: Session, token: str) -> None:
        """Raises a 403 unless the request comes from a form of this very session."""
        self.check_origin(request)
        if not hmac.compare_digest(token.encode(errors="replace"), session.csrf.encode()):
            raise ApiError(403, "the form is too old, or not ours: load the page again")

    def _sign(self, number: int, text: str) -> str:
        mac = self._macs[number].copy()
        mac.update(text.encode())
        return base64.urlsafe_b64encode(mac.digest()).rstrip(b"=").decode()
