"""The tolerant readers that vendor modules share.

A value of an unexpected type reads as None, it never raises, so that one odd field cannot spoil the callback around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from service.fields import said_twice, too_many_parts
from service.model import (
    MAX_JOB_ID,
    VERDICTS,
    JobError,
    Observation,
    Output,
    OutputKind,
    Problem,
    Source,
    Status,
    too_deep,
)
from service.vendors.base import ListPage, Refusal


def decode(body: bytes | str) -> object:
    """The JSON in `body`; `Problem.BAD_JSON` where there is none, `BAD_SHAPE` where it may be read in two ways."""
    try:
        text = body.removeprefix(b"\xef\xbb\xbf") if isinstance(body, bytes) else body
        if too_many_parts(body if isinstance(body, bytes) else body.encode(errors="replace")):
            return Problem.TOO_LARGE
        found: object = msgspec.json.decode(text)
        return Problem.BAD_SHAPE if said_twice(text, found) else found
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Problem.BAD_JSON


def mapping(value: object) -> dict[str, object]:
    """`value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def several(value: object) -> list[object]:
    """The items of a JSON array; any other value stands for an array of its own."""
    return value if isinstance(value, list) else [value]


def nested(value: object) -> dict[str, object]:
    """A JSON object that may come as an object, or as JSON inside a string; empty for anything else."""
    return mapping(decode(value) if isinstance(value, str) else value)


def text(value: object) -> str | None:
    """A non-empty string, stripped; a number reads as its digits."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(value)


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
    """Those of `facts` that are known and that a reader of the job can take in, or None where there is none."""
    return {name: fact for name, fact in facts.items() if fact is not None and not too_deep(fact)} or None


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


def failure(status: Status | None, code: object, message: object) -> JobError | None:
    """The error of a failed job, in the vendor's words where it has any; None of any other."""
    if status is not Status.FAILED:
        return None
    words = text(message)
    return JobError(code=text(code) or "vendor_failed", message=words or text(code) or "the vendor gave no reason")


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
        502: "vendor_unreachable",
        503: "vendor_unreachable",
        504: "vendor_unreachable",
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
        seen = reader(source, answer)
        if len(seen.vendor_job_id or "") <= MAX_JOB_ID:
            return seen
        return unreadable(source, Problem.BAD_SHAPE, f"a job id of more than {MAX_JOB_ID} characters")
    if answer is Problem.BAD_JSON:
        return unreadable(source, Problem.BAD_JSON, "not JSON")
    if answer is Problem.TOO_LARGE:
        return unreadable(source, Problem.BAD_SHAPE, "has too many parts")
    if answer is Problem.BAD_SHAPE:
        return unreadable(source, Problem.BAD_SHAPE, "a key is there twice")
    return unreadable(source, Problem.BAD_SHAPE, "not a JSON object")


def task_in(body: dict[str, object]) -> dict[str, object]:
    """The task in a body: what the envelope `{code, msg, data}` holds, or the body itself where there is none."""
    return nested(body.get("data")) or body


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


def answered(http_status: int, no: Refusal | None, seen: Observation) -> Observation | Refusal:
    """A status answer: the vendor's no, unless the code around the task only repeats that the task has failed."""
    failed = 200 <= http_status < 300 and seen.status in (Status.FAILED, Status.CANCELLED)
    return seen if no is None or failed else no


def submitted(http_status: int, no: Refusal | None, answer: object, reader: Reader) -> Observation | Refusal:
    """The answer to a submission: the vendor's job, the vendor's no, or (`problem`) that neither can be told from it.

    An error that only says that something broke on the way may come after the job was made and paid for. It is a no
    where the vendor itself has words for it, and where HTTP says that the request was not taken (4xx, 503); never where
    a gateway between us says that the vendor did not answer it.
    """
    body, seen = mapping(answer), reading(Source.SUBMIT, answer, reader)
    fault = complaint(body.get("error"))
    if no is not None:
        taken = not (200 <= http_status < 300 or 400 <= http_status < 500 or http_status == 503)
        gateway = no.code == "vendor_unreachable" and http_status != 503  # it has words of its own, and knows no more
        if gateway or (taken and (seen.vendor_job_id or not (fault or complaint(body)))):
            problem = Problem.BAD_JSON if seen.problem is Problem.BAD_JSON else Problem.BAD_SHAPE
            return unreadable(Source.SUBMIT, problem, no.message, seen.vendor_job_id)
        return no
    if seen.vendor_job_id is None:
        if fault:
            return Refusal(code="vendor_error", message=fault)
        if 400 <= (code := number(body.get("code")) or 0) < 600:  # an HTTP status that is meant, under a 200
            return refusal(int(code), complaint(body))
        if seen.problem in (Problem.BAD_JSON, Problem.BAD_SHAPE):
            return seen
        return unreadable(Source.SUBMIT, Problem.NO_JOB_ID, "an answer without a job's id")
    return Observation(
        source=Source.SUBMIT,
        # A verdict, or a word that nobody knows, waits for the first look.
        status=Status.PROCESSING if seen.status is Status.PROCESSING else Status.QUEUED,
        vendor_job_id=seen.vendor_job_id,
        cost=seen.cost,
        submitted_at=seen.submitted_at,
    )


def listed(rows: object, reader: Reader, *, more: bool) -> ListPage | Refusal:
    """A page of the list call. An answer without rows is no empty page: every job on it would seem to be gone."""
    if not isinstance(rows, list):
        return Refusal(code="vendor_error", message="an answer without a list")
    return ListPage(observations=tuple(reading(Source.POLL, row, reader) for row in rows), more=more)
