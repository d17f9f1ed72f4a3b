"""The worker as a process: many tasks at once, seen by RQ's own tools, and nothing lost however often it is killed."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, cast

import pytest
from msgspec.structs import replace
from rq import Queue
from rq import Worker as RQWorker
from rq.job import Job as RQJob
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from service.jobs import tasks
from service.model import Archive
from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.files import Answer, Files, Wire, gated, slow, stall, whole
from tests.support.processes import BIN, Process, Processes, environment, eventually
from tests.support.sandbox import Desk
from tests.support.servers import S3, valkey_server

FILM: Final = b"film " * 1000

#: The worker, with less time to stop in than a platform gives it.
HASTY: Final = "import asyncio, workers.main as m; m.GRACE, m.PUT_BACK = {grace}, {put_back}; asyncio.run(m.main())"


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return deployments.settings(redis_url, storage_url=(tmp_path / "objects").as_uri(), worker_concurrency=8)


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with closing(Desk(settings)) as made:
        yield made


class Workers:
    """Starts processes of a deployment, which are killed when the test ends: how they stop is for some tests only."""

    def __init__(self, processes: Processes, settings: Settings) -> None:
        self._processes = processes
        self._settings = settings
        self._started: list[Process] = []

    def start(self, *command: str, settings: Settings | None = None, **env: str) -> Process:
        """A worker that has said that it works; `command` stands in for the usual one."""
        process = self._start(command or ("-m", "workers.main"), settings, env)
        process.wait_until(lambda: "worker started" in process.output(), "its start")
        return process

    def start_several(self, count: int, settings: Settings) -> list[Process]:
        """So many workers that have said that they work."""
        found = [self._start(("-m", "workers.main"), settings, {}) for _ in range(count)]
        for process in found:
            process.wait_until(lambda each=process: "worker started" in each.output(), "its start")  # type: ignore[misc]
        return found

    def start_poller(self, *, settings: Settings | None = None) -> Process:
        """A poller that calls no vendor: it sweeps."""
        silent = deployments.accounts(without=tuple(VENDORS))
        process = self._start(("-m", "workers.poller"), replace(settings or self._settings, accounts=silent), {})
        process.wait_until(lambda: "poller started" in process.output(), "its start")
        return process

    def _start(self, command: Sequence[str], settings: Settings | None, env: Mapping[str, str]) -> Process:
        variables = {**deployments.environment(settings or self._settings), **env}
        name = f"process-{len(self._started)}"
        process = self._processes.start(name, [BIN / "python", *command], env=variables)
        self._started.append(process)
        return process

    def kill(self) -> None:
        for process in self._started:
            process.kill()


@pytest.fixture
def workers(processes: Processes, settings: Settings) -> Iterator[Workers]:
    made = Workers(processes, settings)
    yield made
    made.kill()


def is_stored(desk: Desk, *job_ids: str) -> bool:
    return all(desk.job(job_id).archive is Archive.STORED for job_id in job_ids)


def queue_of(desk: Desk) -> Queue:
    return Queue(desk.settings.queue("archive"), connection=desk.redis, serializer=JSONSerializer)


def intermediate(desk: Desk) -> list[bytes]:
    key = f"rq:queue:{desk.settings.queue('archive')}:intermediate"
    return cast("list[bytes]", desk.redis.lrange(key, 0, -1))


def lying_there(settings: Settings) -> list[str]:
    """The names of all files in the storage, hidden and unfinished ones too."""
    folder = Path(settings.storage_url.removeprefix("file://"))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- RQ's own view ------------------------------------------------------------------------------------------------


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


# -- many at once -------------------------------------------------------------------------------------------------


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


# -- only tasks of ours ----------------------------------------------------------------------------------------------


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
    workers: Workers, settings: Settings, desk: Desk, files: Files, tmp_path: Path
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


def test_a_pickle_is_never_opened(workers: Workers, settings: Settings, desk: Desk, tmp_path: Path) -> None:
    target = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(target),)

    put(desk, "bomb", pickle.dumps(Bomb()))
    worker = workers.start()
    worker.wait_until(lambda: failed(desk), "its failure")
    assert worker.stop() == 0
    assert not target.exists()


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_stops_at_once(workers: Workers, settings: Settings, number: signal.Signals) -> None:
    worker = workers.start()
    worker.send(number)
    assert worker.wait(timeout=15) == 0
    assert "Traceback" not in worker.output()


def test_what_is_under_way_is_finished_before_the_worker_stops(
    workers: Workers, settings: Settings, desk: Desk, files: Files
) -> None:
    gate = threading.Event()
    job_id = desk.made(files.serve("/film.mp4", gated(FILM, 100, gate)))
    worker = workers.start()
    worker.wait_until(lambda: files.requests("/film.mp4"), "the download")
    worker.send(signal.SIGTERM)
    worker.wait_until(lambda: "stopping" in worker.output(), "its decision to stop")
    late = desk.made(files.serve("/late.mp4", whole(FILM)))
    gate.set()
    assert worker.wait(timeout=15) == 0
    assert is_stored(desk, job_id)
    assert files.requests("/late.mp4") == []  # nothing new is begun
    assert queue_of(desk).job_ids == [f"archive-{late}"]


@pytest.mark.parametrize("slots", [1, 3], ids=["all slots taken", "slots left"])
@pytest.mark.parametrize("kind", ["file", "s3"])
def test_what_cannot_be_finished_in_time_is_put_back_whole(
    workers: Workers,
    settings: Settings,
    files: Files,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    slots: int,
    kind: str,
) -> None:
    """A download that stands still in the middle, when the platform says stop."""
    env, folder = {}, tmp_path / "objects"
    if kind == "s3":
        s3: S3 = request.getfixturevalue("s3")
        env, folder = s3.environment, s3.folder / tmp_path.name
        settings = replace(settings, storage_url=s3.storage_url(tmp_path.name))
    long = b"\x07" * (20 * 2**20)
    settings = replace(settings, worker_concurrency=slots)
    with closing(Desk(settings)) as desk:
        job_id = desk.made(files.serve("/film.mp4", stall(long, 17 * 2**20)))
        worker = workers.start("-c", HASTY.format(grace=0.3, put_back=2), settings=settings, **env)
        # A bucket sees nothing of a file that is not all here yet.
        there = partial(files.requests, "/film.mp4") if kind == "s3" else lambda: list(folder.rglob("*#*"))
        worker.wait_until(there, "the first part")
        worker.send(signal.SIGTERM)
        assert worker.wait(timeout=15) == 0
        assert [path for path in folder.rglob("*") if path.is_file()] == []
        assert desk.job(job_id).archive is Archive.WAITING
        assert desk.timeline(job_id)[-1]["source"] == "callback"  # no attempt was counted
        assert queue_of(desk).job_ids == [f"archive-{job_id}"]

        files.serve("/film.mp4", whole(long))
        other = workers.start(settings=settings, **env)
        other.wait_until(lambda: is_stored(desk, job_id), "the job stored by another")
        (path,) = (path for path in folder.rglob("*") if path.is_file())
        assert path.read_bytes() == long
        assert desk.announced(job_id).count("job.stored") == 1


# -- nothing is lost --------------------------------------------------------------------------------------------------


def test_a_killed_worker_s_tasks_are_found_again(
    workers: Workers, settings: Settings, desk: Desk, files: Files
) -> None:
    jobs = [desk.made(files.serve(f"/{number}.mp4", stall(FILM, 10))) for number in range(4)]
    worker = workers.start()
    worker.wait_until(lambda: all(files.requests(f"/{number}.mp4") for number in range(4)), "the downloads")
    worker.kill()
    for number in range(4):
        files.serve(f"/{number}.mp4", whole(FILM))
    workers.start_poller()
    workers.start()
    desk.make_due("tasks")
    desk.end_leases()
    eventually(lambda: is_stored(desk, *jobs), "all stored", timeout=20)
    assert Counter(desk.announced())["job.stored"] == 4
    assert intermediate(desk) == []


def test_a_storm_of_restarts_loses_and_doubles_nothing(
    workers: Workers, settings: Settings, desk: Desk, files: Files
) -> None:
    chance, count = random.Random(7), 300
    settings = replace(settings, worker_concurrency=4)
    answer: Answer = slow(FILM, 0.15)
    jobs = [desk.made(files.serve(f"/{number}.mp4", answer)) for number in range(count)]
    index = desk.key("jobs", "lipsync_studio", "succeeded", "stored")
    workers.start_poller()
    running = workers.start_several(2, settings)
    for _ in range(10):
        for victim in running:
            if chance.random() < 0.5:
                victim.kill()
            else:
                victim.send(signal.SIGTERM)
        running = workers.start_several(2, settings)
    restarted_with = desk.redis.zcard(index)

    def all_stored() -> bool:
        if desk.redis.zcard(index) == count:
            return True
        if queue_of(desk).count == 0:  # what is left was with the dead: as if a minute had passed
            desk.make_due("tasks")
            desk.end_leases()
        return False

    eventually(all_stored, "every job stored", timeout=30)
    assert restarted_with < count, "the storm was over before its end; make it harder"
    assert Counter(desk.announced()) == dict.fromkeys(("job.submitted", "job.succeeded", "job.stored"), count)
    assert all("job.stored" in desk.announced(job_id) for job_id in jobs[::30])
    eventually(lambda: intermediate(desk) == [] and queue_of(desk).count == 0, "nothing left in RQ's lists")
    whole_files = [name for name in lying_there(settings) if "#" not in name]
    assert whole_files == sorted(f"lipsync_studio/{job_id}/0.mp4" for job_id in jobs)
    assert desk.redis.zcard(desk.key("tasks")) == 0


def test_a_restart_of_redis_is_survived(
    workers: Workers, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, files: Files
) -> None:
    folder, gate = tmp_path_factory.mktemp("valkey"), threading.Event()
    with valkey_server(folder) as server:
        port = server.port
        settings = deployments.settings(server.url, storage_url=(tmp_path / "objects").as_uri())
        with closing(Desk(settings)) as desk:
            before = desk.made(files.serve("/before.mp4", whole(FILM)))
            worker = workers.start(settings=settings)
            worker.wait_until(lambda: is_stored(desk, before), "the first job stored")
            during = desk.made(files.serve("/during.mp4", gated(FILM, 100, gate)))
            worker.wait_until(lambda: files.requests("/during.mp4"), "the download")
    worker.wait_until(lambda: "the queue does not answer" in worker.output(), "its complaint")
    with valkey_server(folder, port=port), closing(Desk(settings)) as desk:
        gate.set()
        worker.wait_until(lambda: is_stored(desk, before, during), "what was under way stored")
        after = desk.made(files.serve("/after.mp4", whole(FILM)))
        workers.start_poller(settings=settings)

        def after_stored() -> bool:
            if queue_of(desk).count == 0:  # it may have been taken over a connection that had died unnoticed
                desk.make_due("tasks")
            return is_stored(desk, after)

        worker.wait_until(after_stored, "a new job stored")
        assert Counter(desk.announced())["job.stored"] == 3
        assert len(files.requests("/during.mp4")) == 1
        assert worker.stop() == 0
