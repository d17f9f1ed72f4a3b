"""The tasks that a commit pushes, held beside RQ: what it would have written, and what its own workers make of it."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, cast

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import utcparse

from service.deployment import Deployment
from service.jobs import tasks
from service.jobs.connection import connect_sync
from service.model import Archive, Observation, Output, Source, Status, new_id
from tests.support.deployment import environment, settings
from tests.support.processes import BIN, Processes

QUEUE: Final = "callsheet-archive"
LINE: Final = f"rq:queue:{QUEUE}"
LINK: Final = "https://cdn.example/one.mp4"

#: What differs by the moment: the times of the two writers.
TIMES: Final = (b"created_at", b"enqueued_at")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """As RQ uses it."""
    with connect_sync(settings(redis_url)) as client:
        yield client


async def succeeded(deployment: Deployment, link: str = LINK) -> str:
    """A job whose outputs wait to be stored, which the commit has pushed a task for."""
    job_id = new_id("job", await deployment.store.now_ms())
    seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=(Output(url=link),))
    await deployment.tracker.record(Observation(source=Source.SUBMIT), vendor="kitta", job_id=job_id, create=True)
    await deployment.tracker.record(seen, vendor="kitta", job_id=job_id)
    return job_id


def rq_id(job_id: str) -> str:
    return f"archive-{job_id}"


def line(redis: Redis) -> list[str]:
    """The RQ jobs that wait in the queue, the next one first."""
    return [found.decode() for found in cast("list[bytes]", redis.lrange(LINE, 0, -1))]


def enqueued_by_rq(redis: Redis, job_id: str) -> RQJob:
    """The same task, by RQ's own call with the same arguments."""
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    return queue.enqueue_call(
        tasks.PATHS[tasks.ARCHIVE],
        args=(job_id,),
        timeout=6 * 3600,
        result_ttl=300,
        failure_ttl=7 * 86_400,
        job_id=rq_id(job_id),
    )


def written(redis: Redis, job_id: str) -> dict[str, object]:
    """Everything of RQ's in Redis, times and compression aside."""
    fields = cast("dict[bytes, bytes]", redis.hgetall(f"rq:job:{rq_id(job_id)}"))
    data = fields.pop(b"data")
    return {
        "fields": {name: value for name, value in fields.items() if name not in TIMES},
        "times": sorted(name for name in fields if name in TIMES),
        "data": zlib.decompress(data) if data.startswith(b"x") else data,
        "expires": redis.ttl(f"rq:job:{rq_id(job_id)}"),
        "line": line(redis),
        "queues": redis.smembers("rq:queues"),
        "keys": sorted(cast("list[bytes]", redis.keys("rq:*"))),
    }


# -- what is written ------------------------------------------------------------------------------------


async def test_a_pushed_task_is_what_rqs_own_enqueue_writes(deployment: Deployment, redis: Redis) -> None:
    job_id = await succeeded(deployment)
    ours = written(redis, job_id)
    for key in cast("list[bytes]", redis.keys("rq:*")):
        redis.delete(key)
    enqueued_by_rq(redis, job_id)
    assert ours == written(redis, job_id)


async def test_the_times_of_a_pushed_task_are_redis_clock_in_rqs_format(deployment: Deployment, redis: Redis) -> None:
    before = await deployment.store.now_ms()
    job_id = await succeeded(deployment)
    after = await deployment.store.now_ms()
    for name in TIMES:
        moment = cast("bytes", redis.hget(f"rq:job:{rq_id(job_id)}", name.decode())).decode()
        assert before <= utcparse(moment).timestamp() * 1000 <= after
        assert len(moment) == len("2026-01-31T12:00:00.000000Z"), "the sweep compares it to RQ's by letters"


async def test_rq_reads_a_pushed_task_as_it_reads_its_own(deployment: Deployment, redis: Redis) -> None:
    job_id = await succeeded(deployment)
    job = RQJob.fetch(rq_id(job_id), connection=redis, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs) == (tasks.PATHS[tasks.ARCHIVE], [job_id], {})
    assert (job.get_status(), job.timeout, job.origin) == (JobStatus.QUEUED, 6 * 3600, QUEUE)
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    assert queue.job_ids == [job.id]
    assert queue in Queue.all(connection=redis, serializer=JSONSerializer)


