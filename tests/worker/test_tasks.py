"""The worker as a process: many tasks at once, only those that are ours, seen by RQ's own tools."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

from msgspec.structs import replace
from rq import Worker as RQWorker
from rq.job import Job as RQJob
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from service.jobs import tasks
from service.settings import Settings
from tests.support.files import Files, Wire, gated, slow, stall, whole
from tests.support.processes import BIN, environment, eventually
from tests.support.sandbox import Desk
from tests.support.workers import FILM, Workers, intermediate, is_stored, queue_of

# -- RQ's own view --------------------------------------------------------------------------------------


def test_rq_s_own_tools_see_the_worker_and_its_tasks(
    workers: Workers, settings: Settings, desk: Desk, files: Files
) -> None:
    gate = threading.Event()
    job_id = desk.made(files.serve("/film.mp4", gated(FILM, 100, gate)))
    name, task_id = settings.queue("archive"), f"archive-{job_id}"
    registries = {
        registry: registry(name, connection=desk.redis, serializer=JSONSerializer)
        for registry in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry)
    }

    def seen() -> dict[str, list[str]]:
        return {kind.__name__: registry.get_job_ids(cleanup=False) for kind, registry in registries.items()}

    assert queue_of(desk).job_ids == [task_id]
    worker = workers.start()
    eventually(lambda: files.requests("/film.mp4"), "the download")
    assert seen() == {"StartedJobRegistry": [task_id], "FinishedJobRegistry": [], "FailedJobRegistry": []}
    task = RQJob.fetch(task_id, connection=desk.redis, serializer=JSONSerializer)
    assert (task.get_status(), task.func_name, task.args) == ("started", tasks.PATHS[tasks.ARCHIVE], [job_id])
    (known,) = eventually(lambda: RQWorker.all(connection=desk.redis), "the worker in RQ's list")
    assert name in [queue.name for queue in known.queues]
    assert task.worker_name == known.name
    assert str(worker.pid) in known.name
    info = subprocess.run(
        [BIN / "rq", "info", "--url", settings.redis_url, "--raw", "--serializer", "json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert name in info.stdout
    assert known.name in info.stdout

    gate.set()
    eventually(lambda: is_stored(desk, job_id), "the job stored")
    eventually(lambda: seen()["FinishedJobRegistry"], "the task finished")
    assert seen() == {"StartedJobRegistry": [], "FinishedJobRegistry": [task_id], "FailedJobRegistry": []}
    task = RQJob.fetch(task_id, connection=desk.redis, serializer=JSONSerializer)
    assert task.get_status() == "finished"
    assert task.ended_at is not None
    assert (queue_of(desk).job_ids, intermediate(desk)) == ([], [])
    assert worker.stop() == 0
    assert RQWorker.all(connection=desk.redis) == []


def test_a_task_that_rq_itself_enqueued_is_run(workers: Workers, settings: Settings, desk: Desk, files: Files) -> None:
    """RQ's enqueue and requeue compress what they store; an operator's `rq requeue` has to work."""
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    desk.redis.delete(f"rq:queue:{settings.queue('archive')}")
    queue_of(desk).enqueue(tasks.PATHS[tasks.ARCHIVE], job_id, job_id="by-hand")
    workers.start()
    eventually(lambda: is_stored(desk, job_id), "the job stored")


# -- many at once ---------------------------------------------------------------------------------------


def test_many_downloads_run_at_once(workers: Workers, settings: Settings, desk: Desk, files: Files) -> None:
    count, seconds = 24, 0.5
    jobs = [desk.made(files.serve(f"/{number}.mp4", slow(FILM, seconds))) for number in range(count)]
    worker = workers.start(settings=replace(settings, worker_concurrency=32))
    worker.wait_until(lambda: is_stored(desk, *jobs), "all stored", timeout=20)
    began = min(files.requests(f"/{number}.mp4")[0].at for number in range(count))
    assert time.monotonic() - began < count * seconds / 3


class Meter:
    """Counts how many of its answers are under way at the same time."""

    def __init__(self, seconds: float) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._seconds = seconds

    def answer(self, wire: Wire) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        wire.pause(self._seconds)
        with self._lock:  # before the client knows that it is over, and asks for the next
            self._now -= 1
        whole(FILM)(wire)


def test_no_more_run_at_once_than_is_allowed(workers: Workers, settings: Settings, desk: Desk, files: Files) -> None:
    meter = Meter(0.05)
    jobs = [desk.made(files.serve(f"/{number}.mp4", meter.answer)) for number in range(30)]
    worker = workers.start(settings=replace(settings, worker_concurrency=3))
    worker.wait_until(lambda: is_stored(desk, *jobs), "all stored", timeout=20)
    assert meter.most == 3


def test_workers_share_the_queue(workers: Workers, settings: Settings, desk: Desk, files: Files) -> None:
    jobs = [desk.made(files.serve(f"/{number}.mp4", slow(FILM, 0.05))) for number in range(60)]
    workers.start_several(2, replace(settings, worker_concurrency=2))
    eventually(lambda: is_stored(desk, *jobs), "all stored", timeout=20)
    assert [len(files.requests(f"/{number}.mp4")) for number in range(60)] == [1] * 60
    assert Counter(desk.announced())["job.stored"] == 60


def test_a_failing_download_holds_up_no_other(workers: Workers, settings: Settings, desk: Desk, files: Files) -> None:
    stuck = [desk.made(files.serve(f"/stuck{number}", stall(FILM, 10))) for number in range(4)]
    fine = [desk.made(files.serve(f"/{number}.mp4", whole(FILM))) for number in range(30)]
    worker = workers.start(settings=replace(settings, worker_concurrency=5))
    worker.wait_until(lambda: is_stored(desk, *fine), "all others stored")
    assert not any(is_stored(desk, job_id) for job_id in stuck)
    worker.kill()


# -- only tasks of ours ---------------------------------------------------------------------------------


def put(desk: Desk, task_id: str, data: bytes | None) -> None:
    """Enqueue an RQ job that holds exactly this."""
    queue, key = desk.settings.queue("archive"), f"rq:job:{task_id}"
    at = "2026-07-01T08:00:00.000000Z"
    fields = {"status": "queued", "origin": queue, "timeout": "60", "created_at": at, "enqueued_at": at}
    for name, value in fields.items():
        desk.redis.hset(key, name, value)
    if data is not None:
        desk.redis.hset(key, "data", data)
    desk.redis.rpush(f"rq:queue:{queue}", task_id)


def failed(desk: Desk) -> list[str]:
    registry = FailedJobRegistry(desk.settings.queue("archive"), connection=desk.redis, serializer=JSONSerializer)
    return sorted(registry.get_job_ids(cleanup=False))


EVIL: Final = """
from pathlib import Path

