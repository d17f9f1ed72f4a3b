"""What a small task costs in a worker: ours beside RQ's own two, each with a task that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from service.jobs import tasks
from tests.support.processes import BIN, Process

from . import noop
from .measure import OURS, SERVER_CORE, Row, cpu_seconds, pin, rotated
from .stage import Stage, our_worker, stage

_QUEUE: Final = "bench"
#: RQ's workers, and how many tasks of ours stand beside one of theirs: theirs take longer.
_THEIRS: Final = {"SimpleWorker": ("rq.worker.SimpleWorker", 4), "fork Worker": ("rq.worker.Worker", 20)}


def row(folder: Path, count: int, rounds: int) -> Row:
    made = Row("CPU per small task", "µs", {"SimpleWorker": 0.3, "fork Worker": 0.04})
    with stage(folder) as at:
        for number in range(rounds):
            for name in rotated((OURS, *_THEIRS), number):
                at.redis.flushall()
                made.add(name, _ours(at, count) if name == OURS else _theirs(at, name, count))
    return made


def _ours(at: Stage, count: int) -> float:
    queue = Queue(at.settings.queue(tasks.ARCHIVE), connection=at.redis, serializer=JSONSerializer)
    with our_worker(at) as worker:
        return _measured(worker, at.redis, queue, noop.anoop, count)


def _theirs(at: Stage, name: str, count: int) -> float:
    class_, fewer = _THEIRS[name]
    words: list[str | Path] = [
        BIN / "rq",
        "worker",
        "--quiet",
        "--url",
        at.settings.redis_url,
        "--worker-class",
        class_,
        _QUEUE,
    ]
    with Process(words, log=at.folder / "rq.log") as worker:
        worker.wait_until(lambda: at.redis.scard("rq:workers"), "a worker that RQ sees", timeout=20)
        pin(worker.pid, SERVER_CORE)
        return _measured(worker, at.redis, Queue(_QUEUE, connection=at.redis), noop.noop, count // fewer)


def _measured(worker: Process, redis: Redis, queue: Queue, task: Callable[[object], object], count: int) -> float:
    """Microseconds of CPU for each of so many tasks, all of which RQ has to call finished."""
    finished = f"rq:finished:{queue.name}"
    made = [Queue.prepare_data(task, args=({},), result_ttl=3600) for _ in range(count)]
    before = cpu_seconds(worker.pid)
    queue.enqueue_many(made)
    worker.wait_until(lambda: redis.zcard(finished) == count, "the end of all tasks", timeout=120)
    return (cpu_seconds(worker.pid) - before) / count * 1e6
