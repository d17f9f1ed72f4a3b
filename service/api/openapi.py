"""`/openapi.json`: the API described by the very types and patterns that it reads and answers with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api import costs, endpoints, events, jobs, operator, overview, quarantine
from service.api.quarantine import LetterView
from service.api.vendors import VendorEntry, schema_of
from service.fields import FieldError
from service.jobs.audit import AuditEntry
from service.jobs.endpoints import EVENT_TYPES
from service.model import Attempt, Job
from service.vendors import VENDORS
from service.vendors.base import Vendor
from service.vendors.inputs import Model

Schema = dict[str, Any]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `errors` where fields of the request are wrong, each with what would be right."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None
    job_id: str | None = None  #: the job that is in the way
    could_take: list[dict[str, str]] | None = None  #: vendors and models that the input is enough for


_BODIES: Final = (
    *(jobs.TrackRequest, jobs.AttachRequest, operator.ResolveRequest),
    *(endpoints.EndpointRequest, endpoints.EndpointChange, endpoints.ReplayRequest),
)
_ANSWERS: Final = (
    Job,
    LetterView,
    overview.Overview,
    VendorEntry,
    Problem,
    endpoints.EndpointView,
    endpoints.DeliveryView,
    endpoints.Secret,
    AuditEntry,
    Attempt,
)


def routes() -> list[Route]:
    body = msgspec.json.encode(document())

    async def openapi(_request: Request) -> Response:
        return Response(body, media_type="application/json")

    return [Route("/openapi.json", openapi, methods=["GET"])]


def document() -> Schema:
    """OpenAPI 3.1."""
    _, schemas = msgspec.json.schema_components(
        (*_BODIES, *_ANSWERS), schema_hook=anything, ref_template="#/components/schemas/{name}"
    )
    schemas["TrackRequest"]["properties"]["vendor"] = {"enum": sorted(VENDORS)}
    for type_ in _BODIES:  # what is not known is refused
        schemas[type_.__name__]["additionalProperties"] = False
    for name, known in (("types", EVENT_TYPES), ("vendors", VENDORS)):
        new, changed = (schemas[body]["properties"][name] for body in ("EndpointRequest", "EndpointChange"))
        new["items"] = changed["anyOf"][0]["items"] = {"enum": sorted(known)}
    id_ = schemas["AttachRequest"]["properties"]["vendor_job_id"]
    schemas["ResolveRequest"] = {
        "oneOf": [
            {
                **_object(action={"const": "adopt"}, vendor_job_id=id_["anyOf"][0]),
                "required": ["action", "vendor_job_id"],
            },
            {**_object(action={"enum": ["fail", "resend"]}, vendor_job_id={"type": "null"}), "required": ["action"]},
        ]
    }
    schemas["CreatedJob"] = {
        "allOf": [_ref("Job"), {"type": "object", "required": ["callback_url"], "properties": {"callback_url": _URI}}]
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Callsheet",
            "version": "1",
            "summary": "Accounts for the jobs of asynchronous AI-media vendors.",
        },
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "an API key"}},
        },
    }


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


_URI: Final[Schema] = {"type": "string", "format": "uri"}


def anything(type_: type) -> Schema:
    if type_ is object:
        return {"description": "any JSON"}
    raise NotImplementedError(type_)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _paths() -> Schema:
    page = {"type": "object", "required": ["data", "next_cursor"]}
    cursor = {"type": ["string", "null"]}
    job, letter = _JOB, _path("id", r"qua_[0-9a-f]{24}")
    entry = {"type": "object", "required": ["at", "source", "status", "applied", "why"]}
    number, sums = _path("number", "[0-9]{1,4}"), {"type": "array", "items": {"type": "object"}}
    orders = [_order(vendor, model) for vendor in VENDORS.values() for model in vendor.MODELS]
    create = {"anyOf": [*orders, _ref("TrackRequest")]}
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255}}
    return {
        "/v1/jobs": {
            "get": _operation(
                "List jobs, newest first",
                {200: page | {"properties": {"data": _list("Job"), "next_cursor": cursor}}},
                query(jobs.FILTERS),
            ),
            "post": _operation(
                "Submit a job, or track one that somebody else submits",
                {202: _ref("CreatedJob"), 201: _ref("CreatedJob")},
                [key],
                create,
                (409,),
            ),
        },
        "/v1/jobs/{id}": {
            "get": _operation("Read a job", {200: _ref("Job")}, [job]),
            "patch": _operation(
                "Attach the vendor's id, add metadata", {200: _ref("Job")}, [job], _ref("AttachRequest"), (409,)
            ),
        },
        "/v1/jobs/{id}/timeline": {
            "get": _operation(
                "What is known of a job, in order", {200: _data({"type": "array", "items": entry})}, [job]
            )
        },
        "/v1/jobs/{id}/outputs/{number}": {"get": _file_operation([job, number])},
        "/v1/jobs/{id}/refresh": {"post": _operation("Ask the vendor now", {202: _ref("Job")}, [job], more=(409,))},
        "/v1/jobs/{id}/resolve": {
            "post": _operation("Say what became of it", {200: _ref("Job")}, [job], _ref("ResolveRequest"), (409,))
        },
        "/v1/overview": {
            "get": _operation("How it is going", {200: _ref("Overview")}, query(overview.QUERY)),
        },
        "/v1/costs": {"get": _operation("Estimated and charged, summed up", {200: _data(sums)}, query(costs.QUERY))},
        "/v1/audit": {
            "get": _operation(
                "What operators did, newest first",
                {200: page | {"properties": {"data": _list("AuditEntry"), "next_cursor": cursor}}},
                query(endpoints.PAGE),
            )
        },
        "/v1/quarantine": {
            "get": _operation(
                "Callbacks that were not understood, newest first",
                {200: page | {"properties": {"data": _list("LetterView"), "next_cursor": cursor}}},
                query(quarantine.PAGE),
            )
        },
        "/v1/quarantine/{id}": {"get": _operation("One of them, with its body", {200: _ref("LetterView")}, [letter])},
        "/v1/quarantine/{id}/replay": {
            "post": _operation("Read it again", {200: {"type": "object"}}, [letter], more=(409,))
        },
        **_endpoint_paths(page | {"properties": {"data": _list("Attempt"), "next_cursor": cursor}}),
        "/v1/vendors": {"get": _operation("Vendors, their models and limits", {200: _data(_list("VendorEntry"))})},
    }


def _endpoint_paths(tries: Schema) -> Schema:
    one, delivery = [_path("id", r"ep_[0-9a-v]{24}")], [_path("id", "dlv_[0-9a-z._-]+")]
    view, at = _ref("EndpointView"), "/v1/endpoints/{id}"
    new, changed = _ref("EndpointRequest"), _ref("EndpointChange")
    sent = {202: _object(delivery_id={"type": "string"})}
    again = {202: _object(events={"type": "integer"}, complete={"type": "boolean"})}
    stream = _operation("Server-Sent Events", {}, query(events.QUERY, events.FILTERS), more=(400, 410))
    stream["responses"]["200"] = {
        "description": "events, until the listener goes",
        "content": {"text/event-stream": {}},
    }
    forget = _operation("Send nothing there any more", {}, one)
    forget["responses"]["204"] = {"description": "it is forgotten"}
    return {
        "/v1/events": {"get": stream},
        "/v1/endpoints": {
            "get": _operation("Where events are sent to", {200: _data(_list("EndpointView"))}),
            "post": _operation("Send events to a URL", {201: {"allOf": [view, _ref("Secret")]}}, None, new, (409,)),
        },
        at: {
            "get": _operation("Read an endpoint", {200: view}, one),
            "patch": _operation("Change an endpoint", {200: view}, one, changed),
            "delete": forget,
        },
        f"{at}/deliveries": {"get": _operation("The latest tries", {200: tries}, [*one, *query(endpoints.PAGE)])},
        f"{at}/secret": {"post": _operation("Replace the secret", {201: _ref("Secret")}, one)},
        f"{at}/test": {"post": _operation("Send an event that says nothing", sent, one, more=(409,))},
        f"{at}/replay": {"post": _operation("Send again in bulk", again, one, _ref("ReplayRequest"), (409,))},
        "/v1/jobs/{id}/deliveries": {
            "get": _operation("The latest tries to tell of a job", {200: _data(_list("Attempt"))}, [_JOB])
        },
        "/v1/deliveries/{id}": {"get": _operation("What became of an event", {200: _ref("DeliveryView")}, delivery)},
        "/v1/deliveries/{id}/replay": {"post": _operation("Send one event again", sent, delivery, more=(409,))},
    }


def _order(vendor: Vendor, model: Model[Any, Any]) -> Schema:
    """A submission of one model."""
    parts = {"input": schema_of(model.input), "vendor_input": schema_of(model.vendor_input)}
    rules: list[Schema] = [{"oneOf": [_given(name) for name in group]} for group in model.one_of]
    rules += [{"anyOf": [{"not": _given(name)}, _given(needed)]} for name, needed in model.needs.items()]
    needed = ["vendor", *(name for name, part in parts.items() if part.get("required"))]
    if "vendor_input" not in needed:
        parts["vendor_input"] = {"anyOf": [parts["vendor_input"], {"type": "null"}]}
    properties = {
        "vendor": {"const": vendor.SLUG},
        "model": {"enum": [model.name, None]},
        **parts,
        "metadata": {"type": "object"},
    }
    return {
        "title": f"{vendor.SLUG}: {model.name}",
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
        **({"allOf": rules} if rules else {}),
    }


def _given(name: str) -> Schema:
    part, _, field = name.partition(".")
    some = {"required": [field], "properties": {field: {"not": {"type": "null"}}}}  # null is as if it were not there
    return {"required": [part], "properties": {part: some}}


def _list(name: str) -> Schema:
    return {"type": "array", "items": _ref(name)}


def _data(items: Schema) -> Schema:
    return {"type": "object", "required": ["data"], "properties": {"data": items}}


def _path(name: str, pattern: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{pattern}$"}}


_JOB: Final = _path("id", r"job_[0-9a-v]{24}")


def query(known: Mapping[str, re.Pattern[str] | frozenset[str]], several: frozenset[str] = frozenset()) -> list[Schema]:
    schemas: dict[str, Schema] = {
        name: {"enum": sorted(rule)}
        if isinstance(rule, frozenset)
        else {"type": "string", "pattern": f"^({rule.pattern})$"}
        for name, rule in known.items()
    }
    schemas |= {name: {"type": "array", "items": schemas[name]} for name in several}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]


_WRONG: Final = {
    400: "not a request that can be read",
    401: "no API key, or a wrong one",
    403: "the key has not the scope",
    404: "there is none",
    409: "not as things stand",
    410: "the stream no longer goes back so far",
    413: "too large",
    415: "compressed",
    422: "fields that cannot be used",
    429: "too many wrong keys",
    503: "the store cannot be written; come again",
}


def _operation(
    summary: str,
    answers: Mapping[int, Schema],
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
    more: tuple[int, ...] = (),
) -> Schema:
    wrong = {401, 403, 429, 503, *more}
    wrong |= {404} if any(parameter["in"] == "path" for parameter in parameters or ()) else set()
    wrong |= {422} if parameters or body else set()
    wrong |= {400, 413, 415} if body else set()
    said: Schema = {
        str(status): {"description": "as asked", "content": {"application/json": {"schema": schema}}}
        for status, schema in answers.items()
    }
    problem = {"application/problem+json": {"schema": _ref("Problem")}}
    said |= {str(status): {"description": _WRONG[status], "content": problem} for status in sorted(wrong)}
    found: Schema = {"summary": summary, "responses": said}
    if parameters:
        found["parameters"] = parameters
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _file_operation(parameters: list[Schema]) -> Schema:
    found = _operation("A stored file", {}, parameters)
    found["responses"] |= {
        "200": {"description": "the bytes", "content": {"*/*": {}}},
        "206": {"description": "a range of the bytes", "content": {"*/*": {}}},
        "302": {"description": "where the object storage serves it"},
        "416": {"description": "no such range", "content": {"application/problem+json": {"schema": _ref("Problem")}}},
    }
    return found
