"""The contract that a vendor module keeps, and the tolerant readers that they share.

A vendor is one pure module: data about the vendor, builders of requests, and readers of what the
vendor says. It does no I/O, catches no exceptions, and never sees a setting or a secret other than the
credentials it is handed. The readers below are where tolerance lives: a value of an unexpected type
reads as None, it never raises, so that one odd field cannot spoil the callback around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from service.model import VERDICTS, JobError, Observation, Output, OutputKind, Problem, Source, Status

#: Codes of a vendor's refusal, the same for every vendor; the vendor's own words go in `message`.
RETRYABLE: Final = frozenset({"rate_limited", "vendor_error", "vendor_unreachable", "unauthorized"})

#: On no vendor's page, yet there is one way to understand them.
CANCELLED_WORDS: Final = {"cancelled": Status.CANCELLED, "canceled": Status.CANCELLED}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to a vendor, without its host and its authentication."""

    method: str = "GET"
    path: str  #: from the root, the documented prefix included: `/api/v1/jobs/…`
    query: dict[str, str] = {}
    json: dict[str, object] | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The vendor answered, and the answer is no. `code` is one of ours, `message` the vendor's words.

    Codes: `invalid_input`, `unauthorized`, `insufficient_credit`, `forbidden`, `not_found`,
    `rate_limited`, `vendor_error`, `vendor_unreachable`.
    """

    code: str
    message: str

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later, unchanged."""
        return self.code in RETRYABLE


class ListPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a vendor's list call, newest first."""

    observations: tuple[Observation, ...]
    more: bool  #: whether the vendor has a further page


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor's temporary access token and when it dies (unix seconds)."""

    value: str
    expires_at: float


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    """When to ask a vendor about a job, in seconds.

    Where a webhook is expected, the first look comes `grace` seconds after the submission. Between looks passes a tenth
    of the job's age, at least `every` and at most `slowest`.
    """

    grace: float | None = None  #: None: the vendor has no webhook, and is asked in its own rhythm from the beginning
    every: float
    slowest: float = 300.0


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """At most `requests` in any window of `seconds`, over all processes."""

    requests: int
    seconds: float


class Vendor(Protocol):
    """What a vendor module offers. The module's name is the slug: URL segment and prefix of its settings."""

    @property
    def SLUG(self) -> str: ...

    @property
    def NAME(self) -> str:
        """The vendor's name as it writes it."""

    @property
    def DOCS(self) -> str:
        """The vendor's page that the module follows."""

    @property
    def BASE_URL(self) -> str:
        """Scheme and host, without the documented path prefix; `<SLUG>_BASE_URL` replaces it."""

    @property
    def CREDENTIALS(self) -> tuple[tuple[str, ...], ...]:
        """Sets of settings of which one complete set is enough, best first."""

    @property
    def RHYTHM(self) -> Rhythm: ...

    @property
    def READS(self) -> Limit:
        """How often status and list may be called."""

    @property
    def LIST_PAGE(self) -> int:
        """Rows on a page of the list call; 0 where the vendor has no list call."""

    def headers(self, credentials: Mapping[str, str]) -> dict[str, str]:
        """The authentication headers, from a set of `CREDENTIALS` (after a token request: the one that is a token)."""

    def token_request(self, credentials: Mapping[str, str]) -> Request | None:
        """The request for a temporary token, where these credentials need one."""

    def read_token(self, body: bytes) -> Token | Refusal: ...

    def status_request(self, vendor_job_id: str) -> Request: ...

    def list_request(self, page: int) -> Request:
        """The list call for a page, from 0. Only where `LIST_PAGE` is not 0."""

    def read_callback(self, body: bytes) -> Observation:
        """Never raises: what cannot be understood comes back with a `problem`."""

    def read_status(self, http_status: int, body: bytes) -> Observation | Refusal: ...

    def read_list(self, http_status: int, body: bytes) -> ListPage | Refusal: ...


