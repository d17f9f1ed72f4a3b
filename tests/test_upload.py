"""Files that a vendor takes only as its own: fetched from their links, carried to it, and ready when they are named.

The vendor is the sandbox's Chanjing; where it has to answer oddly, a server that answers as a test tells it to.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from service.jobs import tasks
from service.model import Limit, Observation, Source, Status
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support.files import Answer, Files, Wire, cut, hang, large, redirect, stall, status, whole
from tests.support.processes import BIN, Process, Processes, eventually, eventually_async
from tests.support.sandbox import Desk, Sandbox, desk_of
from tests.support.submissions import Crew, crew_of, order, start_worker
from workers import upload
from workers.download import Interrupted

SLUG: Final = "chanjing"
FILM: Final = b"film " * 1000
SONG: Final = b"song " * 500

CREATE: Final = "/chanjing/open/v1/video_lip_sync/create"
ADDRESS: Final = "/chanjing/open/v1/common/create_upload_url"
DETAIL: Final = "/chanjing/open/v1/common/file_detail"
STORE: Final = "/storage/put-it-here"


@pytest.fixture
def settings(redis_url: str, sandbox: Sandbox) -> Settings:
    accounts = sandbox.accounts(minting=True)
    often = accounts[SLUG].limits | {"read": Limit(requests=1000, seconds=1)}
    return deployments.settings(redis_url, accounts=accounts | {SLUG: replace(accounts[SLUG], limits=often)})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "READY_EVERY", 0.01)


def said(data: object, code: int = 0, msg: str = "success") -> Answer:
    body = json.dumps({"code": code, "msg": msg, "data": data}).encode()
    return whole(body, media_type="application/json")


@asynccontextmanager
async def by_wire(redis_url: str, files: Files, **limits: Limit) -> AsyncIterator[tuple[Desk, Crew]]:
    """With `files` as the vendor, which takes everything, and makes a file ready at once."""
    address = {"sign_url": files.url + STORE, "file_id": "file-1", "mime_type": "video/mp4"}
    files.serve(ADDRESS, said(address))
    files.serve(STORE, whole(b""))
    files.serve(DETAIL, said({"status": 1}))
    files.serve(CREATE, said("vendor-job"))
    account = deployments.accounts(files.url)[SLUG]
    account = replace(account, limits=account.limits | limits)
    with desk_of(deployments.settings(redis_url, accounts=deployments.accounts(files.url) | {SLUG: account})) as desk:
        async with crew_of(desk) as crew:
            yield desk, crew


def film_only(url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An order whose film alone has to be uploaded."""
    return {"video_url": url, "text": "你好", "voice": "v"}, {}


def put_off(desk: Desk, job_id: str, words: str, attempt: int = 1) -> None:
    """Nothing was ordered, and it is tried again."""
    job, note = desk.job(job_id), desk.timeline(job_id)[-1]
    assert (job.status, job.submitted_at, note["problem"]) == (Status.PENDING, None, "not_sent")
    assert note["detail"].startswith(f"attempt {attempt}: ")
    assert words in note["detail"]
    due = desk.due_in(f"submit-{job_id}", "tasks")
    assert due == pytest.approx(tasks.PREPARE_RETRIES[attempt - 1], abs=1)
    assert job.scheduled_at is not None


def given_up(desk: Desk, job_id: str, code: str, words: str) -> None:
    job = desk.job(job_id)
    assert (job.status, job.submitted_at, desk.announced(job_id)) == (Status.FAILED, None, ["job.failed"])
    assert job.error is not None
    assert job.error.code == code
    assert words in job.error.message
    assert desk.due_in(f"submit-{job_id}", "tasks") is None


# -- carried over --------------------------------------------------------------------------------------------------


def file_at_vendor(sandbox: Sandbox, file_id: str) -> dict[str, Any]:
    headers = {"access_token": "sandbox-access-token"}
    answer = sandbox.http.get("/chanjing/open/v1/common/file_detail", params={"id": file_id}, headers=headers)
    return dict(answer.json()["data"])


