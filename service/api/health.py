"""`/healthz`: the process answers. `/readyz`: and Redis answers and can be written."""

from __future__ import annotations

from redis import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.api.problems import ApiError
from service.deployment import Deployment


def routes(deployment: Deployment) -> list[Route]:
    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        try:
            await deployment.redis.set(deployment.store.key("ready"), "1", ex=60)
        except (RedisError, OSError) as error:
            raise ApiError(
                503, f"Redis cannot be written: {type(error).__name__}", headers={"Retry-After": "5"}
            ) from None
        return JSONResponse({"status": "ready"})

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
