"""What a larger store changes: the same costs with few jobs and with many, and the memory that a job takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import Redis

from tests.support.deployment import environment
from tests.support.processes import BIN, Process
from tests.support.servers import valkey_server
from tests.support.web import CREDENTIALS, Web, web_process

from . import load
from .callbacks import tracked
from .measure import OURS, SERVER_CORE, Row, cpu_seconds, pin, rotated

#: At most so many times the cost with few jobs.
_FLAT: Final = 1.1
_CALLBACKS: Final = 2000
_PAGES: Final = 200
#: Seconds of a poller that has nobody to ask.
_IDLE: Final = 8.0


@dataclass(frozen=True)
class Store:
    """So many jobs, and a web process over them."""

    name: str
    web: Web
    redis: Redis
    valkey_pid: int
    bytes_per_job: float  #: live: waiting for their vendor


@contextlib.contextmanager
def _store(folder: Path, jobs: int) -> Iterator[Store]:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        valkey = stack.enter_context(valkey_server(folder, config={"appendfsync": "everysec"}))
        redis = stack.enter_context(Redis.from_url(valkey.url))
        web = stack.enter_context(web_process(folder, {"REDIS_URL": valkey.url, **CREDENTIALS}))
        empty = _memory(redis)
        for _ in range(0, jobs, 10_000):
            tracked(web.settings, min(jobs, 10_000))
        pin(web.process.pid, SERVER_CORE)
        yield Store(f"{jobs:,} jobs", web, redis, valkey.process.pid, (_memory(redis) - empty) / jobs)


def _memory(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def rows(folder: Path, few: int, many: int, rounds: int) -> Iterator[Row]:
    """Ours is what it costs with many; web process and Valkey together."""
    with _store(folder / "few", few) as small, _store(folder / "many", many) as large:
        stores = {small.name: small, OURS: large}
        limits = {small.name: _FLAT}
        made = {
            _callback: Row(f"CPU per callback, {large.name}", "µs", limits),
            _page: Row(f"CPU per page of the list, {large.name}", "µs", limits),
            _turns: Row(f"CPU per second of a poller that has nothing to do, {large.name}", "ms", limits, digits=2),
            _start: Row(f"CPU to start the web process, {large.name}", "ms", limits),
        }
        for number in range(rounds):
            for name in rotated(stores, number):
                for measured, row in made.items():
                    row.add(name, measured(stores[name]))
        yield from made.values()
        memory = Row(f"memory per live job, {large.name}", "bytes", limits, digits=0)
        memory.add(OURS, large.bytes_per_job)
        memory.add(small.name, small.bytes_per_job)
        yield memory


def _used(store: Store) -> float:
    return cpu_seconds(store.web.process.pid) + cpu_seconds(store.valkey_pid)


def _callback(store: Store) -> float:
    news = [callback.request() for callback in tracked(store.web.settings, _CALLBACKS)]
    before = _used(store)
    load.closed(store.web.port, news, 64)
    return (_used(store) - before) / _CALLBACKS * 1e6


def _page(store: Store) -> float:
    page = (
        f"GET /v1/jobs?limit=50 HTTP/1.1\r\nHost: x\r\nAuthorization: {store.web.api.headers['authorization']}\r\n\r\n"
    )
    before = _used(store)
    load.closed(store.web.port, [page.encode()] * _PAGES, 4)
    return (_used(store) - before) / _PAGES * 1e6


def _turns(store: Store) -> float:
    with _poller(store) as poller:
        before = cpu_seconds(poller.pid) + cpu_seconds(store.valkey_pid)
        time.sleep(_IDLE)
        return (cpu_seconds(poller.pid) + cpu_seconds(store.valkey_pid) - before) / _IDLE * 1e3


@contextlib.contextmanager
def _poller(store: Store) -> Iterator[Process]:
    env = environment(store.web.settings)
    with Process(
        [BIN / "python", "-m", "workers.poller"], log=store.web.process.log.parent / "poller.log", env=env
    ) as it:
        it.wait_until(lambda: "poller started" in it.output(), "a poller that is at work")
        pin(it.pid, SERVER_CORE)
        yield it


def _start(store: Store) -> float:
    """CPU of another web process until it is ready, which Valkey shares."""
    before = cpu_seconds(store.valkey_pid)
    folder = store.web.process.log.parent / "start"
    folder.mkdir(exist_ok=True)
    with web_process(folder, {"REDIS_URL": store.web.settings.redis_url, **CREDENTIALS}) as web:
        return (cpu_seconds(web.process.pid) + cpu_seconds(store.valkey_pid) - before) * 1e3
