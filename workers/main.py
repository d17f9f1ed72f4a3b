"""The RQ worker that loses nothing: many tasks at once in one process, on RQ's own queue and registries.

RQ's worker runs one task a process and loses some at every restart. This one takes from each queue by BLMOVE, so
that a task is always in one list or another; on SIGTERM it only sets a flag; and what it still had to leave behind
goes back to the head of the queue. Whatever dies with it is found by the poller's sweep. Only tasks on the list below
are ever run: the name of a function in Redis is not a reason to call it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
import traceback
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final
from uuid import uuid4

import msgspec
import uvloop
from redis import Redis as SyncRedis
from redis import RedisError
from rq import Worker as RQWorker
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer
from rq.utils import utcformat

from service import logs, metrics, tracing
from service.deployment import Deployment, configured, opened
from service.jobs import tasks
from service.jobs.connection import connect_sync
from service.jobs.endpoints import MAX_ENDPOINTS
from service.settings import Settings
from workers import archive, notify, outbound, submit
from workers.archive import Archivist
from workers.download import Interrupted
from workers.notify import Notifier
from workers.stopping import stop_signal, stopped
from workers.submit import Submitter

Task = Callable[..., Awaitable[object]]

#: The allow-list: dotted path → task.
TASKS: Final[dict[str, Task]] = {
    tasks.PATHS[tasks.ARCHIVE]: archive.store_outputs,
    tasks.PATHS[tasks.SUBMIT]: submit.send_order,
    tasks.PATHS[tasks.NOTIFY]: notify.deliver,
}

#: Files and connections at once, where the system allows so many: slow subscribers alone may take 1,600.
MAX_FILES: Final = 4096
#: Seconds that running tasks have to finish after SIGTERM, and then to put themselves back. SIGKILL comes after 30.
GRACE: Final = 18.0
PUT_BACK: Final = 6.0
#: An execution without a worker leaves RQ's registry after so many seconds.
EXECUTION_SECONDS: Final = 6 * 3600
HEARTBEAT_SECONDS: Final = 30.0

_log = logs.get("worker")


class Worker:
    """One process's share of one queue, so many tasks at once."""

    def __init__(self, deployment: Deployment, name: str, queue: str, concurrency: int) -> None:
        self.name = name
        self._settings = deployment.settings
        self._concurrency = concurrency
        self._redis = deployment.redis
        self._queue = queue
        self._running: set[asyncio.Task[None]] = set()
        self._start = self._redis.register_script((files("workers") / "lua" / "start.lua").read_text())
        self._finish = self._redis.register_script((files("workers") / "lua" / "finish.lua").read_text())

    async def work(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, and finish what can be finished in time."""
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            if len(self._running) >= self._concurrency:
                await asyncio.wait({*self._running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            elif task_id := await self._next():
                running = asyncio.create_task(self._work(task_id))
                self._running.add(running)
                running.add_done_callback(self._done)
        if self._running:
            _log.info("stopping", queue=self._queue, tasks=len(self._running))
            await asyncio.wait(self._running, timeout=GRACE)

    async def put_back(self) -> None:
        """Wait for what was interrupted to go back to its queue."""
        if self._running:
            await asyncio.wait(self._running, timeout=PUT_BACK)

    def _done(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        if not running.cancelled() and (error := running.exception()):
            metrics.errors("worker").inc()
            _log.error("a task was left to the sweep", error=repr(error)[:300])

    async def _next(self) -> str | None:
        """The next task's id, moved to the intermediate list; None after a second without one."""
        key = f"rq:queue:{self._queue}"
        try:
            found = await self._redis.blmove(key, f"{key}:intermediate", 1, "LEFT", "RIGHT")
        except (RedisError, OSError) as error:
            _log.warning("the queue does not answer", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(1)
            return None
        return None if found is None else os.fsdecode(found)

    async def _work(self, task_id: str) -> None:
        execution, now = uuid4().hex, time.time()
        expiry = int(now + EXECUTION_SECONDS)
        args: list[str | float] = [self._queue, task_id, execution, self.name, _utc(now), now, expiry]
        started = await self._start(args=args)
        if started is None:  # RQ has forgotten it; if anything is left to do, the sweep knows
            return
        outcome, trouble = await _run(*started)
        now = time.time()
        await self._finish(args=[self._queue, task_id, execution, outcome, _utc(now), now])
        if trouble:
            metrics.errors("worker").inc()
            _log.error("a task failed", task=task_id, trouble=trouble)
            await asyncio.to_thread(self._register_failure, task_id, trouble)

    def _register_failure(self, task_id: str, trouble: str) -> None:
        """Into RQ's registry of failed jobs, by RQ's own code."""
        with connect_sync(self._settings) as redis, redis.pipeline() as pipeline:
            job = RQJob.fetch(task_id, connection=redis, serializer=JSONSerializer)
            job._handle_failure(trouble, pipeline, worker_name=self.name)
            pipeline.execute()


async def _run(data: bytes, meta: bytes | None) -> tuple[str, str]:
    """Run what a task's data names. Its outcome for RQ, and the trouble it met."""
    try:
        path, _, args, kwargs = _DATA.decode(_plain(data))
        task = TASKS.get(path)
        if task is None:
            return "failed", f"{path!r} is not a task of this worker"
        around = _META.decode(meta).traceparent if meta else None
        with tracing.span(path, around, kind="consumer", task=path, subject=str(args[0]) if args else None):
            await task(*args, **kwargs)
    except Interrupted:
        return "again", ""
    except Exception:
        return "failed", traceback.format_exc()
    return "finished", ""


class _Meta(msgspec.Struct, frozen=True):
    traceparent: str | None = None


_META: Final = msgspec.json.Decoder(_Meta)
_DATA: Final = msgspec.json.Decoder(tuple[str, None, list[object], dict[str, object]])


def _plain(data: bytes) -> bytes:
    """A task's data as RQ's serializer made it: RQ compresses it, our own commit does not."""
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data


def _utc(seconds: float) -> str:
    return utcformat(datetime.fromtimestamp(seconds, UTC))


async def _be_seen(settings: Settings, name: str, queues: list[str], stop: asyncio.Event) -> None:
    """Let RQ's tools see this worker, by RQ's own code. Nothing depends on it."""
    with connect_sync(settings) as redis:
        seen: RQWorker | None = None
        while not stop.is_set():
            try:
                if seen is None:
                    seen = await asyncio.to_thread(_born, redis, name, queues)
                else:
                    await asyncio.to_thread(seen.heartbeat)
            except (RedisError, OSError) as error:
                _log.warning("not seen by RQ", error=type(error).__name__)
            await stopped(stop, HEARTBEAT_SECONDS)
        if seen is not None:
            with suppress(RedisError, OSError):
                await asyncio.to_thread(seen.register_death)


def _born(redis: SyncRedis, name: str, queues: list[str]) -> RQWorker:
    """RQ's record of this worker. Redis may be away: RQ asks it even to make the object."""
    seen = RQWorker(queues, name=name, connection=redis, serializer=JSONSerializer)
    seen.log.setLevel("WARNING")
    with suppress(ValueError):  # an earlier try has arrived, and its answer was lost
        seen.register_birth()  # type: ignore[no-untyped-call]
    return seen


async def run(deployment: Deployment, stop: asyncio.Event) -> None:
    """A worker over a deployment, until `stop` is set; what could not be finished in time goes back to its queue."""
    settings, interrupted = deployment.settings, asyncio.Event()
    name = f"{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}"
    queues = {settings.queue(task): settings.worker_concurrency for task in tasks.PATHS}
    queues[settings.queue(tasks.NOTIFY)] = MAX_ENDPOINTS  # however many are slow, there is room for the others
    workers = [Worker(deployment, name, queue, concurrency) for queue, concurrency in queues.items()]
    private = settings.allow_private_networks
    # Names are looked up in threads. Some hang for half a minute, and asyncio's own few would all wait for those.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MAX_ENDPOINTS))
    async with (
        outbound.client(allow_private_networks=private) as http,
        outbound.client(allow_private_networks=private, reuse=False) as orders,
        notify.client(allow_private_networks=private) as hooks,
        asyncio.TaskGroup() as group,
    ):
        archive.shared.set(Archivist(deployment, http, interrupted))
        submit.shared.set(Submitter(deployment, orders, interrupted))
        notify.shared.set(Notifier(deployment, hooks, stop))
        group.create_task(_be_seen(settings, name, list(queues), stop))
        await asyncio.gather(*(worker.work(stop) for worker in workers))
        interrupted.set()
        await asyncio.gather(*(worker.put_back() for worker in workers))


async def main() -> None:
    settings = configured()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    stop = stop_signal()
    async with opened(settings, "worker") as deployment:
        _log.info("worker started", tasks=list(tasks.PATHS), concurrency=settings.worker_concurrency)
        await run(deployment, stop)
        _log.info("worker stopped")


if __name__ == "__main__":
    uvloop.run(main())