async def test_a_task_that_is_pushed_again_begins_without_the_traces_of_its_last_run(
    deployment: Deployment, redis: Redis
) -> None:
    job_id = await succeeded(deployment)
    fresh = written(redis, job_id)
    redis.delete(LINE)
    redis.hset(f"rq:job:{rq_id(job_id)}", mapping={"status": "finished", "ended_at": "then", "exc_info": "x"})
    redis.expire(f"rq:job:{rq_id(job_id)}", 300)
    for archive in (Archive.FAILED, Archive.WAITING):
        seen = Observation(source=Source.ARCHIVE, archive=archive)
        await deployment.tracker.record(seen, vendor="kitta", job_id=job_id)
    assert written(redis, job_id) == fresh


# -- RQ's own workers, unchanged --------------------------------------------------------------------------


class CDN(BaseHTTPRequestHandler):
    """One file."""

    FILE: Final = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 1000

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(self.FILE)))
        self.end_headers()
        self.wfile.write(self.FILE)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def cdn() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), CDN) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/one.mp4"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("worker", ["rq.worker.Worker", "rq.worker.SimpleWorker"])
async def test_an_unchanged_rq_worker_runs_a_pushed_task_to_its_end(
    deployment: Deployment, redis: Redis, processes: Processes, worker: str
) -> None:
    made = deployment.settings
    with cdn() as link:
        job_id = await succeeded(deployment, link)
        options = ["--burst", "--url", made.redis_url, "--serializer", "rq.serializers.JSONSerializer"]
        command: list[str | Path] = [BIN / "rq", "worker", *options, "--worker-class", worker, QUEUE]
        process = processes.start("rq", command, env=environment(made))
        assert process.wait(timeout=30) == 0, process.describe()

    job = await deployment.store.job(job_id)
    assert job
    assert job.archive is Archive.STORED, process.describe()
    [stored] = [output.stored for output in job.outputs]
    assert stored
    assert (stored.sha256, stored.bytes) == (hashlib.sha256(CDN.FILE).hexdigest(), len(CDN.FILE))
    path = deployment.storage.path(stored.key)
    assert path
    assert path.read_bytes() == CDN.FILE
    assert line(redis) == []
    finished = FinishedJobRegistry(QUEUE, connection=redis, serializer=JSONSerializer)
    assert finished.get_job_ids(cleanup=False) == [rq_id(job_id)]
    assert FailedJobRegistry(QUEUE, connection=redis).get_job_count(cleanup=False) == 0


# -- the sweep: what RQ lost is enqueued again ---------------------------------------------------------------


def due(redis: Redis, *job_ids: str) -> None:
    """Their patience is over."""
    redis.zadd("callsheet:tasks", dict.fromkeys(map(rq_id, job_ids), 1))


def patience(redis: Redis, job_id: str) -> float | None:
    """Seconds until the sweep looks at the task; None where it never does."""
    score = redis.zscore("callsheet:tasks", rq_id(job_id))
    seconds, micros = redis.time()
    return None if score is None else score / 1000 - seconds - micros / 1e6


def lost(redis: Redis, job_id: str) -> None:
    """Popped by a worker that died before it had noted so: in no list any more."""
    redis.lrem(LINE, 0, rq_id(job_id))


def forgotten(redis: Redis, job_id: str) -> None:
    """Not even RQ's own hash is left."""
    lost(redis, job_id)
    redis.delete(f"rq:job:{rq_id(job_id)}")


def begun(redis: Redis, job_id: str) -> None:
    """Started by a worker that died."""
    lost(redis, job_id)
    redis.hset(f"rq:job:{rq_id(job_id)}", "status", "started")


def stranded(redis: Redis, job_id: str) -> None:
    """Moved to the intermediate list by a worker that died."""
    lost(redis, job_id)
    redis.rpush(f"{LINE}:intermediate", rq_id(job_id))


def run_in_vain(redis: Redis, job_id: str) -> None:
    """Run to its end, which was that it is to be tried again about now."""
    lost(redis, job_id)
    redis.hset(f"rq:job:{rq_id(job_id)}", "status", "finished")
    redis.expire(f"rq:job:{rq_id(job_id)}", 300)


