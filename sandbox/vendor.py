"""What the four vendors have in common: how a call is met, refused and counted, and how a job begins.

A vendor's own module holds what its page says: paths, fields, words, shapes and codes.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Annotated, ClassVar, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute

from sandbox.answers import Hang, Transfer
from sandbox.faults import VENDOR_WORDS, Faults, UnknownFault, asked_in
from sandbox.jobs import Job, Output, Phase
from sandbox.world import World

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

#: A URL as a vendor accepts one.
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/?#]+\S*\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1)]

_BEARER: Final = re.compile(r"Bearer (\S+)")


class Why(Enum):
    """Why a vendor says no. Each vendor has its own statuses, codes and shape for it."""

    INVALID = auto()
    UNAUTHORIZED = auto()
    NOT_FOUND = auto()
    RATE_LIMITED = auto()
    INTERNAL = auto()


class Refusal(Exception):
    """The vendor says no."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why
        self.message = message


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """A body, or a part of one, that holds what the page names and nothing else."""


class Window:
    """At most `limit` calls in any `seconds`."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._taken: deque[float] = deque()

    def take(self) -> None:
        """Raises `Refusal` where there is no room."""
        now = time.monotonic()
        while self._taken and self._taken[0] <= now - self._seconds:
            self._taken.popleft()
        if len(self._taken) >= self._limit:
            raise Refusal(Why.RATE_LIMITED, f"more than {self._limit} calls in {self._seconds:g} s")
        self._taken.append(now)


class Vendor(ABC):
    """One vendor, mounted at `/{slug}`."""

    slug: ClassVar[str]
    retries: ClassVar[Sequence[float]] = ()  #: see `callbacks.Caller`

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def routes(self) -> Sequence[BaseRoute]: ...

    @abstractmethod
    def refusal(self, why: Why, message: str) -> Response:
        """No, in this vendor's shape."""

    def callback(self, job: Job, phase: Phase) -> object:
        """The body of a callback. Vendors that send none leave it as it is."""
        raise NotImplementedError(f"{self.slug} sends no callbacks")

    def authorize(self, request: Request) -> None:
        """Raises `Refusal` unless the call carries a credential. Any will do that does not start with `invalid`."""
        match = _BEARER.fullmatch(request.headers.get("authorization", ""))
        if match is None:
            raise Refusal(Why.UNAUTHORIZED, "Missing or malformed Authorization header")
        if match[1].startswith("invalid"):
            raise Refusal(Why.UNAUTHORIZED, "Invalid API key")

    def call(self, name: str, handler: Handler, *, public: bool = False) -> Handler:
        """An endpoint: `handler` behind authorization (unless `public`), the vendor's faults and the count of calls."""

        async def endpoint(request: Request) -> Response:
            if outage := self.world.board.outage(self.slug):
                self.world.count(self.slug, "faulted")
                return self._outage(outage)
            try:
                if not public:
                    self.authorize(request)
                answer = await handler(request)
            except Refusal as no:
                self.world.count(self.slug, "refused")
                return self.refusal(no.why, no.message)
            self.world.count(self.slug, name)
            return answer

        return endpoint

    async def begin(
        self,
        request: Request,
        *,
        id: str,
        model: str,
        body: dict[str, object],
        callback_url: str | None = None,
        makes_media: bool = True,
        more: Faults | None = None,
    ) -> Job:
        """Begin a job with the faults that were asked for, `more` included, and see to its callbacks.

        Raises `Refusal` where one of them is that there is to be no job.
        """
        try:
            asked = asked_in(body)
        except UnknownFault as unknown:
            raise Refusal(Why.INVALID, str(unknown)) from None
        if outages := asked.keys() & VENDOR_WORDS:
            raise Refusal(Why.INVALID, f"sandbox fault {min(outages)!r} hits a whole vendor: POST /_sandbox/faults")
        faults = {**self.world.board.for_submission(self.slug), **(more or {}), **asked}
        if "submit_refused" in faults:
            raise Refusal(Why.INVALID, "the video could not be read")
        seconds = faults.get("seconds")
        job = Job(
            vendor=self.slug,
            id=id,
            model=model,
            request=body,
            callback_url=callback_url,
            base=f"{request.url.scheme}://{request.url.netloc}",
            faults=faults,
            seconds=0.0 if "callback_early" in faults else self.world.seconds if seconds is None else seconds,
            output=Output(f"/media/{self.slug}/{id}/0", faults) if makes_media else None,
        )
        self.world.jobs.add(job)
        await self.world.sender.start(job, self)
        return job

    def submitted(self, job: Job, answer: Response) -> Response:
        """The answer to a submission, or what its faults leave of it."""
        if "submit_hangs" in job.faults:
            return Hang(self.world.stopping)
        if "submit_lost" in job.faults:
            return Transfer(bytes(answer.body), self.world.stopping, cut_at=0)
        if "submit_500" in job.faults:
            return HTMLResponse("<html></html>", 500)
        return answer

    def _outage(self, word: str) -> Response:
        match word:
            case "vendor_hangs":
                return Hang(self.world.stopping)
            case "vendor_garbage":
                return HTMLResponse("<html><body><h1>Welcome to nginx!</h1></body></html>")
            case "vendor_rate_limited":
                answer = self.refusal(Why.RATE_LIMITED, "Too many requests")
                answer.headers["Retry-After"] = "2"
                return answer
            case "vendor_500":
                return self.refusal(Why.INTERNAL, "Internal server error")
            case _:
                return PlainTextResponse("Service Unavailable", 503)


async def read(request: Request, decoder: msgspec.json.Decoder[T]) -> tuple[T, dict[str, object]]:
    """A request's body, checked and as it came. Raises `Refusal`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(Why.INVALID, "Content-Type must be application/json")
    raw = await request.body()
    try:
        return decoder.decode(raw), msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise Refusal(Why.INVALID, str(problem)) from None
