"""A worker's task in a process of its own that dies at a point of its own choice.

`python -m tests.support.kills` imports everything once and forks for every run, so a run costs little. A run counts
its points: each round trip to Redis and each HTTP request. At the point that it is told it kills itself, with SIGKILL,
before the request is made or after its answer has come and before anybody has read it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from unittest import mock

import httpx
import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from service.deployment import configured
from service.jobs.scripts import script_text
from service.settings import Settings
from workers import upload
from workers.outbound import GuardedTransport
from workers.submit import send_order

from .deployment import environment
from .processes import BIN, Process

T = TypeVar("T")

When = Literal["before", "after"]

_SCRIPTS: Final = ("commit", "read", "vendor", "held")


class Run(msgspec.Struct, frozen=True):
    """What became of a run."""

    points: list[str]  #: what it did, or was about to do when it died: `HMGET`, `commit`, `POST /chanjing/…`
    killed: bool
    exit_code: int  #: of a run that was not killed


class Death(msgspec.Struct, frozen=True):
    """Where a run dies."""

    at: int | str  #: the number of a point, from 1, or how the first that is meant begins
    when: When


class _Order(msgspec.Struct, frozen=True):
    job_id: str
    env: dict[str, str]
    death: Death | None


class Kills:
    """Runs the task of a job, and kills it where a test says so."""

    def __init__(self, port: int) -> None:
        self._port = port

    def run(self, job_id: str, settings: Settings, death: Death | None = None) -> Run:
        """One run of `send_order`."""
        order = _Order(job_id, environment(settings), death)
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(msgspec.json.encode(order))
            connection.shutdown(socket.SHUT_WR)
            return msgspec.json.decode(_all(connection), type=Run)


@contextmanager
def kills_in(folder: Path) -> Iterator[Kills]:
    """A `Kills` for the length of a block."""
    with Process([BIN / "python", "-m", "tests.support.kills"], log=folder / "kills.log") as process:
        told = process.wait_until(lambda: re.search(r"^kills on (\d+)$", process.output(), re.MULTILINE), "its port")
        yield Kills(int(told[1]))


# -- the other side -------------------------------------------------------------------------------------------

#: Read once: it takes longer than all the rest of a run.
_TRUST: Final = httpx.create_ssl_context()


def _serve() -> None:
    """Fork for every order. One thread and no event loop: what is forked is whole."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print("kills on", listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                order = msgspec.json.decode(_all(connection), type=_Order)
                connection.sendall(msgspec.json.encode(_forked(order)))


def _forked(order: _Order) -> Run:
    assert threading.active_count() == 1
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.clear()
            os.environ.update(order.env)
            asyncio.run(_run(order, writer))
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as told:
        points = told.read().splitlines()
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Run(points, killed, os.waitstatus_to_exitcode(status))


async def _run(order: _Order, writer: int) -> None:
    settings = configured()
    names = {hashlib.sha1(script_text(name, settings).encode()).hexdigest(): name for name in _SCRIPTS}  # noqa: S324
    number = 0

    async def point(name: str, request: Callable[[], Awaitable[T]]) -> T:
        nonlocal number
        number += 1
        at = order.death.at if order.death else 0
        mine = number == at if isinstance(at, int) else name.startswith(at)
        os.write(writer, f"{name}\n".encode())
        if mine and order.death and order.death.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await request()
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    command: Callable[..., Awaitable[Any]] = Redis.execute_command
    pipeline: Callable[..., Awaitable[Any]] = Pipeline.execute
    send = GuardedTransport.handle_async_request

    async def execute_command(redis: Redis, *args: Any, **options: Any) -> Any:
        name = names.get(str(args[1]), str(args[1])[:8]) if args[0] == "EVALSHA" else str(args[0])
        return await point(name, lambda: command(redis, *args, **options))

    async def execute(pipe: Pipeline, *args: Any, **options: Any) -> Any:
        return await point("pipeline", lambda: pipeline(pipe, *args, **options))

    async def handle(transport: GuardedTransport, request: httpx.Request) -> httpx.Response:
        return await point(f"{request.method} {request.url.path}", lambda: send(transport, request))

    with (
        mock.patch.object(Redis, "execute_command", execute_command),
        mock.patch.object(Pipeline, "execute", execute),
        mock.patch.object(GuardedTransport, "handle_async_request", handle),
        mock.patch.object(upload, "READY_EVERY", 0.01),
        mock.patch.object(httpx, "create_ssl_context", return_value=_TRUST),
    ):
        await send_order(order.job_id)


def _all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(2**16):
        received += data
    return received


if __name__ == "__main__":
    _serve()
