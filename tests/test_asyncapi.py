"""`/asyncapi.json` and `/openapi.json`: valid by their own projects' parsers, and true to what is published."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from starlette.routing import Route

from service.api import asyncapi, endpoints, events, openapi
from service.deployment import Deployment
from service.model import Event, Observation, Source, Status
from tests.support import node
from tests.support.web import Web
from workers import notify


def test_the_asyncapi_project_s_parser_finds_nothing_wrong(web: Web) -> None:
    answer = web.http.get("/asyncapi.json")
    assert answer.json() == json.loads(msgspec.json.encode(asyncapi.document(web.settings)))
    told = node.run("asyncapi.mjs", stdin=answer.text).splitlines()
    assert told == ["channels: pubsub pubsubOfJob stream sse webhook"]
    broken = answer.json()
    del broken["channels"]["sse"]["messages"]["Event"]["$ref"]
    broken["channels"]["sse"]["address"] = 7
    assert node.run("asyncapi.mjs", stdin=json.dumps(broken)) != "\n".join(told)


def test_every_message_that_is_sent_to_an_endpoint_has_the_headers_that_are_described(web: Web) -> None:
    document = web.http.get("/asyncapi.json").json()
    sent = notify.signature(["whsec_AAAA", "whsec_BBBB"], "evt_1", 1_700_000_000, b"{}")
    sent.pop("content-type")
    for name in document["channels"]["webhook"]["messages"]:
        described = document["components"]["messages"][name]["headers"]
        assert described["required"] == list(described["properties"]) == list(sent)
        for header, text in sent.items():
            assert re.fullmatch(described["properties"][header].get("pattern", ".+"), text), header


def test_channels_are_named_and_filled_as_they_are_described(web: Web) -> None:
    document: dict[str, Any] = web.http.get("/asyncapi.json").json()
    with web.redis.pubsub() as heard:  # type: ignore[no-untyped-call]
        job = web.track("kitta")
        named = [channel["address"] for name, channel in document["channels"].items() if name.startswith("pubsub")]
        heard.subscribe(*(name.replace("{job_id}", job["id"]) for name in named))
        assert [heard.get_message(timeout=5)["type"] for _ in named] == ["subscribe"] * 2
        web.record(Observation(source=Source.CALLBACK, status=Status.QUEUED), vendor="kitta", job_id=job["id"])
        messages = [heard.get_message(timeout=5)["data"] for _ in named]
        stream: Any = web.redis.xrange(document["channels"]["stream"]["address"])
    assert messages == [stream[-1][1][b"event"]] * 2
    event = msgspec.json.decode(stream[-1][1][b"event"], type=Event, strict=True)
    schema = document["components"]["schemas"]
    assert set(msgspec.to_builtins(event)) == set(schema["Event"]["properties"])
    assert set(json.loads(stream[-1][1][b"event"])["data"]) == set(schema["Job"]["properties"])
    assert event.type in schema["Event"]["properties"]["type"]["enum"]


def test_every_route_of_the_api_is_described(web: Web) -> None:
    deployment = Deployment(web.settings)
    parts = [*endpoints.routes(deployment), *events.routes(events.Feed(deployment))]
    described = openapi.document()["paths"]
    for route in parts:
        assert isinstance(route, Route)
        methods = {method.lower() for method in (route.methods or ()) if method != "HEAD"}
        assert set(described[f"/v1{route.path}"]) == methods
