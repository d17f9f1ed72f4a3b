"""The web process: receives callbacks and knows about jobs. It calls no vendor, no link and no subscriber."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import Mount, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tracing
from service.api import (
    asyncapi,
    audit,
    callbacks,
    costs,
    endpoints,
    events,
    health,
    jobs,
    metrics,
    openapi,
    operator,
    overview,
    quarantine,
    reference,
    vendors,
)
from service.api.auth import BearerKeys, Keys
from service.api.problems import REFUSALS, on_error
from service.dashboard import views as dashboard
from service.deployment import Deployment, configured
from service.jobs.tokens import redact
from service.settings import Settings


def create_app(settings: Settings | None = None) -> ASGIApp:
    """The ASGI application; without `settings`, from the environment."""
    deployment = Deployment(settings or configured())
    feed = events.Feed(deployment)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, object]]:
        async with deployment.opened("web"):
            yield {"stopping": feed.end}  # for the server, which waits for its listeners before it ends the lifespan
            await feed.close()

    parts = (jobs, operator, costs, endpoints, overview, quarantine, vendors, audit)
    keys = Keys(deployment.settings.api_keys)
    api = Router(
        [*events.routes(feed), *(route for part in parts for route in part.routes(deployment))],
        middleware=[Middleware(audit.Audited, store=deployment.store)],
    )
    router = Starlette(
        routes=[
            *health.routes(deployment),
            *openapi.routes(),
            *reference.routes(),
            *asyncapi.routes(deployment.settings),
            *metrics.routes(deployment, keys),
            Mount("/v1", app=api, middleware=[Middleware(BearerKeys, keys=keys)]),
            *dashboard.routes(deployment, api, keys),
        ],
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((*REFUSALS, Exception), on_error),
    )
    router.router.redirect_slashes = False  # to wherever the Host header says
    return _InFront(callbacks.Callbacks(deployment), _Hardened(router))


#: For every answer that does not say otherwise: nothing of ours is to be framed, sniffed, cached or to run scripts.
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class _Hardened:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                tracing.note(http_status=message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, hardened)


class _InFront:
    """Callbacks take the short way, past the router and its middleware."""

    def __init__(self, callbacks_: ASGIApp, router: ASGIApp) -> None:
        self._callbacks = callbacks_
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        short = scope["type"] == "http" and scope["path"].startswith(callbacks.PREFIX)
        app = self._callbacks if short else self._router
        # What only reads is not traced: it changes nothing, and may last for hours.
        if not tracing.on() or scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await app(scope, receive, send)
            return
        path = None if short else redact(scope["path"].encode(errors="replace")).decode()
        with tracing.span("callback" if short else scope["method"], kind="server", path=path):
            await app(scope, receive, send)