# -- tolerant readers ---------------------------------------------------------------------------


def decode(body: bytes | str) -> object:
    """The JSON in `body`, or `Problem.BAD_JSON` where there is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Problem.BAD_JSON


def mapping(value: object) -> dict[str, object]:
    """`value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[object]:
    """`value` where it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def several(value: object) -> list[object]:
    """The items of a JSON array; any other value stands for an array of its own."""
    return value if isinstance(value, list) else [value]


def nested(value: object) -> dict[str, object]:
    """A JSON object that may come as an object, or as JSON inside a string; empty for anything else."""
    return mapping(decode(value)) if isinstance(value, str) else mapping(value)


def text(value: object) -> str | None:
    """A non-empty string, stripped; a number reads as its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def number(value: object) -> float | None:
    """A finite number, given as a number or as a string of one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int beyond the range of a float
        return None


def amount(value: object, per: float = 1) -> float | None:
    """A count or a duration, in units of `per`, whole where it can be. Zero is "not known yet" and reads as None."""
    found = number(value)
    if found is None or found <= 0:
        return None
    found /= per
    return int(found) if found.is_integer() and found < 2**53 else found


def known(**facts: object) -> dict[str, object] | None:
    """Those of `facts` that are known, or None where none is."""
    return {name: fact for name, fact in facts.items() if fact is not None} or None


def percent(value: object) -> int | None:
    """A progress, clamped to 0…100."""
    found = number(value)
    return None if found is None else max(0, min(100, int(found)))


def moment(value: object) -> datetime | None:
    """A time given as ISO-8601, as unix seconds or as unix milliseconds; None where it is none of these.

    Numbers from 10^11 on are milliseconds (as seconds they would lie after the year 5000); zero and less is "not yet".
    """
    seconds = number(value)
    try:
        if seconds is not None:
            return datetime.fromtimestamp(seconds / 1000 if seconds >= 1e11 else seconds, UTC) if seconds > 0 else None
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def media_url(value: object) -> str | None:
    """A URL that can be fetched: http or https with a host, and neither white space nor control characters inside."""
    found = text(value)
    if found is None or " " in found or not found.isprintable():
        return None
    scheme, _, rest = found.partition("://")
    return found if scheme.lower() in ("http", "https") and rest[:1] not in ("", "/", "?", "#") else None


def outputs(*urls: object, kind: OutputKind = OutputKind.VIDEO) -> tuple[Output, ...]:
    """The outputs behind those of `urls` that can be fetched, in order, each once."""
    found = (media_url(url) for url in urls)
    return tuple(Output(kind=kind, url=url) for url in dict.fromkeys(found) if url is not None)


def unreadable(source: Source, problem: Problem, detail: str, vendor_job_id: str | None = None) -> Observation:
    """An observation that only says that it could not be understood."""
    return Observation(source=source, problem=problem, detail=detail, vendor_job_id=vendor_job_id)


def unknown_status(source: Source, word: object, vendor_job_id: str | None) -> Observation:
    """A status word that the vendor's page does not have: it neither finishes nor fails the job."""
    shown = "no status" if word is None else f"unknown status {str(word)[:80]!r}"
    return unreadable(source, Problem.UNKNOWN_STATUS, shown, vendor_job_id)


def failure(code: object, message: object, otherwise: str = "the vendor gave no reason") -> JobError:
    """The error of a failed job, in the vendor's words where it has any."""
    words = text(message)
    return JobError(code=text(code) or "vendor_failed", message=words or text(code) or otherwise)


def refusal(http_status: int, message: object) -> Refusal:
    """What an HTTP status means, for every vendor that uses the usual ones."""
    code = {
        400: "invalid_input",
        401: "unauthorized",
        402: "insufficient_credit",
        403: "forbidden",
        404: "not_found",
        422: "invalid_input",
        429: "rate_limited",
    }.get(http_status, "vendor_error")
    return Refusal(code=code, message=text(message) or f"HTTP {http_status}")


def word(value: object, words: Mapping[str, Status]) -> Status | None:
    """The status behind a vendor's word, whatever its case; numbers are looked up by their digits."""
    found = text(value)
    return None if found is None else words.get(found.lower().removesuffix(".0"))


# -- the way of every answer: bytes → object → task → observation --------------------------------

#: A vendor's own reader of one JSON object: a callback, a status answer or a row of its list.
Reader = Callable[[Source, dict[str, object]], Observation]


def reading(source: Source, answer: object, reader: Reader) -> Observation:
    """What `reader` makes of a decoded answer, which may be no JSON, or no object."""
    if isinstance(answer, dict):
        return reader(source, answer)
    if answer is Problem.BAD_JSON:
        return unreadable(source, Problem.BAD_JSON, "not JSON")
    return unreadable(source, Problem.BAD_SHAPE, "not a JSON object")


def task_in(body: dict[str, object]) -> dict[str, object]:
    """The task in a body: what the envelope `{code, msg, data}` holds, or the body itself where there is none."""
    return mapping(body.get("data")) or body


def settled(seen: Observation, said: object, *, made: object, trouble: str | None = None) -> Observation:
    """`seen` as far as it can stand, or why it cannot: the rules that no vendor's reader may forget.

    `said` is the status as the vendor gave it, `made` what the job was for (empty where it is missing), `trouble` what
    the vendor reports around the task. Outputs belong to a success, an error to a failure, an end to a verdict.
    """
    if seen.status is None:
        if said is None and seen.vendor_job_id is None:
            lost = unreadable(seen.source, Problem.BAD_SHAPE, "neither a job id nor a status")
        else:
            lost = unknown_status(seen.source, said, seen.vendor_job_id)
        return msgspec.structs.replace(lost, detail=f"{lost.detail}: {trouble[:200]}") if trouble else lost
    if seen.status is Status.SUCCEEDED and not made:
        return unreadable(seen.source, Problem.NO_OUTPUT, "success without a usable result", seen.vendor_job_id)
    return msgspec.structs.replace(
        seen,
        outputs=seen.outputs or None if seen.status is Status.SUCCEEDED else None,
        error=seen.error if seen.status is Status.FAILED else None,
        completed_at=seen.completed_at if seen.status in VERDICTS else None,
    )


def complaint(error: object) -> str | None:
    """The vendor's words in an error, which is a sentence or an object with a `message` or a `msg`."""
    return text(error) or text(mapping(error).get("message")) or text(mapping(error).get("msg"))


def refused(http_status: int, answer: object) -> Refusal | None:
    """The vendor's no where the HTTP status says it, with the words of the decoded answer; None for a 2xx."""
    if 200 <= http_status < 300:
        return None
    body = mapping(answer)
    return refusal(http_status, complaint(body.get("error")) or complaint(body))


def listed(rows: object, reader: Reader, *, more: bool) -> ListPage | Refusal:
    """A page of the list call. An answer without rows is no empty page: every job on it would seem to be gone."""
    if not isinstance(rows, list):
        return Refusal(code="vendor_error", message="an answer without a list")
    return ListPage(observations=tuple(reading(Source.POLL, row, reader) for row in rows), more=more)


# -- what most vendors do not have; a module takes these over under the contract's names ---------


def no_token_request(credentials: Mapping[str, str]) -> Request | None:
    """The credentials are the authentication: no token has to be asked for."""
    return None


def no_token(body: bytes) -> Token | Refusal:
    return Refusal(code="vendor_error", message="this vendor has no temporary tokens")


def no_list_request(page: int) -> Request:
    raise LookupError("this vendor has no list call: its LIST_PAGE is 0")


def no_list(http_status: int, body: bytes) -> ListPage | Refusal:
    return Refusal(code="vendor_error", message="this vendor has no list call")
