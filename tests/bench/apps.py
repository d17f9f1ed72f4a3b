"""The floors as servers: what uvicorn costs alone, with one Redis call a request, and with RQ's documented enqueue.

`python -m tests.bench.apps bare --port N`. Each takes a POST with a JSON body, and answers as ours does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click
import redis
import uvicorn
from redis.asyncio import BlockingConnectionPool, Redis
from rq import Queue
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .noop import noop

_RECEIVED: Final = b'{"received":true}'
_KEEP: Final = "redis.call('HSET', KEYS[1], 'body', ARGV[1]) redis.call('RPUSH', KEYS[2], KEYS[1]) return 1"


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    return body


async def _answer(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"17")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _RECEIVED})


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers."""
    await _body(receive)
    await _answer(send)


def evalsha(redis_url: str) -> ASGIApp:
    """The same, after one EVALSHA by redis-py that keeps the body."""
    client = Redis.from_pool(BlockingConnectionPool.from_url(redis_url, max_connections=64, timeout=10))
    keep = client.register_script(_KEEP)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        await keep(keys=[f"bench:{scope['path']}", "bench:queue"], args=[body])
        await _answer(send)

    return app


def rq(redis_url: str) -> ASGIApp:
    """Starlette, and `Queue.enqueue` as RQ's documentation has it, which has to go to a thread."""
    queue = Queue("bench", connection=redis.Redis.from_url(redis_url))

    async def take(request: Request) -> JSONResponse:
        await run_in_threadpool(queue.enqueue, noop, await request.json())
        return JSONResponse({"received": True})

    return Starlette(routes=[Route("/{path:path}", take, methods=["POST"])])


@click.command()
@click.argument("name", type=click.Choice(["bare", "evalsha", "rq"]))
@click.option("--port", type=int, required=True)
@click.option("--redis-url", required=True)
def main(name: str, port: int, redis_url: str) -> None:
    apps: dict[str, Callable[[str], Any]] = {"bare": lambda _: bare, "evalsha": evalsha, "rq": rq}
    uvicorn.run(
        apps[name](redis_url),
        host="127.0.0.1",
        port=port,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