@pytest.mark.parametrize("fate", [lost, forgotten, begun, stranded, run_in_vain], ids=lambda fate: fate.__name__)
@pytest.mark.parametrize("others_wait", [False, True], ids=["alone", "others wait"])
async def test_the_sweep_enqueues_again_what_should_have_moved_and_did_not(
    deployment: Deployment, redis: Redis, fate: Callable[[Redis, str], None], others_wait: bool
) -> None:
    job_id = await succeeded(deployment)
    as_pushed = written(redis, job_id)["fields"]
    redis.hset(f"rq:job:{rq_id(job_id)}", "enqueued_at", "2026-01-01T00:00:00.000000Z")
    others = [rq_id(await succeeded(deployment)) for _ in range(2)] if others_wait else []
    fate(redis, job_id)
    due(redis, job_id)
    assert await deployment.store.sweep(10) == (1, False)
    assert line(redis) == [*others, rq_id(job_id)]
    assert written(redis, job_id)["fields"] == as_pushed
    assert redis.ttl(f"rq:job:{rq_id(job_id)}") == -1
    assert not redis.exists(f"{LINE}:intermediate")
    assert 55 < (patience(redis, job_id) or 0) <= tasks.PATIENCE
    assert await deployment.store.sweep(10) == (0, False), "once"


async def test_the_sweep_leaves_in_line_what_is_still_in_line(deployment: Deployment, redis: Redis) -> None:
    jobs = [await succeeded(deployment) for _ in range(4)]
    before = line(redis)
    due(redis, *jobs)
    assert await deployment.store.sweep(10) == (0, False)
    assert line(redis) == before
    assert all(55 < (patience(redis, job_id) or 0) <= tasks.PATIENCE for job_id in jobs)


async def test_the_sweep_drops_what_is_done_or_has_no_job(deployment: Deployment, redis: Redis) -> None:
    stored, failed, overruled = [await succeeded(deployment) for _ in range(3)]
    for job_id, archive in ((stored, Archive.STORED), (failed, Archive.FAILED), (overruled, Archive.NONE)):
        seen = Observation(source=Source.ARCHIVE, archive=archive)
        await deployment.tracker.record(seen, vendor="kitta", job_id=job_id)
    for key in cast("list[bytes]", redis.keys("rq:*")):
        redis.delete(key)
    due(redis, stored, failed, overruled, "job_" + "0" * 24)
    assert await deployment.store.sweep(10) == (0, False)
    assert not redis.exists("callsheet:tasks")
    assert line(redis) == []


async def test_the_sweep_does_not_touch_what_is_due_later(deployment: Deployment, redis: Redis) -> None:
    job_id = await succeeded(deployment)
    forgotten(redis, job_id)
    before = redis.zscore("callsheet:tasks", rq_id(job_id))
    assert await deployment.store.sweep(10) == (0, False)
    assert redis.zscore("callsheet:tasks", rq_id(job_id)) == before
    assert line(redis) == []


async def test_a_sign_of_life_keeps_the_sweep_away(deployment: Deployment, redis: Redis) -> None:
    job_id = await succeeded(deployment)
    begun(redis, job_id)
    due(redis, job_id)
    await deployment.store.alive(rq_id(job_id), 30)
    assert await deployment.store.sweep(10) == (0, False)
    assert 25 < (patience(redis, job_id) or 0) <= 30


async def test_a_sign_of_life_does_not_bring_back_what_is_done(deployment: Deployment, redis: Redis) -> None:
    job_id = await succeeded(deployment)
    seen = Observation(source=Source.ARCHIVE, archive=Archive.FAILED)
    await deployment.tracker.record(seen, vendor="kitta", job_id=job_id)
    await deployment.store.alive(rq_id(job_id), 30)
    assert patience(redis, job_id) is None


async def test_the_sweep_takes_no_more_than_it_may_and_the_longest_due_first(
    deployment: Deployment, redis: Redis
) -> None:
    jobs = [await succeeded(deployment) for _ in range(5)]
    for number, job_id in enumerate(jobs):
        forgotten(redis, job_id)
        redis.zadd("callsheet:tasks", {rq_id(job_id): 5 - number})
    sweeps = [await deployment.store.sweep(2) for _ in range(4)]
    assert sweeps == [(2, True), (2, True), (1, False), (0, False)]
    assert line(redis) == [rq_id(job_id) for job_id in reversed(jobs)]


async def test_the_sweep_clears_executions_whose_worker_is_gone(deployment: Deployment, redis: Redis) -> None:
    now = await deployment.store.now_ms() // 1000
    redis.zadd(f"rq:wip:{QUEUE}", {"gone": now - 10, "alive": now + 100})
    await deployment.store.sweep(10)
    assert redis.zrange(f"rq:wip:{QUEUE}", 0, -1) == [b"alive"]