async def test_a_film_and_a_voice_are_uploaded_and_then_named(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    media = f"{sandbox.url}/media/input"
    job_id = order(desk, SLUG, {"video_url": f"{media}/face.mp4", "audio_url": f"{media}/voice.mp3"})
    assert desk.job(job_id).scheduled_at is None
    assert await crew.send(job_id) == "apply"
    (taken,) = sandbox.jobs(SLUG)
    film, voice = (file_at_vendor(sandbox, taken["request"][name]) for name in ("video_file_id", "audio_file_id"))
    lengths = [len(sandbox.http.get(f"/media/input/{name}").content) for name in ("face.mp4", "voice.mp3")]
    assert (film["name"], film["type"], film["size"]) == ("video.mp4", "lip_sync_video", lengths[0])
    assert (voice["name"], voice["type"], voice["size"]) == ("audio.mp3", "lip_sync_audio", lengths[1])
    assert taken["request"]["audio_type"] == "audio"
    told = [seen.get("detail", "") for seen in desk.timeline(job_id)]
    assert [words.partition(" is at the vendor as ")[0] for words in told[1:3]] == ["video_url", "audio_url"]
    assert desk.job(job_id).vendor_job_id == taken["id"]
    # A file is not ready at the first look: the sandbox refuses one that is named too early.
    assert sandbox.calls(SLUG) == {"token": 1, "upload_url": 2, "file": 2 + 2 + 2}


#: The end of the link, what its server calls the file, and the name by which the vendor gets it.
NAMES: Final = {
    "by the link": ("face.mp4", "application/octet-stream", "video.mp4"),
    "in capitals": ("FACE.MOV", "video/mp4", "video.mov"),
    "with a query": ("face.webm?file=x.avi", "text/plain", "video.webm"),
    "by the type": ("download", "video/quicktime; charset=binary", "video.mov"),
    "by the type, not by an odd name": ("face.v2", "video/webm", "video.webm"),
    "by nothing": ("download", "application/octet-stream", "video.mp4"),
    "no type at all": ("download", "", "video.mp4"),
}
VOICES: Final = {
    "m4a": ("voice.m4a", "application/octet-stream", "audio.m4a"),
    "m4a by the type": ("voice", "audio/x-m4a", "audio.m4a"),
    "mp3 by the type": ("voice", "audio/mpeg", "audio.mp3"),
    "wav by the type": ("voice", "audio/wave", "audio.wav"),
    "wav": ("voice.wav", "audio/x-wav", "audio.wav"),
    "by nothing": ("voice", "binary/octet-stream", "audio.mp3"),
}


@pytest.mark.parametrize(
    ("field", "case"), [*(("video", case) for case in NAMES), *(("audio", case) for case in VOICES)]
)
async def test_the_vendor_gets_a_name_that_it_takes(
    redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch, field: str, case: str
) -> None:
    """Whatever the machine itself knows of such names: some know few."""
    bare = mimetypes.MimeTypes(filenames=())
    monkeypatch.setattr(mimetypes, "guess_type", bare.guess_type)
    monkeypatch.setattr(mimetypes, "guess_extension", bare.guess_extension)
    link, media_type, name = (NAMES if field == "video" else VOICES)[case]
    url = files.serve(f"/{link.partition('?')[0]}", whole(FILM, media_type=media_type)).replace(
        link.partition("?")[0], link
    )
    async with by_wire(redis_url, files) as (desk, crew):
        given = film_only(url) if field == "video" else ({"audio_url": url}, {"video_file_id": "sandbox-1"})
        assert await crew.send(order(desk, SLUG, *given)) == "apply"
        (asked,) = files.requests(ADDRESS)
        assert asked.target.endswith(f"?service=lip_sync_{field}&name={name}")
        (put,) = files.requests(STORE)
        assert (put.method, put.body) == ("PUT", FILM)
        # The address is signed: for this type, and instead of our credentials.
        assert (put.headers["content-type"], put.headers["content-length"]) == ("video/mp4", str(len(FILM)))
        assert not {"access_token", "authorization"} & put.headers.keys()


@pytest.mark.parametrize(
    ("link", "media_type"), [("face.avi", "video/mp4"), ("voice.mp3", "video/mp4"), ("film", "video/x-msvideo")]
)
async def test_what_the_vendor_does_not_take_is_not_carried_there(
    redis_url: str, files: Files, link: str, media_type: str
) -> None:
    url = files.serve(f"/{link}", whole(FILM, media_type=media_type))
    async with by_wire(redis_url, files) as (desk, crew):
        job_id = order(desk, SLUG, *film_only(url))
        await crew.send(job_id)
        given_up(desk, job_id, "invalid_input", "input.video_url: the vendor takes .mp4, .mov, .webm, not .")
        assert files.requests(ADDRESS) == []


async def test_several_jobs_at_once_get_files_of_their_own(desk: Desk, sandbox: Sandbox) -> None:
    media = f"{sandbox.url}/media/input"
    given = {"video_url": f"{media}/face.mp4", "audio_url": f"{media}/voice.mp3"}
    async with AsyncExitStack() as stack:
        crews = [await stack.enter_async_context(crew_of(desk)) for _ in range(2)]
        jobs = [order(desk, SLUG, given) for _ in range(4)]
        assert set(await asyncio.gather(*(crews[n % 2].send(job_id) for n, job_id in enumerate(jobs)))) == {"apply"}
    taken = sandbox.jobs(SLUG)
    assert len({job["request"][name] for job in taken for name in ("video_file_id", "audio_file_id")}) == 8
    assert {desk.job(job_id).vendor_job_id for job_id in jobs} == {job["id"] for job in taken}
    assert sandbox.calls(SLUG)["token"] == 1


async def test_a_token_that_dies_on_the_way_is_replaced(desk: Desk, crew: Crew, sandbox: Sandbox, files: Files) -> None:
    """Another process with the same credentials asks for one while the film is fetched."""

    def film(wire: Wire) -> None:
        sandbox.new_token()
        whole(FILM)(wire)

    job_id = order(desk, SLUG, *film_only(files.serve("/face.mp4", film)))
    assert await crew.send(job_id) == "apply"
    assert desk.job(job_id).vendor_job_id == sandbox.jobs(SLUG)[0]["id"]
    assert sandbox.calls(SLUG) == {"token": 1 + 1 + 1, "refused": 1, "upload_url": 1, "file": 2}


async def test_the_vendor_s_limit_of_uploads_is_kept_by_all_processes(redis_url: str, files: Files) -> None:
    limit = Limit(requests=3, seconds=0.1)
    url = files.serve("/face.mp4", whole(FILM))
    async with by_wire(redis_url, files, upload=limit) as (desk, crew), crew_of(desk) as other:
        jobs = [order(desk, SLUG, *film_only(url)) for _ in range(9)]
        await asyncio.gather(*((crew, other)[n % 2].send(job_id) for n, job_id in enumerate(jobs)))
        times = [request.at for request in files.requests(ADDRESS)]
        assert len(times) == 9
        assert all(last - first > limit.seconds for first, last in zip(times, times[limit.requests :], strict=False))


# -- links that do not lead to a file ------------------------------------------------------------------------------

LINKS: Final[dict[str, tuple[Answer, str]]] = {
    "404": (status(404), "input.video_url: the link answers 404"),
    "410": (status(410), "the link answers 410"),
    "500": (status(500), "the link answers 500"),
    "a page": (whole(b"<!doctype html><title>x</title>", media_type="text/html"), "the link answers with text/html"),
    "a page in disguise": (whole(b"<!DOCTYPE html><title>x</title>"), "a page or a message"),
    "empty": (whole(b""), "the file is empty"),
    "cut": (cut(FILM, 100), "broke off after 100 bytes"),
}


@pytest.mark.parametrize("case", LINKS)
async def test_a_link_that_is_no_file_is_tried_again_and_then_given_up(redis_url: str, files: Files, case: str) -> None:
    answer, words = LINKS[case]
    url = files.serve("/face.mp4", answer)
    async with by_wire(redis_url, files) as (desk, crew):
        job_id = order(desk, SLUG, *film_only(url))
        for attempt in range(1, len(tasks.PREPARE_RETRIES) + 1):
            await crew.send(job_id)
            put_off(desk, job_id, words, attempt)
        await crew.send(job_id)
        given_up(desk, job_id, "invalid_input", words)
        assert (files.requests(ADDRESS), files.requests(CREATE)) == ([], [])


async def test_a_link_that_works_in_the_end_is_enough(redis_url: str, files: Files) -> None:
    target = files.serve("/elsewhere/face.mp4", whole(FILM))
    url = files.serve("/face.mp4", status(404), cut(FILM, 100), redirect(target))
    async with by_wire(redis_url, files) as (desk, crew):
        job_id = order(desk, SLUG, *film_only(url))
        await crew.settle()
        assert desk.job(job_id).vendor_job_id == "vendor-job"
        assert [put.body for put in files.requests(STORE)] == [FILM]
        assert len(files.requests(CREATE)) == 1


@pytest.mark.parametrize("answer", [whole(FILM), large(2**20, announced=10**12)], ids=["sent", "announced"])
async def test_a_file_that_is_too_large_is_fetched_once(
    settings: Settings, sandbox: Sandbox, files: Files, answer: Answer
) -> None:
    with desk_of(replace(settings, max_output_bytes=1000)) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, SLUG, *film_only(files.serve("/face.mp4", answer)))
            await crew.send(job_id)
            given_up(desk, job_id, "invalid_input", "the file is larger than 1000 bytes")
            assert len(files.requests("/face.mp4")) == 1
            assert sandbox.calls(SLUG) == {"token": 1}


