"""The worker as a process: it stops in time, and nothing is lost however often it is killed."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from service.model import Archive
from service.settings import Settings
from tests.support.archives import stored_in
from tests.support.files import Answer, Files, gated, slow, stall, whole
from tests.support.processes import eventually
from tests.support.sandbox import Desk, desk_of
from tests.support.servers import S3, valkey_server
from tests.support.workers import FILM, Workers, intermediate, is_stored, queue_of

#: The worker, with less time to stop in than a platform gives it.
HASTY: Final = "import asyncio, workers.main as m; m.GRACE, m.PUT_BACK = {grace}, {put_back}; asyncio.run(m.main())"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_stops_at_once(workers: Workers, number: signal.Signals) -> None:
    worker = workers.start()
    worker.send(number)
    assert worker.wait(timeout=15) == 0
    assert "Traceback" not in worker.output()


def test_what_is_under_way_is_finished_before_the_worker_stops(workers: Workers, desk: Desk, files: Files) -> None:
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
    with desk_of(settings) as desk:
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


def test_a_killed_worker_s_tasks_are_found_again(workers: Workers, desk: Desk, files: Files) -> None:
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
    whole_files = [name for name in sorted(stored_in(settings)) if "#" not in name]
    assert whole_files == sorted(f"lipsync_studio/{job_id}/0.mp4" for job_id in jobs)
    assert desk.redis.zcard(desk.key("tasks")) == 0


def test_a_restart_of_redis_is_survived(
    workers: Workers, settings: Settings, tmp_path_factory: pytest.TempPathFactory, files: Files
) -> None:
    folder, gate = tmp_path_factory.mktemp("valkey"), threading.Event()
    with valkey_server(folder) as server:
        port = server.port
        settings = replace(settings, redis_url=server.url)
        with desk_of(settings) as desk:
            before = desk.made(files.serve("/before.mp4", whole(FILM)))
            worker = workers.start(settings=settings)
            worker.wait_until(lambda: is_stored(desk, before), "the first job stored")
            during = desk.made(files.serve("/during.mp4", gated(FILM, 100, gate)))
            worker.wait_until(lambda: files.requests("/during.mp4"), "the download")
    worker.wait_until(lambda: "the queue does not answer" in worker.output(), "its complaint")
    with valkey_server(folder, port=port), desk_of(settings) as desk:
        gate.set()
        worker.wait_until(lambda: is_stored(desk, before, during), "what was under way stored")
        after = desk.made(files.serve("/after.mp4", whole(FILM)))
        workers.start_poller(settings)

        def after_stored() -> bool:
            if queue_of(desk).count == 0:  # it may have been taken over a connection that had died unnoticed
                desk.make_due("tasks")
            return is_stored(desk, after)

        worker.wait_until(after_stored, "a new job stored")
        assert Counter(desk.announced())["job.stored"] == 3
        assert len(files.requests("/during.mp4")) == 1
        assert worker.stop() == 0
