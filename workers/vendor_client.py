"""The only caller of vendors: authentication, rate limits, and what went wrong in words of ours.

Whatever happens on the way, the answer is an observation, a page, or a refusal; never an exception of a library.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, Generic, TypeVar
from uuid import uuid4

import httpx
import msgspec

from service import metrics
from service.deployment import Deployment
from service.jobs.scripts import Line
from service.model import Observation
from service.vendors import VENDORS
from service.vendors.base import ListPage, Refusal, Request
from workers.outbound import TransportError, never_sent

#: Bytes of a vendor's answer; a status answer has hundreds.
MAX_ANSWER: Final = 16 * 2**20
#: One call, from the first byte sent to the last one received.
CALL_SECONDS: Final = 60.0
#: Seconds of silence after which a call is given up that may be made again.
PATIENCE: Final = 20.0
#: A token is renewed this long before the vendor says it dies.
_TOKEN_MARGIN: Final = 300
_TOKEN_LOCK_MS: Final = 30_000


T = TypeVar("T")

#: A vendor's own reader of one kind of answer.
Reader = Callable[[int, bytes], T | Refusal]


class Answer(msgspec.Struct, Generic[T], frozen=True):
    """What a vendor said, and the bytes it said it with."""

    reading: T | Refusal
    raw: bytes = b""
    retry_after: float = 0.0  #: seconds, where the vendor asked for them
    lost: bool = False  #: the request may have been read, and its answer never came
    stale: bool = False  #: refused for its temporary token, which was forgotten: the next one is new


class VendorClient:
    """Calls vendors for one process; what has to be shared with other processes is in Redis."""

    def __init__(self, deployment: Deployment, http: httpx.AsyncClient) -> None:
        self._store = deployment.store
        self._calls = deployment.calls
        self._accounts = deployment.settings.accounts
        self._http = http

    async def status(self, slug: str, vendor_job_id: str) -> Answer[Observation]:
        """Ask a vendor about one of its jobs."""
        vendor = VENDORS[slug]
        return await self.ask(slug, vendor.status_request(vendor_job_id), vendor.read_status)

    async def list_page(self, slug: str, page: int) -> Answer[ListPage]:
        """One page of a vendor's list call, newest first."""
        return await self.ask(slug, VENDORS[slug].list_request(page), VENDORS[slug].read_list)

    async def ask(self, slug: str, request: Request, read: Reader[T], kind: str = "read") -> Answer[T]:
        """Make a call that may be made again, when its turn in the limit for its kind has come."""
        # The turn is in Redis, where no event of this process is ever set.
        line = Line.of(self._accounts[slug].limits[kind])
        while wait := await self._calls.take_turn(slug, kind, line):
            metrics.rate_limit_wait_seconds(slug, kind).observe(wait)
            await asyncio.sleep(wait)
        return await self._call(slug, request, read)

    async def submit(self, slug: str, request: Request) -> Answer[Observation]:
        """Order a job, once. Whose turn it is, and that it is sent only once, is the caller's to see to."""
        token = await self._token(slug)
        if isinstance(token, Refusal):
            return Answer(token)
        answer = await self._send(slug, request, token, VENDORS[slug].read_submit, CALL_SECONDS)
        return msgspec.structs.replace(answer, stale=await self._stale(slug, token, answer))

    async def ready(self, slug: str) -> Answer[str]:
        """See to the token that a submission needs, before that is on its way."""
        return Answer(await self._token(slug))

    async def _token(self, slug: str) -> str | Refusal:
        """The vendor's temporary token; empty where it needs none. Made once for all: a new one kills the old."""
        vendor, credentials = VENDORS[slug], self._accounts[slug].credentials
        request = vendor.token_request(credentials)
        if request is None:
            return ""
        owner = uuid4().hex
        for _ in range(_TOKEN_LOCK_MS // 100):
            cached = await self._calls.cached_token(slug)
            if cached:
                return cached
            if await self._store.lease(f"token-{slug}", owner, _TOKEN_LOCK_MS):
                break
            await asyncio.sleep(0.1)  # another process is getting one
        try:
            if cached := await self._calls.cached_token(slug):  # made while we waited for our turn
                return cached
            token = (await self._send(slug, request, None, lambda _, body: vendor.read_token(body))).reading
            if isinstance(token, Refusal):
                return token
            await self._calls.cache_token(slug, token.value, int(token.expires_at - time.time() - _TOKEN_MARGIN))
            return token.value
        finally:
            await self._store.give_up(f"token-{slug}", owner)

    async def _stale(self, slug: str, token: str, answer: Answer[T]) -> bool:
        """Whether the vendor refused the token, which is then forgotten."""
        if not (token and isinstance(answer.reading, Refusal) and answer.reading.code == "unauthorized"):
            return False
        await self._calls.drop_token(slug, token)
        return True

    async def _call(self, slug: str, request: Request, read: Reader[T]) -> Answer[T]:
        token = await self._token(slug)
        if isinstance(token, Refusal):
            return Answer(token)
        answer = await self._send(slug, request, token, read)
        if await self._stale(slug, token, answer):
            token = await self._token(slug)
            if isinstance(token, Refusal):
                return Answer(token)
            answer = await self._send(slug, request, token, read)
        return answer

    async def _send(
        self, slug: str, request: Request, token: str | None, read: Reader[T], patience: float = PATIENCE
    ) -> Answer[T]:
        """One request. `token` is None for the token request itself, which goes out without authentication."""
        account = self._accounts[slug]
        headers: dict[str, str] = {}
        if token is not None:
            headers = VENDORS[slug].headers(
                account.credentials if not token else {f"{slug.upper()}_ACCESS_TOKEN": token}
            )
        try:
            async with (
                asyncio.timeout(CALL_SECONDS),  # a read timeout alone never ends a drip
                self._http.stream(
                    request.method,
                    account.base_url + request.path,
                    params=request.query or None,
                    json=request.json,
                    headers=headers,
                    timeout=httpx.Timeout(patience, connect=10),
                ) as response,
            ):
                body = await _bounded(response)
        except TransportError as error:
            words = f"{type(error).__name__}: {error}".removesuffix(": ")
            return Answer(Refusal(code="vendor_unreachable", message=words), lost=not never_sent(error))
        if body is None:
            words = f"the answer has more than {MAX_ANSWER} bytes"
            return Answer(Refusal(code="vendor_error", message=words), lost=True)
        return Answer(read(response.status_code, body), body, retry_after(response))


async def _bounded(response: httpx.Response) -> bytes | None:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER:
            return None
    return bytes(body)


def retry_after(response: httpx.Response) -> float:
    """Seconds, from a number of them or from a date; at most an hour, whatever a vendor says."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value[:1].isascii() and value[:1].isdigit() else _until(value)
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), 3600.0)


def _until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