async def test_what_is_at_the_vendor_is_not_carried_there_again(redis_url: str, files: Files) -> None:
    video_url = files.serve("/face.mp4", whole(FILM))
    audio_url = files.serve("/voice.mp3", status(404), whole(SONG, media_type="audio/mpeg"))
    async with by_wire(redis_url, files) as (desk, crew):
        job_id = order(desk, SLUG, {"video_url": video_url, "audio_url": audio_url})
        await crew.send(job_id)
        put_off(desk, job_id, "input.audio_url: the link answers 404")
        await crew.settle()
        assert desk.job(job_id).vendor_job_id == "vendor-job"
        assert [put.body for put in files.requests(STORE)] == [FILM, SONG]
        assert len(files.requests("/face.mp4")) == 1


# -- vendors that do not take them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_status", "words"), [(98, "is unsafe"), (99, "was deleted"), (100, "was purged")])
async def test_a_file_that_the_vendor_will_never_use_fails_the_job(
    redis_url: str, files: Files, file_status: int, words: str
) -> None:
    url = files.serve("/face.mp4", whole(FILM))
    async with by_wire(redis_url, files) as (desk, crew):
        files.serve(DETAIL, said({"status": 0}), said({"status": file_status, "msg": "审核不通过"}))
        job_id = order(desk, SLUG, *film_only(url))
        await crew.send(job_id)
        given_up(desk, job_id, "invalid_input", f"the file {words}: 审核不通过")
        assert files.requests(CREATE) == []


