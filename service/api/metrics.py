"""`GET /metrics`: the sums of what all processes count, and how things stand, for Prometheus."""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.auth import BearerKeys, Keys
from service.deployment import Deployment
from service.metrics import begin_at_zero, exposition

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


def routes(deployment: Deployment, keys: Keys) -> list[Route]:
    sums = deployment.sums
    begin_at_zero(deployment.settings.accounts)

    async def metrics(_request: Request) -> Response:
        return Response(exposition(await sums.counts(), await sums.gauges()), media_type=_TEXT)

    return [Route("/metrics", metrics, methods=["GET"], middleware=[Middleware(BearerKeys, keys=keys)])]
