"""Trouble on the way: links that die, a storage that does, a process that stops. The vendor's verdict stands."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace

from service.jobs import tasks
from service.model import Archive, Observation, Source, Status
from service.settings import Settings
from tests.chaos.bucket import unfinished
from tests.support import deployment as deployments
from tests.support.archives import (
    FILM,
    LONG,
    Lying,
    asked_for,
    both_storages,
    due_in,
    in_a_bucket,
    store,
    stored_in,
    under_way,
    untouched,
    worker,
)
from tests.support.files import Answer, Files, drip, endless, stall, status, whole
from tests.support.processes import BIN, Process, eventually, free_port
from tests.support.sandbox import Desk, Sandbox, desk_of
from tests.support.servers import S3
from workers import held
from workers.download import Download, Interrupted


async def test_after_the_last_attempt_the_archive_has_failed_and_the_verdict_stands(desk: Desk, files: Files) -> None:
    job_id = desk.made(files.serve("/film.mp4", status(500)))
    async with worker(desk) as archivist:
        outcomes = [await archivist.store(job_id) for _ in range(len(tasks.ARCHIVE_RETRIES) + 1)]
        assert outcomes == ["to be tried again"] * len(tasks.ARCHIVE_RETRIES) + ["failed"]
        job = desk.job(job_id)
        assert (job.status, job.archive, job.error) == (Status.SUCCEEDED, Archive.FAILED, None)
        assert desk.announced(job_id) == ["job.submitted", "job.succeeded", "job.store_failed"]
        notes = [note for note in desk.timeline(job_id) if note["source"] == "archive"]
        delays = [int(found[1]) for note in notes if (found := re.search(r"next in (\d+) s", note["detail"]))]
        assert delays == list(tasks.ARCHIVE_RETRIES)
        assert notes[-1]["archive"] == "failed"
        assert due_in(desk, job_id) is None
        assert await archivist.store(job_id) == "nothing to do"

        # Somebody asks for it again, and it begins anew.
        desk.record(
            Observation(source=Source.OPERATOR, archive=Archive.WAITING), vendor="lipsync_studio", job_id=job_id
        )
        assert await archivist.store(job_id) == "to be tried again"
        files.serve("/film.mp4", whole(FILM))
        assert await archivist.store(job_id) == "apply"
    assert desk.announced(job_id)[-2:] == ["job.store_failed", "job.stored"]
    assert desk.job(job_id).archive is Archive.STORED


# -- dead links -----------------------------------------------------------------------------------------


async def succeeded(desk: Desk, sandbox: Sandbox, vendor: str, *faults: str) -> str:
    """A job that the vendor has done, and whose link we were given. Returns our id."""
    vendor_job_id = sandbox.finished(vendor, *faults)
    job_id = desk.track(vendor, vendor_job_id)
    async with worker(desk) as archivist:
        answer = await archivist._vendors.status(vendor, vendor_job_id)
    assert isinstance(answer.reading, Observation)
    desk.record(answer.reading, vendor=vendor, job_id=job_id)
    return job_id


@pytest.fixture
def asking(settings: Settings, sandbox: Sandbox) -> Iterator[Desk]:
    """A desk whose vendors can be asked."""
    with desk_of(replace(settings, accounts=sandbox.accounts())) as made:
        yield made


@pytest.mark.parametrize("vendor", ["apimodels", "chanjing", "kitta", "lipsync_studio"])
async def test_a_dead_link_is_replaced_by_asking_the_vendor(asking: Desk, sandbox: Sandbox, vendor: str) -> None:
    job_id = await succeeded(asking, sandbox, vendor, "link_expired")
    old = asking.job(job_id).outputs[0].url
    assert await store(asking, job_id) == "apply"
    job = asking.job(job_id)
    known = sandbox.job(vendor, str(job.vendor_job_id))
    assert job.archive is Archive.STORED
    assert job.outputs[0].url not in ("", old)
    assert job.outputs[0].stored is not None
    assert job.outputs[0].stored.sha256 == known["outputs"][0]["sha256"]
    assert job.outputs[0].stored.bytes == known["outputs"][0]["bytes"]
    assert known["status_calls"] == 2
    assert asking.announced(job_id) == ["job.submitted", "job.succeeded", "job.stored"]


async def test_a_link_that_stays_dead_fails_the_archive_after_a_short_list(asking: Desk, sandbox: Sandbox) -> None:
    job_id = await succeeded(asking, sandbox, "lipsync_studio", "link_dead")
    async with worker(asking) as archivist:
        outcomes = [await archivist.store(job_id) for _ in range(len(tasks.SHORT_RETRIES) + 1)]
    assert outcomes == ["to be tried again"] * len(tasks.SHORT_RETRIES) + ["failed"]
    job = asking.job(job_id)
    assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.FAILED)
    assert asking.announced(job_id) == ["job.submitted", "job.succeeded", "job.store_failed"]
    # The vendor was asked once in each attempt, and once at first.
    assert sandbox.calls("lipsync_studio") == {"status": len(outcomes) + 1}


async def test_a_vendor_that_cannot_be_asked_for_a_fresh_link_has_not_said_that_there_is_none(
    asking: Desk, sandbox: Sandbox
) -> None:
    """The short list is for links that stay dead although the vendor was asked. One that is down was not."""
    job_id = await succeeded(asking, sandbox, "lipsync_studio", "link_expired")
    sandbox.order("lipsync_studio", "vendor_down")
    async with worker(asking) as archivist:
        for _ in range(len(tasks.SHORT_RETRIES) + 1):
            assert await archivist.store(job_id) == "to be tried again"
        sandbox.clear()
        assert await archivist.store(job_id) == "apply"


@pytest.mark.parametrize("code", [401, 403, 404, 410])
async def test_without_a_vendor_to_ask_a_dead_link_is_tried_a_few_times(desk: Desk, files: Files, code: int) -> None:
    job_id = desk.made(files.serve("/film.mp4", status(code)))  # nobody knows the vendor's id
    async with worker(desk) as archivist:
        assert await archivist.store(job_id) == "to be tried again"
        untouched(desk, job_id, f"the link answers {code}")
        outcomes = [await archivist.store(job_id) for _ in tasks.SHORT_RETRIES]
    assert outcomes[-1] == "failed"
    assert set(outcomes[:-1]) == {"to be tried again"}


async def test_a_vendor_that_takes_its_verdict_back_is_believed(settings: Settings, files: Files) -> None:
    """Asked for a fresh link, the vendor says that the job has failed."""
    accounts = deployments.accounts(files.url)
    made = replace(settings, accounts=accounts)
    files.serve(
        "/lipsync_studio/api/v1/jobs/42",
        whole(b'{"id":"42","status":"failed","error":"taken back"}', media_type="application/json"),
    )
    with desk_of(made) as desk:
        job_id = desk.made(files.serve("/film.mp4", status(404)), vendor_job_id="42")
        await store(desk, job_id)
        job = desk.job(job_id)
        assert (job.status, job.archive) == (Status.FAILED, Archive.NONE)
        assert due_in(desk, job_id) is None


# -- the storage's own trouble --------------------------------------------------------------------------


@pytest.fixture
def own(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket whose server runs only while the test lets it."""
    folder = tmp_path / "buckets" / s3.bucket
    folder.mkdir(parents=True)
    made = dataclasses.replace(s3, endpoint=f"http://127.0.0.1:{free_port()}", folder=folder)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def served(own: S3) -> Process:
    buckets, address = own.folder.parent, own.endpoint.removeprefix("http://")
    options = ["--config", "", "--addr", address, "--auth-key", f"{own.key},{own.secret}"]
    process = Process([BIN / "rclone", "serve", "s3", *options, buckets], log=buckets.with_suffix(".log"))
    process.wait_until(lambda: "Starting s3 server" in process.output(), "its start")
    return process