async def test_a_file_that_does_not_become_ready_is_carried_there_again(
    redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "READY_WITHIN", 0.3)
    monkeypatch.setattr(upload, "READY_EVERY", 0.1)
    url = files.serve("/face.mp4", whole(FILM))
    async with by_wire(redis_url, files) as (desk, crew):
        files.serve(DETAIL, said({"status": 0}))
        job_id = order(desk, SLUG, *film_only(url))
        await crew.send(job_id)
        put_off(desk, job_id, "vendor_error: input.video_url: the vendor has not made the file ready")
        files.serve(DETAIL, said({"status": 0}), said({"status": 1}))
        await crew.settle()
        assert desk.job(job_id).vendor_job_id == "vendor-job"
        assert len(files.requests(STORE)) == 2


def torn(wire: Wire) -> None:
    wire.reset()


STORAGES: Final[dict[str, tuple[Answer, str]]] = {
    "refused": (status(403), "vendor_error: the upload was answered with 403"),
    "broken": (status(500), "vendor_error: the upload was answered with 500"),
    "moved": (redirect("/elsewhere"), "vendor_error: the upload was answered with 302"),
    "torn": (torn, "vendor_unreachable: the upload broke off"),
}


@pytest.mark.parametrize("case", STORAGES)
async def test_a_storage_that_does_not_take_the_file_is_tried_again(redis_url: str, files: Files, case: str) -> None:
    answer, words = STORAGES[case]
    url = files.serve("/face.mp4", whole(FILM))
    async with by_wire(redis_url, files) as (desk, crew):
        files.serve(STORE, answer, answer, whole(b""))
        job_id = order(desk, SLUG, *film_only(url))
        for attempt in (1, 2):
            await crew.send(job_id)
            put_off(desk, job_id, words, attempt)
        await crew.send(job_id)
        assert desk.job(job_id).vendor_job_id == "vendor-job"


