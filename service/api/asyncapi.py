"""`/asyncapi.json`: every channel that events are told on, described by the very types that they are made of."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.events import FILTERS, QUERY
from service.api.openapi import Schema, anything, query
from service.jobs.endpoints import DISABLED, EVENT_TYPES, TEST
from service.model import Endpoint, Event
from service.settings import Settings


class EndpointEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing has got through to an endpoint for days, or it is gone: it was disabled."""

    id: str
    type: str
    timestamp: datetime
    data: Endpoint


class TestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody has asked for a try."""

    id: str
    type: str
    timestamp: datetime
    data: dict[str, object]


_TYPES: Final = {Event: EVENT_TYPES, EndpointEvent: (DISABLED,), TestEvent: (TEST,)}


def routes(settings: Settings) -> list[Route]:
    body = msgspec.json.encode(document(settings))

    async def asyncapi(_request: Request) -> Response:
        return Response(body, media_type="application/json")

    return [Route("/asyncapi.json", asyncapi, methods=["GET"])]


def document(settings: Settings) -> Schema:
    """AsyncAPI 3.1."""
    _, schemas = msgspec.json.schema_components(
        tuple(_TYPES), schema_hook=anything, ref_template="#/components/schemas/{name}"
    )
    for type_, known in _TYPES.items():
        schemas[type_.__name__]["properties"]["type"] = {"enum": list(known)}
    prefix, url = settings.key_prefix, urlsplit(settings.public_url)
    every, of_jobs, sent = ("Event", "EndpointEvent"), ("Event",), ("SignedEvent", "TestEvent")
    messages = {"Event": _message(Event), "EndpointEvent": _message(EndpointEvent)}
    messages |= {"SignedEvent": _message(Event) | _SIGNED, "TestEvent": _message(TestEvent) | _SIGNED}
    filters = {"type": "object", "properties": {each["name"]: each["schema"] for each in query(QUERY, FILTERS)}}
    channels = {
        "pubsub": _channel(f"{prefix}:events", "Redis pub/sub: at once, at most once.", every, "redis"),
        "pubsubOfJob": _channel(f"{prefix}:events:{{job_id}}", "The same, of one job.", of_jobs, "redis")
        | {"parameters": {"job_id": {"description": "the job's id"}}},
        "stream": _channel(f"{prefix}:stream", "A Redis stream: the field `event` of each entry.", every, "redis"),
        "sse": _channel(
            "/v1/events",
            "Server-Sent Events; `id` is the position in the stream, `Last-Event-ID` resumes.",
            every,
            "web",
        ),
        "webhook": _channel(None, "An endpoint's URL; signed as the Standard Webhooks specification says.", sent),
    }
    bindings = {"sse": {"http": {"method": "GET", "query": filters}}, "webhook": {"http": {"method": "POST"}}}
    security = [{"type": "http", "scheme": "bearer", "description": "an API key with the scope read"}]
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Callsheet",
            "version": "1",
            "description": "The same payload on every channel; of a job, each type once and in order.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "redis": {"host": "redis", "protocol": "redis", "description": "what REDIS_URL names"},
            "web": {"host": url.netloc, "protocol": url.scheme, "security": security},
        },
        "channels": channels,
        "operations": {
            name: {
                "action": "send",
                "channel": {"$ref": f"#/channels/{name}"},
                **({"bindings": bindings[name]} if name in bindings else {}),
            }
            for name in channels
        },
        "components": {"schemas": schemas, "messages": messages},
    }


def _channel(address: str | None, says: str, messages: tuple[str, ...], server: str = "") -> Schema:
    return {
        "address": address,
        "description": says,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        **({"servers": [{"$ref": f"#/servers/{server}"}]} if server else {}),
    }


def _message(type_: type) -> Schema:
    return {
        "summary": (type_.__doc__ or "").partition("\n")[0],
        "payload": {"$ref": f"#/components/schemas/{type_.__name__}"},
    }


_HEADERS: Final[Schema] = {
    "webhook-id": {"type": "string", "description": "the event's id, the same at every try"},
    "webhook-timestamp": {"type": "string", "pattern": "^[0-9]+$", "description": "seconds, of this try"},
    "webhook-signature": {"type": "string", "pattern": "^v1,[^ ]+( v1,[^ ]+)*$"},
}
_SIGNED: Final[Schema] = {"headers": {"type": "object", "required": list(_HEADERS), "properties": _HEADERS}}
