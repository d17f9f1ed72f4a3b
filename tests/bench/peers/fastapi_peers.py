"""FastAPI that takes a callback and queues a task, by Celery or by arq, as their documentation has it."""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn
from fastapi import FastAPI


def with_celery(redis_url: str) -> FastAPI:
    from celery import Celery  # each is in an environment of its own

    app, queue = FastAPI(), Celery("bench", broker=redis_url)

    @queue.task(ignore_result=True)
    def handle(callback: dict[str, Any]) -> None: ...

    @app.post("/{path:path}")
    def take(path: str, callback: dict[str, Any]) -> dict[str, bool]:  # no `async`: `delay` blocks
        handle.delay(callback)
        return {"received": True}

    return app


def with_arq(redis_url: str) -> FastAPI:
    import arq
    from arq.connections import RedisSettings

    app, kept = FastAPI(), []

    @app.post("/{path:path}")
    async def take(path: str, callback: dict[str, Any]) -> dict[str, bool]:
        if not kept:
            kept.append(await arq.create_pool(RedisSettings.from_dsn(redis_url)))
        await kept[0].enqueue_job("handle", callback)
        return {"received": True}

    return app


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("queue", choices=["celery", "arq"])
    words.add_argument("--port", type=int)
    words.add_argument("--redis-url")
    given = words.parse_args()
    app = {"celery": with_celery, "arq": with_arq}[given.queue](given.redis_url)
    options = {"http": "httptools", "loop": "uvloop", "access_log": False, "log_level": "warning"}
    uvicorn.run(app, host="127.0.0.1", port=given.port, **options)