async def test_an_upload_that_the_vendor_refuses_fails_the_job(redis_url: str, files: Files) -> None:
    url = files.serve("/face.mp4", whole(FILM))
    async with by_wire(redis_url, files) as (desk, crew):
        files.serve(ADDRESS, said(None, 40000, "参数错误"))
        job_id = order(desk, SLUG, *film_only(url))
        await crew.send(job_id)
        given_up(desk, job_id, "invalid_input", "参数错误")


async def test_a_job_that_was_adopted_meanwhile_is_not_failed_by_its_upload(
    desk: Desk, crew: Crew, sandbox: Sandbox, files: Files
) -> None:
    def film(wire: Wire) -> None:
        seen = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="42")  # as PATCH says it
        assert desk.record(seen, vendor=SLUG, job_id=job_id).outcome == "apply"
        whole(FILM, media_type="video/x-msvideo")(wire)

    job_id = order(desk, SLUG, *film_only(files.serve("/film", film)))
    assert await crew.send(job_id) == "changed"
    assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.QUEUED, "42")
    assert sandbox.jobs(SLUG) == []


# -- a process that has to stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [ADDRESS, STORE, DETAIL, "waiting", "/face.mp4"])
async def test_an_upload_ends_wherever_it_stands_when_the_process_has_to_stop(
    redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(upload, "READY_EVERY", 60)
    url, interrupted = files.serve("/face.mp4", whole(FILM)), asyncio.Event()
    async with by_wire(redis_url, files) as (desk, _), crew_of(desk, interrupted=interrupted) as crew:
        job_id = order(desk, SLUG, *film_only(url))
        path = DETAIL if where == "waiting" else where
        files.serve(path, said({"status": 0}) if where == "waiting" else hang)
        sending = asyncio.create_task(crew.send(job_id))

        async def there() -> bool:
            return bool(files.requests(path))

        await eventually_async(there, "the upload's way so far")
        interrupted.set()
        async with asyncio.timeout(2):
            with pytest.raises(Interrupted):
                await sending
        assert len(desk.timeline(job_id)) == 1  # no attempt was counted
        assert desk.redis.keys(desk.key("lease", "*")) == []
        assert desk.due_in(f"submit-{job_id}", "tasks") is not None


#: The worker, with less time to stop in than a platform gives it.
HASTY: Final = "import asyncio, workers.main as m; m.GRACE, m.PUT_BACK = 0.2, 3; asyncio.run(m.main())"


def test_sigterm_puts_the_task_back_and_another_worker_ends_it(
    settings: Settings, desk: Desk, sandbox: Sandbox, files: Files, processes: Processes, tmp_path: Path
) -> None:
    url = files.serve("/face.mp4", stall(FILM, 100), whole(FILM))
    job_id = order(desk, SLUG, *film_only(url))
    env = deployments.environment(settings)
    first: Process = processes.start("hasty", [BIN / "python", "-c", HASTY], env=env)
    first.wait_until(lambda: files.requests("/face.mp4"), "the download")
    first.send(signal.SIGTERM)
    assert first.wait(timeout=15) == 0
    queue = f"rq:queue:{settings.queue('submit')}"
    assert desk.redis.lrange(queue, 0, -1) == [f"submit-{job_id}".encode()]
    assert desk.job(job_id).status is Status.PENDING
    second = start_worker(processes, settings)
    eventually(lambda: desk.job(job_id).vendor_job_id, "the vendor's id")
    assert len(sandbox.jobs(SLUG)) == 1
    second.kill()