Path(__file__).with_name("imported").touch()


def run(*args):
    Path(__file__).with_name("called").touch()
"""


def test_a_path_that_is_not_on_the_list_is_neither_imported_nor_called(
    workers: Workers, desk: Desk, files: Files, tmp_path: Path
) -> None:
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    target = tmp_path / "made by a task"
    paths: dict[str, list[object]] = {
        "evil": ["evil.run", None, ["x"], {}],
        "os": ["os.mkdir", None, [str(target)], {}],
        "private": ["workers.download._check", None, [], {}],
        "neighbour": ["workers.main.main", None, [], {}],
        "longer": ["workers.archive.store_outputs.__call__", None, ["x"], {}],
        "spaces": [" workers.archive.store_outputs", None, ["x"], {}],
    }
    for task_id, data in paths.items():
        put(desk, task_id, json.dumps(data).encode())
    by_rq = queue_of(desk).enqueue("evil.run", "x", job_id="evil-by-rq")
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    worker = workers.start(PYTHONPATH=str(folder))
    worker.wait_until(lambda: is_stored(desk, job_id), "the job behind them stored")
    worker.wait_until(lambda: len(failed(desk)) == len(paths) + 1, "all failed")
    assert failed(desk) == sorted([*paths, by_rq.id])
    assert sorted(path.name for path in folder.iterdir()) == ["evil.py"]
    assert not target.exists()
    for task_id, data in paths.items():
        task = RQJob.fetch(task_id, connection=desk.redis, serializer=JSONSerializer)
        assert task.get_status() == "failed"
        result = task.latest_result()
        assert result is not None
        assert f"{data[0]!r} is not a task" in str(result.exc_string)
    assert (queue_of(desk).job_ids, intermediate(desk)) == ([], [])


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "words": b"not json",
    "zeros": bytes(100),
    "not-utf8": b'["workers.archive.store_outputs", null, ["\xff"], {}]',
    "pickle": pickle.dumps(("workers.archive.store_outputs", None, ("x",), {})),
    "number": b"42",
    "list": b"[]",
    "short": b'["workers.archive.store_outputs"]',
    "long": b'["workers.archive.store_outputs", null, ["x"], {}, 1]',
    "instance": b'["workers.archive.store_outputs", "x", ["x"], {}]',
    "arguments": b'["workers.archive.store_outputs", null, {"x": 1}, {}]',
    "too-few": b'["workers.archive.store_outputs", null, [], {}]',
    "too-many": b'["workers.archive.store_outputs", null, ["x", "y"], {}]',
    "keywords": b'["workers.archive.store_outputs", null, ["x"], {"job_id": "x"}]',
    "strange-id": b'["workers.archive.store_outputs", null, [{"a": [1]}], {}]',
    "deep": b"[" * 100_000 + b"]" * 100_000,
}


def test_malformed_tasks_fail_and_the_worker_goes_on(
    workers: Workers, settings: Settings, desk: Desk, files: Files
) -> None:
    for name, data in MALFORMED.items():
        put(desk, name, data)
    put(desk, "without-data", None)
    queue = f"rq:queue:{settings.queue('archive')}"
    desk.redis.rpush(queue, "forgotten", b"\xff\xfe", "")
    desk.redis.set("rq:job:no-hash", "x")
    desk.redis.rpush(queue, "no-hash")
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    worker = workers.start(settings=replace(settings, worker_concurrency=2))
    worker.wait_until(lambda: is_stored(desk, job_id), "the job behind them stored")
    worker.wait_until(lambda: set(failed(desk)) >= set(MALFORMED), "all failed")
    assert set(failed(desk)) - {"without-data"} == set(MALFORMED)
    started_registry = StartedJobRegistry(settings.queue("archive"), connection=desk.redis, serializer=JSONSerializer)
    eventually(lambda: started_registry.get_job_ids(cleanup=False) == [], "no task said to be running")
    assert worker.stop() == 0


def test_a_pickle_is_never_opened(workers: Workers, desk: Desk, tmp_path: Path) -> None:
    target = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(target),)

    put(desk, "bomb", pickle.dumps(Bomb()))
    worker = workers.start()
    worker.wait_until(lambda: failed(desk), "its failure")
    assert worker.stop() == 0
    assert not target.exists()