@in_a_bucket
async def test_an_upload_that_is_interrupted_leaves_nothing_at_the_storage(
    settings: Settings, desk: Desk, files: Files, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stops while the file is on its way from its disk: once half of it has arrived."""
    asked = count(1)

    def check(download: Download) -> None:
        if next(asked) > 17:
            raise Interrupted

    monkeypatch.setattr(Download, "check", check)
    job_id = desk.made(files.serve("/film.mp4", whole(LONG)))
    with pytest.raises(Interrupted):
        await store(desk, job_id)
    assert next(asked) == 19
    assert unfinished(s3) == []
    assert stored_in(settings, s3) == {}


async def test_a_storage_that_is_down_is_an_attempt_and_no_verdict(redis_url: str, files: Files, own: S3) -> None:
    with desk_of(deployments.settings(redis_url, storage_url=own.storage_url("home"))) as desk:
        job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
        assert await store(desk, job_id) == "to be tried again"
        untouched(desk, job_id, "")
        with served(own):
            assert await store(desk, job_id) == "apply"
        assert stored_in(desk.settings, own) == {f"lipsync_studio/{job_id}/0.mp4": FILM}
        assert desk.announced(job_id).count("job.stored") == 1


async def test_a_storage_that_goes_down_in_the_middle_is_an_attempt_and_no_verdict(
    redis_url: str, files: Files, own: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deployments.settings(redis_url, storage_url=own.storage_url("home"))
    asked = count(1)

    def check(download: Download) -> None:  # called between the pieces of the upload
        if next(asked) == 17:
            eventually(lambda: stored_in(desk.settings, own), "the first part")
            server.stop()

    with desk_of(made) as desk:
        job_id = desk.made(files.serve("/film.mp4", whole(LONG)))
        with monkeypatch.context() as patched, served(own) as server:
            patched.setattr(Download, "check", check)
            assert await store(desk, job_id) == "to be tried again"
        assert next(asked) > 17
        untouched(desk, job_id, "")
        with served(own):
            assert await store(desk, job_id) == "apply"
        assert stored_in(desk.settings, own)[f"lipsync_studio/{job_id}/0.mp4"] == LONG


@in_a_bucket
async def test_a_storage_that_refuses_is_an_attempt_and_says_so(
    desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    assert await store(desk, job_id) == "to be tried again"
    untouched(desk, job_id, "attempt 1: the storage answers 403 SignatureDoesNotMatch")
    assert "another" not in str(desk.timeline(job_id))


async def test_a_file_that_is_in_the_way_is_an_attempt_and_says_so(desk: Desk, files: Files, tmp_path: Path) -> None:
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    in_the_way = tmp_path / "objects" / "lipsync_studio"
    in_the_way.parent.mkdir()
    in_the_way.write_bytes(b"not a folder")
    assert await store(desk, job_id) == "to be tried again"
    untouched(desk, job_id, "")
    in_the_way.unlink()
    assert await store(desk, job_id) == "apply"


# -- a process that stops -------------------------------------------------------------------------------

INTERRUPTED: dict[str, Answer] = {
    "before the body": stall(FILM, 0),
    "after the first parts": stall(LONG, 17 * 2**20),
    "while it drips": drip(FILM),
    "while it runs": endless(),
}


@pytest.mark.parametrize("answer", INTERRUPTED.values(), ids=INTERRUPTED)
@both_storages
async def test_an_interrupted_run_leaves_nothing_and_another_takes_over(
    desk: Desk, files: Files, lying_there: Lying, answer: Answer
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    interrupted = asyncio.Event()
    async with worker(desk, interrupted=interrupted) as archivist:
        run = asyncio.create_task(archivist.store(job_id))
        await asked_for(files, "/film.mp4")
        interrupted.set()
        with pytest.raises(Interrupted):
            async with asyncio.timeout(4):
                await run
    assert lying_there() == {}
    job = desk.job(job_id)
    assert (job.archive, desk.redis.hget(desk.key("job", job_id), "_attempts")) == (Archive.WAITING, None)
    files.serve("/film.mp4", whole(FILM))
    assert await store(desk, job_id) == "apply"  # at once: the lease was given up
    assert lying_there() == {f"lipsync_studio/{job_id}/0.mp4": FILM}


async def test_a_run_says_that_it_is_alive_for_as_long_as_it_is(
    desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "LEASE_MS", 2000)
    job_id, run, gate = await under_way(desk, files, "/film.mp4")
    for _ in range(3):
        desk.make_due("tasks")
        await asyncio.to_thread(eventually, lambda: (due_in(desk, job_id) or 0) > tasks.PATIENCE - 5, "a sign of life")
        assert await store(desk, job_id) == "held by another run"
    gate.set()
    assert await run == "apply"
    assert due_in(desk, job_id) is None
