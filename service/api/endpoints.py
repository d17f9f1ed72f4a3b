"""`/v1/endpoints` and `/v1/deliveries`: where events are sent to, what became of them, and sending them again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.auth import need
from service.api.jobs import metadata_is_wrong
from service.api.problems import ApiError, by_method, decode_body, decode_object, read_body, read_query
from service.api.rows import JOB_ID, Rows, json_answer
from service.deployment import Deployment
from service.fields import Checks
from service.jobs.endpoints import EVENT_TYPES, MAX_ENDPOINTS, TEST, Endpoints, parse_delivery_id
from service.model import OUTCOMES, Attempt, Endpoint, new_id
from service.vendors import VENDORS
from service.vendors.inputs import VISIBLE

PAGE: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {
    "limit": re.compile(r"[1-9][0-9]?|100"),
    "cursor": re.compile(r"[1-9]\d{12}-\d{1,9}"),
    "outcome": frozenset(OUTCOMES),
    "type": frozenset({*EVENT_TYPES, TEST}),
    "job_id": JOB_ID,
}

#: A host by name or number, without a user name: the signature says who sends.
_HOST: Final = r"[!\"$-.0->A-Z^-~]+"
EndpointUrl = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^https?://{_HOST}([/?#]{VISIBLE}*)?(?![\s\S])",
        max_length=2048,
        extra={"form": "an http(s) URL of at most 2048 characters, without a user name"},
    ),
]

Words = Annotated[tuple[str, ...], msgspec.Meta(max_length=50)]


class EndpointRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A new endpoint. Without filters it hears of everything."""

    url: EndpointUrl
    types: Words = ()
    vendors: Words = ()
    metadata: dict[str, object] = {}


class EndpointChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be different about an endpoint. `enabled` again: what it missed can be replayed."""

    url: EndpointUrl | None = None
    types: Words | None = None
    vendors: Words | None = None
    metadata: dict[str, object] | None = None
    enabled: bool | None = None


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True):
    since: Annotated[datetime, msgspec.Meta(tz=True)]


class EndpointView(Endpoint, frozen=True, kw_only=True):
    """An endpoint, how many events wait for it, and since when nothing has got through."""

    waiting: int
    failing_since: datetime | None


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """One event to one endpoint, and what has come of it."""

    id: str
    endpoint_id: str
    waiting: bool
    due_at: datetime | None  #: about when it is tried next; null where it waits for an earlier event of its job
    event: dict[str, object]
    attempts: list[Attempt]  #: the latest first


class Secret(msgspec.Struct, frozen=True):
    """Shown once; it verifies what comes."""

    secret: str


def routes(deployment: Deployment) -> list[Route]:
    endpoints = _Endpoints(deployment)
    one = "/endpoints/{id}"
    return [
        by_method("/endpoints", GET=endpoints.list_, POST=endpoints.create),
        by_method(one, GET=endpoints.read, PATCH=endpoints.change, DELETE=endpoints.delete),
        Route(f"{one}/deliveries", endpoints.deliveries, methods=["GET"]),
        Route(f"{one}/secret", endpoints.new_secret, methods=["POST"]),
        Route(f"{one}/test", endpoints.test, methods=["POST"]),
        Route(f"{one}/replay", endpoints.replay, methods=["POST"]),
        Route("/deliveries/{id}", endpoints.delivery, methods=["GET"]),
        Route("/deliveries/{id}/replay", endpoints.replay_one, methods=["POST"]),
        Route("/jobs/{id}/deliveries", endpoints.of_job, methods=["GET"]),
    ]


class _Endpoints:
    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.store
        self._rows = Rows(deployment)
        self._endpoints = Endpoints(deployment.redis, deployment.store, deployment.settings)
        self._private = deployment.settings.allow_private_networks

    async def list_(self, _request: Request) -> Response:
        return _answer({"data": await self._views(*await self._endpoints.all())})

    async def create(self, request: Request) -> Response:
        need(request, "admin")
        wanted = decode_body(decode_object(await read_body(request)), EndpointRequest, self._checks())
        if len(await self._endpoints.all()) >= MAX_ENDPOINTS:
            raise ApiError(409, f"there are {MAX_ENDPOINTS} endpoints already")
        now = await self._store.now_ms()
        endpoint = Endpoint(id=new_id("ep", now), created_at=datetime.fromtimestamp(now / 1000, UTC), **asdict(wanted))
        secret = await self._endpoints.add(endpoint)
        request.state.made = endpoint.id
        [view] = await self._views(endpoint)
        return _answer({**asdict(view), "secret": secret}, 201)

    async def read(self, request: Request) -> Response:
        [view] = await self._views(await self._endpoint(request))
        return _answer(view)

    async def change(self, request: Request) -> Response:
        need(request, "admin")
        endpoint = await self._endpoint(request)
        wanted = decode_body(decode_object(await read_body(request)), EndpointChange, self._checks())
        changes = {name: value for name, value in asdict(wanted).items() if value is not None}
        if wanted.enabled is not None:
            changes["disabled_reason"] = None if wanted.enabled else "by hand"
        changed = await self._endpoints.change(endpoint.id, **changes)
        [view] = await self._views(changed or await self._endpoint(request))
        return _answer(view)

    async def delete(self, request: Request) -> Response:
        need(request, "admin")
        await self._endpoints.delete((await self._endpoint(request)).id)
        return Response(status_code=204)

    async def new_secret(self, request: Request) -> Response:
        """Replace the secret; for a day the old one signs as well."""
        need(request, "admin")
        return _answer({"secret": await self._endpoints.new_secret((await self._endpoint(request)).id)}, 201)

    async def deliveries(self, request: Request) -> Response:
        """The latest tries, newest first."""
        endpoint, query = await self._endpoint(request), read_query(request, PAGE)
        rows, cursor = await self._endpoints.attempts_json(endpoint.id, int(query.pop("limit", "20")), **query)
        return json_answer(b'{"data":[%b],"next_cursor":%b}' % (b",".join(rows), msgspec.json.encode(cursor)))

    async def of_job(self, request: Request) -> Response:
        """The latest tries to tell of a job, newest first."""
        job = await self._rows.job(request)
        return json_answer(b'{"data":[%b]}' % b",".join(await self._endpoints.attempts_of_json(job.id)))

    async def test(self, request: Request) -> Response:
        """Send an event that says nothing."""
        need(request, "admin")
        endpoint = self._enabled(await self._endpoint(request))
        return _answer({"delivery_id": await self._endpoints.test(endpoint.id)}, 202)

    async def replay(self, request: Request) -> Response:
        """Send every event since a moment again; `complete`: the stream goes back so far."""
        need(request, "admin")
        endpoint = self._enabled(await self._endpoint(request))
        wanted = decode_body(decode_object(await read_body(request)), ReplayRequest, {})
        since = max(0, int(wanted.since.timestamp() * 1000))
        events, complete = await self._endpoints.replay(endpoint, since)
        return _answer({"events": events, "complete": complete}, 202)

    async def delivery(self, request: Request) -> Response:
        endpoint, member, event = await self._delivery(request)
        delivery_id = request.path_params["id"]
        waiting, due_at = await self._endpoints.due_at(endpoint.id, member)
        rows, _ = await self._endpoints.attempts_json(endpoint.id, 100, delivery_id=delivery_id)
        view = DeliveryView(
            id=delivery_id,
            endpoint_id=endpoint.id,
            waiting=waiting,
            due_at=due_at,
            event=msgspec.json.decode(event),
            attempts=[msgspec.json.decode(row, type=Attempt) for row in rows],
        )
        return _answer(view)

    async def replay_one(self, request: Request) -> Response:
        need(request, "admin")
        endpoint, member, _ = await self._delivery(request)
        await self._endpoints.send(self._enabled(endpoint).id, member)
        return _answer({"delivery_id": request.path_params["id"]}, 202)

    async def _delivery(self, request: Request) -> tuple[Endpoint, str, bytes]:
        """Its endpoint, its member of what waits there, and its event."""
        endpoint_id, member = parse_delivery_id(request.path_params["id"]) or ("", "")
        endpoint = await self._endpoints.get(endpoint_id)
        event = await self._endpoints.event(member) if endpoint else None
        if endpoint is None or event is None:
            raise ApiError(404, f"there is no delivery {request.path_params['id'][:120]!r}")
        return endpoint, member, event

    async def _endpoint(self, request: Request) -> Endpoint:
        endpoint_id = request.path_params["id"]
        endpoint = await self._endpoints.get(endpoint_id)
        if endpoint is None:
            raise ApiError(404, f"there is no endpoint {endpoint_id[:40]!r}")
        return endpoint

    def _enabled(self, endpoint: Endpoint) -> Endpoint:
        if not endpoint.enabled:
            raise ApiError(409, f"the endpoint is disabled ({endpoint.disabled_reason}); enable it first")
        return endpoint

    async def _views(self, *endpoints: Endpoint) -> list[EndpointView]:
        ids = [endpoint.id for endpoint in endpoints]
        found = zip(
            endpoints, await self._endpoints.waiting(*ids), await self._endpoints.failing_since(*ids), strict=True
        )
        return [EndpointView(**asdict(one), waiting=number, failing_since=since) for one, number, since in found]

    def _checks(self) -> Checks:
        return {
            "url": lambda url: None if url is None else self._url_is_wrong(url),
            "types": lambda words: _not_among(words or (), EVENT_TYPES),
            "vendors": lambda words: _not_among(words or (), VENDORS),
            "metadata": lambda metadata: metadata_is_wrong(metadata or {}),
        }

    def _url_is_wrong(self, url: str) -> str | None:
        return None if self._private or url.startswith("https:") else "must be an https URL"


def _not_among(words: Iterable[str], known: Iterable[str]) -> str | None:
    wrong = [word for word in words if word not in known]
    return f"{wrong[0][:40]!r} is not one of {', '.join(known)}" if wrong else None


def _answer(body: object, status: int = 200) -> Response:
    return json_answer(msgspec.json.encode(body), status)
