"""Errors as `application/problem+json` (RFC 9457), and the readers of requests that raise them.

Every bad field of a request is named at once, with what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec
from redis import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from service.fields import Checks, FieldError, read_fields, said_twice
from service.jobs.tokens import redact
from service.jobs.tracker import CommitFailed

T = TypeVar("T", bound=msgspec.Struct)

#: Bytes of a request to the API. Callbacks have a limit of their own.
MAX_BODY: Final = 2**20


class ApiError(Exception):
    """A request that gets a problem for an answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: list[FieldError] | None = None,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers
        self.more = more


def problem_response(error: ApiError) -> Response:
    title = HTTPStatus(error.status).phrase
    body: dict[str, object] = {"type": "about:blank", "title": title, "status": error.status, "detail": error.detail}
    if error.errors is not None:
        body["errors"] = error.errors
    return Response(
        redact(msgspec.json.encode(body | error.more)),  # what was asked is quoted, callback URLs too
        error.status,
        error.headers,
        media_type="application/problem+json",
    )


#: What handlers raise that is nobody's bug.
REFUSALS: Final = (ApiError, HTTPException, RedisError, CommitFailed, OSError)


async def on_error(_request: Request, error: Exception) -> Response:
    return problem_response(as_problem(error))


def as_problem(error: Exception) -> ApiError:
    """Whatever a handler raised: our own refusals, Starlette's, a store that is down, and bugs."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail, headers=error.headers)
    if isinstance(error, REFUSALS):  # nothing was promised; the caller should come again
        return ApiError(503, "the store cannot be written right now; try again", headers={"Retry-After": "5"})
    return ApiError(500, "an error of ours; it is in the log")


async def read_body(request: Request) -> bytes:
    """The body, counted as it arrives."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "send the body uncompressed, without a Content-Encoding")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise ApiError(413, f"the body is larger than {MAX_BODY} bytes")
    except ClientDisconnect:
        raise ApiError(400, "the body was cut short") from None
    return bytes(body)


def decode_object(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of the body, each still in JSON.

    Raises:
        ApiError: 400 where it is not a JSON object.
    """
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise ApiError(400, "the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ApiError(400, "the body is not JSON") from None
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):  # which the field that it is in is told for
        if said_twice(body, msgspec.json.decode(body)):
            raise ApiError(400, "an object in the body has a key twice")
    return given


def decode_body(given: Mapping[str, object], type_: type[T], checks: Checks) -> T:
    """The fields of a body as `type_`, each of which also passes its check.

    Raises:
        ApiError: 422 with every field that is missing, unknown or of the wrong type.
    """
    found = read_fields(given, type_, checks)
    if isinstance(found, list):
        raise ApiError(422, "the request has fields that cannot be used", found)
    return found


def read_query(
    request: Request, known: Mapping[str, re.Pattern[str] | frozenset[str]], several: frozenset[str] = frozenset()
) -> dict[str, str]:
    """The query's parameters, each of which must match its pattern or be one of its words.

    Raises:
        ApiError: 422 with every parameter that is unknown, does not match, or is there twice and not one of `several`.
    """
    given = [name for name in request.query_params.keys() - several if len(request.query_params.getlist(name)) > 1]
    errors = [FieldError(name, "is given more than once") for name in given]
    for name, value in request.query_params.multi_items():
        rule = known.get(name)
        if rule is None:
            errors.append(FieldError(name, f"unknown parameter; known are {', '.join(known)}"))
        elif isinstance(rule, frozenset) and value not in rule:
            errors.append(FieldError(name, f"must be one of {', '.join(sorted(rule))}"))
        elif isinstance(rule, re.Pattern) and not rule.fullmatch(value):
            errors.append(FieldError(name, f"must match {rule.pattern}"))
    if errors:
        raise ApiError(422, "the query has parameters that cannot be used", errors)
    return dict(request.query_params)


class StoredFile(FileResponse):
    """A file whose refusals (a range that it does not have) are problems too."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = {k.decode(): v.decode() for k, v in message["headers"] if k == b"content-range"}
                refused = ApiError(message["status"], "the file has no such range", headers=headers)
                await problem_response(refused)(scope, receive, send)
                raise _Answered
            await send(message)

        with suppress(_Answered):
            await super().__call__(scope, receive, checked)


class _Answered(Exception):
    """The answer went out in another form; the rest of the first one is not wanted."""


Handler = Callable[[Request], Awaitable[Response]]


def by_method(path: str, **handlers: Handler) -> Route:
    """One route for all methods of a path, so that the answer to any other names them all."""

    async def handle(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, handle, methods=list(handlers))
