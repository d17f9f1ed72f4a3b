"""Bringing results home: whole or not at all, once, in constant memory, and never at the cost of the vendor's verdict.

The storage is a folder and a real S3 server, the vendors' files come from a server that misbehaves as told.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest
from msgspec.structs import replace

from service.deployment import opened
from service.jobs import tasks
from service.model import Archive, JobError, Observation, Output, OutputKind, Source, Status
from service.settings import Settings
from tests.chaos.bucket import unfinished
from tests.support import deployment as deployments
from tests.support.files import (
    MOV,
    MP4,
    PNG,
    WEBM,
    Answer,
    Files,
    chunked,
    cut,
    drip,
    drip_head,
    endless,
    gated,
    hang,
    large,
    raw,
    redirect,
    stall,
    status,
    whole,
)
from tests.support.network import NetworkRefusedError
from tests.support.processes import BIN, ROOT, Process, environment, eventually, eventually_async, free_port
from tests.support.sandbox import Desk, Sandbox
from tests.support.servers import S3
from workers import download, held, outbound
from workers.archive import Archivist
from workers.download import Download, Interrupted

FILM = MP4 + bytes(range(256)) * 1024
HASH = hashlib.sha256(FILM).hexdigest()

#: Longer than all buffers together, so that something has been uploaded before it breaks.
LONG = b"\x07" * (20 * 2**20)

#: Everything that lies in the storage by now.
Lying = Callable[[], dict[str, bytes]]

LIMIT = 2**20  #: bytes that an output may have, where a test is about that


@pytest.fixture(params=["file", "s3"])
def settings(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings with each kind of storage, empty."""
    if request.param == "file":
        return deployments.settings(redis_url, storage_url=(tmp_path / "objects").as_uri())
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return deployments.settings(redis_url, storage_url=s3.storage_url(uuid4().hex))


@pytest.fixture
def on_file(redis_url: str, tmp_path: Path) -> Settings:
    """Settings with a folder as the storage."""
    return deployments.settings(redis_url, storage_url=(tmp_path / "objects").as_uri())


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with closing(Desk(settings)) as made:
        yield made


@pytest.fixture
def file_desk(on_file: Settings) -> Iterator[Desk]:
    with closing(Desk(on_file)) as made:
        yield made


@asynccontextmanager
async def worker(
    settings: Settings, *, patience: float = 20, interrupted: asyncio.Event | None = None
) -> AsyncIterator[Archivist]:
    """What one process stores by. `patience` is the seconds that it waits for a byte."""
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        http.timeout = patience
        yield Archivist(deployment, http, interrupted or asyncio.Event())


async def store(settings: Settings, job_id: str) -> str:
    async with worker(settings) as archivist:
        return await archivist.store(job_id)


def stored_in(settings: Settings, s3: S3 | None = None) -> dict[str, bytes]:
    """Everything that lies in the storage, by key; what is unfinished and hidden too."""
    url = urlsplit(settings.storage_url)
    if url.scheme == "file":
        folder = Path(unquote(url.path))
    else:
        assert s3 is not None
        folder = s3.folder / url.path.strip("/")
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def lying_there(request: pytest.FixtureRequest, settings: Settings) -> Lying:
    """Looks at what lies in the storage."""
    s3 = None if settings.storage_url.startswith("file") else request.getfixturevalue("s3")
    return partial(stored_in, settings, s3)


def due_in(desk: Desk, job_id: str) -> float | None:
    """Seconds until the task that stores a job's outputs is due."""
    return desk.due_in(f"archive-{job_id}", "tasks")


def untouched(desk: Desk, job_id: str, words: str, attempt: int = 1) -> None:
    """Nothing came of an attempt but a note and another one that is due."""
    job = desk.job(job_id)
    assert (job.status, job.archive, job.stored_at) == (Status.SUCCEEDED, Archive.WAITING, None)
    assert all(output.stored is None for output in job.outputs)
    note = desk.timeline(job_id)[-1]
    assert (note["source"], note["problem"], note["applied"]) == ("archive", "not_stored", False)
    delay = tasks.ARCHIVE_RETRIES[attempt - 1]
    assert note["detail"].startswith(f"attempt {attempt}: ")
    assert note["detail"].endswith(f"; next in {delay} s")
    assert words in note["detail"]
    again_in = due_in(desk, job_id)
    assert again_in is not None
    assert delay - 5 < again_in <= delay
    assert desk.announced(job_id)[-1] == "job.succeeded"


# -- what is stored ---------------------------------------------------------------------------------------------


async def test_an_output_is_stored_with_its_hash_size_and_type(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying
) -> None:
    job_id = desk.made(files.serve("/film.mp4", whole(FILM, media_type="application/octet-stream")))
    assert await store(settings, job_id) == "apply"
    job = desk.job(job_id)
    (output,) = job.outputs
    assert output.url == f"{files.url}/film.mp4"
    assert output.stored is not None
    assert (output.stored.bytes, output.stored.sha256) == (len(FILM), HASH)
    assert output.stored.content_type == "video/mp4"  # by its bytes, whatever their server claims
    assert output.stored.key == f"lipsync_studio/{job_id}/0.mp4"
    assert output.stored.url == f"http://127.0.0.1/v1/jobs/{job_id}/outputs/0"
    assert lying_there() == {output.stored.key: FILM}
    assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.STORED)
    assert job.stored_at is not None
    assert desk.announced(job_id) == ["job.submitted", "job.succeeded", "job.stored"]
    assert due_in(desk, job_id) is None
    assert len(files.requests("/film.mp4")) == 1


async def test_a_bucket_hands_out_what_was_stored_as_what_it_is(
    redis_url: str, files: Files, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    made = deployments.settings(redis_url, storage_url=s3.storage_url(uuid4().hex))
    with closing(Desk(made)) as desk:
        job_id = desk.made(files.serve("/film.webm", whole(FILM, media_type="text/plain")))
        assert await store(made, job_id) == "apply"
        (output,) = desk.job(job_id).outputs
        assert output.stored is not None
        async with opened(made) as deployment, outbound.client(allow_private_networks=True) as http:
            answer = await http.get(await deployment.storage.signed_url(output.stored.key))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}-0.webm"'
    assert answer.content == FILM


async def test_every_output_is_stored_under_its_number(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying
) -> None:
    bodies = {"one.webm": WEBM, "two": MP4 + b"2", "three.php": MP4 + b"3", "four.MOV": MOV}
    job_id = desk.made(*(files.serve(f"/{name}", whole(body)) for name, body in bodies.items()))
    assert await store(settings, job_id) == "apply"
    folder = f"lipsync_studio/{job_id}"
    assert lying_there() == {
        f"{folder}/0.webm": WEBM,
        f"{folder}/1.mp4": MP4 + b"2",
        f"{folder}/2.mp4": MP4 + b"3",
        f"{folder}/3.mov": MOV,
    }
    kept = [output.stored for output in desk.job(job_id).outputs if output.stored]
    assert [each.content_type for each in kept] == ["video/webm", "video/mp4", "video/mp4", "video/quicktime"]
    assert [each.sha256 for each in kept] == [hashlib.sha256(lying_there()[each.key]).hexdigest() for each in kept]
    assert desk.announced(job_id).count("job.stored") == 1


KINDS = {
    "image": (OutputKind.IMAGE, "/still", "0.png", PNG, "image/png"),
    "jpeg": (OutputKind.IMAGE, "/still.jpeg?sig=1.mp4", "0.jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
    "audio": (OutputKind.AUDIO, "/voice", "0.mp3", b"ID3\4\0\0\0\0\0\x23", "audio/mpeg"),
    "wav": (OutputKind.AUDIO, "/voice.WAV", "0.wav", b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
    "a page by its name": (OutputKind.VIDEO, "/film.html", "0.mp4", FILM, "video/mp4"),
    "a script by its name": (OutputKind.IMAGE, "/still.svg", "0.png", PNG, "image/png"),
    "a film that is a picture": (OutputKind.VIDEO, "/film.mp4", "0.mp4", PNG, "image/png"),
    "a film that is a script": (OutputKind.VIDEO, "/film.mp4", "0.mp4", b"<script>", "application/octet-stream"),
    "a picture that is a drawing": (OutputKind.IMAGE, "/a.svg", "0.png", b"<svg onload=x>", "application/octet-stream"),
}


@pytest.mark.parametrize(("kind", "path", "name", "body", "media_type"), KINDS.values(), ids=KINDS)
async def test_what_an_output_is_called_follows_from_its_kind_and_its_type_from_its_bytes(
    on_file: Settings,
    file_desk: Desk,
    files: Files,
    kind: OutputKind,
    path: str,
    name: str,
    body: bytes,
    media_type: str,
) -> None:
    files.serve(path.partition("?")[0], whole(body, media_type="video/x-flv"))
    job_id = file_desk.track("lipsync_studio")
    outputs = (Output(kind=kind, url=files.url + path),)
    seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=outputs)
    file_desk.record(seen, vendor="lipsync_studio", job_id=job_id)
    assert await store(on_file, job_id) == "apply"
    (output,) = file_desk.job(job_id).outputs
    assert output.stored is not None
    assert output.stored.key == f"lipsync_studio/{job_id}/{name}"
    assert output.stored.content_type == media_type
    assert output.kind is kind


FINE: dict[str, Answer] = {
    "with a length": whole(FILM),
    "in chunks": chunked(FILM),
    "until the connection ends": raw(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\n" + FILM),
    "without a type": raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(FILM) + FILM),
}


@pytest.mark.parametrize("answer", FINE.values(), ids=FINE)
async def test_every_way_to_send_a_file_is_understood(
    on_file: Settings, file_desk: Desk, files: Files, answer: Answer
) -> None:
    job_id = file_desk.made(files.serve("/film.mp4", answer))
    assert await store(on_file, job_id) == "apply"
    (output,) = file_desk.job(job_id).outputs
    assert output.stored is not None
    assert (output.stored.bytes, output.stored.sha256) == (len(FILM), HASH)


async def test_a_file_that_comes_byte_by_byte_is_stored_as_what_it_is(
    on_file: Settings, file_desk: Desk, files: Files
) -> None:
    job_id = file_desk.made(files.serve("/film", drip(FILM[:100], every=0.001, media_type="text/plain")))
    assert await store(on_file, job_id) == "apply"
    (output,) = file_desk.job(job_id).outputs
    assert output.stored is not None
    assert output.stored.content_type == "video/mp4"
    assert stored_in(on_file) == {output.stored.key: FILM[:100]}


async def test_as_many_redirects_as_are_usual_are_followed(on_file: Settings, file_desk: Desk, files: Files) -> None:
    files.serve("/5", whole(FILM))
    for number, code in enumerate((301, 302, 303, 307, 308)):
        there = f"{files.url}/{number + 1}" if number % 2 else f"{number + 1}?sig=a%20b#end"
        files.serve(f"/{number}", redirect(there, code))
    job_id = file_desk.made(f"{files.url}/0")
    assert await store(on_file, job_id) == "apply"
    (output,) = file_desk.job(job_id).outputs
    assert output.stored is not None
    assert output.stored.sha256 == HASH
    assert output.url == f"{files.url}/0"


# -- twice ------------------------------------------------------------------------------------------------------


async def test_storing_twice_stores_once(settings: Settings, desk: Desk, files: Files, lying_there: Lying) -> None:
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    assert [await store(settings, job_id) for _ in range(2)] == ["apply", "nothing to do"]
    assert len(lying_there()) == 1
    assert desk.announced(job_id).count("job.stored") == 1
    assert len(files.requests("/film.mp4")) == 1


async def test_of_two_at_once_one_stores(settings: Settings, desk: Desk, files: Files, lying_there: Lying) -> None:
    gate = threading.Event()
    job_id = desk.made(files.serve("/film.mp4", gated(FILM, 1000, gate)))
    first = asyncio.create_task(store(settings, job_id))
    await asked_for(files, "/film.mp4")
    assert await store(settings, job_id) == "held by another run"
    gate.set()
    assert await first == "apply"
    assert len(files.requests("/film.mp4")) == 1
    assert len(lying_there()) == 1
    assert desk.announced(job_id).count("job.stored") == 1


async def test_two_at_once_without_a_lease_store_the_same_once(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying
) -> None:
    """A run may outlive its lease: its Redis was away, its process stood still."""
    gate = threading.Event()
    job_id = desk.made(files.serve("/film.mp4", gated(FILM, 1000, gate)))
    runs = []
    for number in range(3):
        runs.append(asyncio.create_task(store(settings, job_id)))
        await asked_for(files, "/film.mp4", times=number + 1)
        desk.end_leases()
    gate.set()
    outcomes = await asyncio.gather(*runs)
    assert outcomes.count("apply") == 1
    assert lying_there() == {f"lipsync_studio/{job_id}/0.mp4": FILM}
    assert desk.job(job_id).archive is Archive.STORED
    assert desk.announced(job_id).count("job.stored") == 1


async def test_a_copy_of_what_the_job_no_longer_says_is_not_counted(
    on_file: Settings, file_desk: Desk, files: Files
) -> None:
    gate = threading.Event()
    job_id = file_desk.made(files.serve("/old.mp4", gated(FILM, 1000, gate)))
    run = asyncio.create_task(store(on_file, job_id))
    await asked_for(files, "/old.mp4")
    fresh = (Output(url=files.serve("/new.mp4", whole(b"new"))),)
    seen = Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=fresh)
    assert file_desk.record(seen, vendor="lipsync_studio", job_id=job_id).outcome == "update"
    gate.set()
    assert await run == "apply"
    (output,) = file_desk.job(job_id).outputs
    assert output.url == f"{files.url}/new.mp4"
    assert output.stored is not None
    assert output.stored.sha256 == hashlib.sha256(b"new").hexdigest()
    assert stored_in(on_file) == {output.stored.key: b"new"}
    assert file_desk.announced(job_id).count("job.stored") == 1


async def test_a_job_that_the_vendor_fails_meanwhile_is_left_alone(
    on_file: Settings, file_desk: Desk, files: Files
) -> None:
    gate = threading.Event()
    job_id = file_desk.made(files.serve("/film.mp4", gated(FILM, 1000, gate)))
    run = asyncio.create_task(store(on_file, job_id))
    await asked_for(files, "/film.mp4")
    seen = Observation(source=Source.POLL, status=Status.FAILED, error=JobError(code="late", message="late"))
    file_desk.record(seen, vendor="lipsync_studio", job_id=job_id)
    gate.set()
    await run
    job = file_desk.job(job_id)
    assert (job.status, job.archive) == (Status.FAILED, Archive.NONE)
    assert "job.stored" not in file_desk.announced(job_id)
    assert await store(on_file, job_id) == "nothing to do"


async def test_a_job_that_nobody_knows_is_nothing_to_do(on_file: Settings) -> None:
    assert await store(on_file, "job_" + "0" * 24) == "nothing to do"


# -- what is not stored -------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Answer, str]] = {
    "truncated": (cut(FILM, 1000), "broke off after"),
    "truncated late": (cut(LONG, 17 * 2**20), "broke off after"),
    "reset": (cut(FILM, 1000, by_reset=True), "broke off after"),
    "truncated chunks": (chunked(FILM, ended=False), "broke off after"),
    "a longer length than it has": (large(1000, announced=2000), "broke off after"),
    "empty": (whole(b""), "the file is empty"),
    "empty chunks": (chunked(b""), "the file is empty"),
    "HTML": (whole(b"<html>", media_type="text/html; charset=utf-8"), "text/html"),
    "JSON": (whole(b"{}", media_type="Application/JSON"), "application/json"),
    "XML": (whole(b"<Error/>", media_type="application/xml"), "application/xml"),
    "a page that calls itself a film": (whole(b" \n<!DOCTYPE html><title>film</title>"), "with a page"),
    "a page byte by byte": (drip(b"<html><title>film</title>", every=0.001), "with a page"),
    "a message that calls itself a film": (whole(b'{"error":"gone"}'), "or a message"),
    "500": (status(500), "500"),
    "503": (status(503, retry_after="1"), "503"),
    "429": (status(429), "429"),
    "204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "204"),
    "206": (whole(FILM[:100], status=206, content_range="bytes 0-99/262144"), "206"),
    "no answer": (raw(b""), ""),
    "not HTTP": (raw(b"220 ftp ready\r\n"), ""),
    "a redirect in circles": (redirect("/film.mp4"), "redirects"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "not allowed"),
    "a redirect to FTP": (redirect("ftp://127.0.0.1/film.mp4"), "not allowed"),
    "a redirect with a user": (redirect("http://user:secret@127.0.0.1/film.mp4"), "not allowed"),
    "a redirect to nobody": (redirect(f"http://127.0.0.1:{free_port()}/film.mp4"), ""),
    "a redirect to no port": (redirect("http://127.0.0.1:99999/film.mp4"), ""),
    "a redirect to no host": (redirect("http:///film.mp4"), ""),
    "a redirect to no name": (redirect("http://a..example/film.mp4"), ""),
    "a redirect to no URL": (redirect("http://[film.mp4"), ""),
    "a redirect to nothing": (redirect(""), ""),
}


@pytest.mark.parametrize(("answer", "words"), BROKEN.values(), ids=BROKEN)
async def test_what_is_not_the_whole_file_leaves_nothing_behind_and_is_tried_again(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying, answer: Answer, words: str
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    async with worker(settings) as archivist:
        assert await archivist.store(job_id) == "to be tried again"
        untouched(desk, job_id, words)
        assert lying_there() == {}
        files.serve("/film.mp4", whole(FILM))
        assert await archivist.store(job_id) == "apply"
    assert lying_there() == {f"lipsync_studio/{job_id}/0.mp4": FILM}
    assert desk.announced(job_id).count("job.stored") == 1


async def test_one_redirect_too_many_is_not_followed(on_file: Settings, file_desk: Desk, files: Files) -> None:
    files.serve("/6", whole(FILM))
    for number in range(6):
        files.serve(f"/{number}", redirect(f"/{number + 1}"))
    job_id = file_desk.made(f"{files.url}/0")
    assert await store(on_file, job_id) == "to be tried again"
    untouched(file_desk, job_id, "more than 5 redirects")
    assert files.requests("/6") == []


BAD_LINKS = {
    "no name": "http://a..example/film.mp4",
    "too long a name": f"http://{'a' * 64}.example/film.mp4",
    "no port": "http://127.0.0.1:99999/film.mp4",
    "half an address": "http://[/film.mp4",
}


@pytest.mark.parametrize("url", BAD_LINKS.values(), ids=BAD_LINKS)
async def test_a_link_that_leads_nowhere_is_an_attempt_like_any_other(
    on_file: Settings, file_desk: Desk, url: str, monkeypatch: pytest.MonkeyPatch, refused_connections: list[str]
) -> None:
    look_up = socket.getaddrinfo

    def find_nothing(*where: Any, **how: Any) -> Any:
        try:
            return look_up(*where, **how)
        except NetworkRefusedError:
            refused_connections.clear()
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    job_id = file_desk.made(url)
    assert await store(on_file, job_id) == "to be tried again"
    untouched(file_desk, job_id, "")


@pytest.mark.parametrize("code", [301, 307])
async def test_a_redirect_to_a_private_address_is_refused(
    redis_url: str, files: Files, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in production, but for the first hop, which a test can only play on this machine."""
    made = deployments.settings(redis_url, allow_private_networks=False)
    files.serve("/film.mp4", whole(FILM))
    files.serve("/0", redirect(f"https://127.0.0.1:{files.port}/film.mp4", code))
    with closing(Desk(made)) as desk:
        job_id = desk.made(f"{files.url}/0")
        guard = outbound.GuardedTransport.handle_async_request
        seen: list[str] = []

        async def first_hop_free(self: outbound.GuardedTransport, request: object) -> object:
            self._allow_private = not seen
            seen.append(str(request))
            return await guard(self, request)  # type: ignore[arg-type]

        monkeypatch.setattr(outbound.GuardedTransport, "handle_async_request", first_hop_free)
        assert await store(made, job_id) == "to be tried again"
        untouched(desk, job_id, "not allowed")
    assert len(seen) == 2
    assert (files.connections, files.requests("/film.mp4")) == (1, [])


async def test_a_link_to_a_private_address_is_not_fetched(redis_url: str, files: Files) -> None:
    made = deployments.settings(redis_url, allow_private_networks=False)
    with closing(Desk(made)) as desk:
        for url in (files.url, f"https://127.0.0.1:{files.port}", f"https://localhost:{files.port}"):
            job_id = desk.made(f"{url}/film.mp4")
            assert await store(made, job_id) == "to be tried again"
            untouched(desk, job_id, "not allowed")
    assert files.connections == 0


TOO_LARGE: dict[str, Answer] = {
    "as it says": large(LIMIT + 1),
    "by far": large(64 * 2**20),
    "whatever it says": large(LIMIT + 1, announced=LIMIT + 1),
    "in endless chunks": endless(),
}


@pytest.mark.parametrize("answer", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_what_is_larger_than_allowed_is_not_stored(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying, answer: Answer
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    assert await store(replace(settings, max_output_bytes=LIMIT), job_id) == "to be tried again"
    untouched(desk, job_id, f"larger than {LIMIT} bytes")
    assert lying_there() == {}


async def test_what_is_just_as_large_as_allowed_is_stored(on_file: Settings, file_desk: Desk, files: Files) -> None:
    job_id = file_desk.made(files.serve("/film.mp4", large(LIMIT)))
    assert await store(replace(on_file, max_output_bytes=LIMIT), job_id) == "apply"


# -- slow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [hang, stall(FILM, 0), stall(LONG, 17 * 2**20)], ids=["head", "body", "late"])
async def test_a_download_that_stands_still_is_given_up(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying, answer: Answer
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    async with asyncio.timeout(10), worker(settings, patience=0.3) as archivist:
        assert await archivist.store(job_id) == "to be tried again"
    untouched(desk, job_id, "")
    assert lying_there() == {}


async def test_a_download_that_drips_is_given_up(
    on_file: Settings, file_desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never silent for long enough to time out, and never done."""
    monkeypatch.setattr(download, "MIN_RATE_AFTER", 0.3)
    job_id = file_desk.made(files.serve("/film.mp4", drip(FILM)))
    async with asyncio.timeout(4):
        assert await store(on_file, job_id) == "to be tried again"
    untouched(file_desk, job_id, "too slow")


async def test_an_answer_whose_headers_never_end_is_given_up(
    on_file: Settings, file_desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_HEAD_SECONDS", 0.3)
    job_id = file_desk.made(files.serve("/film.mp4", drip_head()))
    async with asyncio.timeout(4):
        assert await store(on_file, job_id) == "to be tried again"
    untouched(file_desk, job_id, "")


async def test_a_download_has_an_end(
    on_file: Settings, file_desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_SECONDS", 0.3)
    job_id = file_desk.made(files.serve("/film.mp4", drip(FILM, size=1024)))
    async with asyncio.timeout(4):
        assert await store(on_file, job_id) == "to be tried again"
    untouched(file_desk, job_id, "too slow")


# -- the end of all attempts ----------------------------------------------------------------------------------------


async def test_after_the_last_attempt_the_archive_has_failed_and_the_verdict_stands(
    on_file: Settings, file_desk: Desk, files: Files
) -> None:
    job_id = file_desk.made(files.serve("/film.mp4", status(500)))
    async with worker(on_file) as archivist:
        outcomes = [await archivist.store(job_id) for _ in range(len(tasks.ARCHIVE_RETRIES) + 1)]
        assert outcomes == ["to be tried again"] * len(tasks.ARCHIVE_RETRIES) + ["failed"]
        job = file_desk.job(job_id)
        assert (job.status, job.archive, job.error) == (Status.SUCCEEDED, Archive.FAILED, None)
        assert file_desk.announced(job_id) == ["job.submitted", "job.succeeded", "job.store_failed"]
        notes = [note for note in file_desk.timeline(job_id) if note["source"] == "archive"]
        delays = [int(found[1]) for note in notes if (found := re.search(r"next in (\d+) s", note["detail"]))]
        assert delays == list(tasks.ARCHIVE_RETRIES)
        assert notes[-1]["archive"] == "failed"
        assert due_in(file_desk, job_id) is None
        assert await archivist.store(job_id) == "nothing to do"

        # Somebody asks for it again, and it begins anew.
        file_desk.record(
            Observation(source=Source.OPERATOR, archive=Archive.WAITING), vendor="lipsync_studio", job_id=job_id
        )
        assert await archivist.store(job_id) == "to be tried again"
        files.serve("/film.mp4", whole(FILM))
        assert await archivist.store(job_id) == "apply"
    assert file_desk.announced(job_id)[-2:] == ["job.store_failed", "job.stored"]
    assert file_desk.job(job_id).archive is Archive.STORED


# -- dead links -------------------------------------------------------------------------------------------------------


async def succeeded(desk: Desk, sandbox: Sandbox, settings: Settings, vendor: str, *faults: str) -> str:
    """A job that the vendor has done, and whose link we were given. Returns our id."""
    vendor_job_id = sandbox.finished(vendor, *faults)
    job_id = desk.track(vendor, vendor_job_id)
    async with worker(settings) as archivist:
        answer = await archivist._vendors.status(vendor, vendor_job_id)
    assert isinstance(answer.reading, Observation)
    desk.record(answer.reading, vendor=vendor, job_id=job_id)
    return job_id


@pytest.mark.parametrize("vendor", ["apimodels", "chanjing", "kitta", "lipsync_studio"])
async def test_a_dead_link_is_replaced_by_asking_the_vendor(on_file: Settings, sandbox: Sandbox, vendor: str) -> None:
    made = replace(on_file, accounts=sandbox.accounts())
    with closing(Desk(made)) as desk:
        job_id = await succeeded(desk, sandbox, made, vendor, "link_expired")
        old = desk.job(job_id).outputs[0].url
        assert await store(made, job_id) == "apply"
        job = desk.job(job_id)
        known = sandbox.job(vendor, str(job.vendor_job_id))
        assert job.archive is Archive.STORED
        assert job.outputs[0].url not in ("", old)
        assert job.outputs[0].stored is not None
        assert job.outputs[0].stored.sha256 == known["outputs"][0]["sha256"]
        assert job.outputs[0].stored.bytes == known["outputs"][0]["bytes"]
        assert known["status_calls"] == 2
        assert desk.announced(job_id) == ["job.submitted", "job.succeeded", "job.stored"]


async def test_a_link_that_stays_dead_fails_the_archive_after_a_short_list(on_file: Settings, sandbox: Sandbox) -> None:
    made = replace(on_file, accounts=sandbox.accounts())
    with closing(Desk(made)) as desk:
        job_id = await succeeded(desk, sandbox, made, "lipsync_studio", "link_dead")
        async with worker(made) as archivist:
            outcomes = [await archivist.store(job_id) for _ in range(len(tasks.SHORT_RETRIES) + 1)]
        assert outcomes == ["to be tried again"] * len(tasks.SHORT_RETRIES) + ["failed"]
        job = desk.job(job_id)
        assert (job.status, job.archive) == (Status.SUCCEEDED, Archive.FAILED)
        assert desk.announced(job_id) == ["job.submitted", "job.succeeded", "job.store_failed"]
        # The vendor was asked once in each attempt, and once at first.
        assert sandbox.calls("lipsync_studio") == {"status": len(outcomes) + 1}


async def test_a_vendor_that_cannot_be_asked_for_a_fresh_link_has_not_said_that_there_is_none(
    on_file: Settings, sandbox: Sandbox
) -> None:
    """The short list is for links that stay dead although the vendor was asked. One that is down was not."""
    made = replace(on_file, accounts=sandbox.accounts())
    with closing(Desk(made)) as desk:
        job_id = await succeeded(desk, sandbox, made, "lipsync_studio", "link_expired")
        sandbox.order("lipsync_studio", "vendor_down")
        async with worker(made) as archivist:
            for _ in range(len(tasks.SHORT_RETRIES) + 1):
                assert await archivist.store(job_id) == "to be tried again"
            sandbox.clear()
            assert await archivist.store(job_id) == "apply"


@pytest.mark.parametrize("code", [401, 403, 404, 410])
async def test_without_a_vendor_to_ask_a_dead_link_is_tried_a_few_times(
    on_file: Settings, file_desk: Desk, files: Files, code: int
) -> None:
    job_id = file_desk.made(files.serve("/film.mp4", status(code)))  # nobody knows the vendor's id
    async with worker(on_file) as archivist:
        assert await archivist.store(job_id) == "to be tried again"
        untouched(file_desk, job_id, f"the link answers {code}")
        outcomes = [await archivist.store(job_id) for _ in tasks.SHORT_RETRIES]
    assert outcomes[-1] == "failed"
    assert set(outcomes[:-1]) == {"to be tried again"}


async def test_a_vendor_that_takes_its_verdict_back_is_believed(on_file: Settings, files: Files) -> None:
    """Asked for a fresh link, the vendor says that the job has failed."""
    accounts = deployments.accounts(files.url)
    made = replace(on_file, accounts=accounts)
    files.serve(
        "/lipsync_studio/api/v1/jobs/42",
        whole(b'{"id":"42","status":"failed","error":"taken back"}', media_type="application/json"),
    )
    with closing(Desk(made)) as desk:
        job_id = desk.made(files.serve("/film.mp4", status(404)), vendor_job_id="42")
        await store(made, job_id)
        job = desk.job(job_id)
        assert (job.status, job.archive) == (Status.FAILED, Archive.NONE)
        assert due_in(desk, job_id) is None


# -- the storage's own trouble ----------------------------------------------------------------------------------------


def rclone(folder: Path, port: int, log: Path) -> Process:
    options = ["--config", "", "--addr", f"127.0.0.1:{port}", "--auth-key", "callsheet-key,callsheet-secret"]
    process = Process([BIN / "rclone", "serve", "s3", *options, folder], log=log)
    process.wait_until(lambda: "Starting s3 server" in process.output(), "its start")
    return process


async def test_an_upload_that_is_interrupted_leaves_nothing_at_the_storage(
    redis_url: str, files: Files, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stops while the file is on its way from its disk: once half of it has arrived."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    made, asked = deployments.settings(redis_url, storage_url=s3.storage_url(uuid4().hex)), count(1)

    def check(download: Download) -> None:
        if next(asked) > 17:
            raise Interrupted

    monkeypatch.setattr(Download, "check", check)
    with closing(Desk(made)) as desk:
        job_id = desk.made(files.serve("/film.mp4", whole(LONG)))
        with pytest.raises(Interrupted):
            await store(made, job_id)
    assert next(asked) == 19
    assert unfinished(s3) == []
    assert stored_in(made, s3) == {}


async def test_a_storage_that_is_down_is_an_attempt_and_no_verdict(
    redis_url: str, files: Files, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, folder = free_port(), tmp_path / "buckets"
    (folder / s3.bucket).mkdir(parents=True)
    own = replace_s3(s3, f"http://127.0.0.1:{port}", folder / s3.bucket)
    for name, value in own.environment.items():
        monkeypatch.setenv(name, value)
    made = deployments.settings(redis_url, storage_url=own.storage_url("home"))
    with closing(Desk(made)) as desk:
        job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
        assert await store(made, job_id) == "to be tried again"
        untouched(desk, job_id, "")
        with rclone(folder, port, tmp_path / "s3.log"):
            assert await store(made, job_id) == "apply"
        assert stored_in(made, own) == {f"lipsync_studio/{job_id}/0.mp4": FILM}
        assert desk.announced(job_id).count("job.stored") == 1


async def test_a_storage_that_goes_down_in_the_middle_is_an_attempt_and_no_verdict(
    redis_url: str, files: Files, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, folder = free_port(), tmp_path / "buckets"
    (folder / s3.bucket).mkdir(parents=True)
    own = replace_s3(s3, f"http://127.0.0.1:{port}", folder / s3.bucket)
    for name, value in own.environment.items():
        monkeypatch.setenv(name, value)
    made = deployments.settings(redis_url, storage_url=own.storage_url("home"))
    asked = count(1)

    def check(download: Download) -> None:  # called between the pieces of the upload
        if next(asked) == 17:
            eventually(lambda: stored_in(made, own), "the first part")
            server.stop()

    with closing(Desk(made)) as desk:
        job_id = desk.made(files.serve("/film.mp4", whole(LONG)))
        with monkeypatch.context() as patched, rclone(folder, port, tmp_path / "s3.log") as server:
            patched.setattr(Download, "check", check)
            assert await store(made, job_id) == "to be tried again"
        assert next(asked) > 17
        untouched(desk, job_id, "")
        with rclone(folder, port, tmp_path / "s3.log"):
            assert await store(made, job_id) == "apply"
        assert stored_in(made, own)[f"lipsync_studio/{job_id}/0.mp4"] == LONG


async def test_a_storage_that_refuses_is_an_attempt_and_says_so(
    redis_url: str, files: Files, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3.environment, "AWS_SECRET_ACCESS_KEY": "another"}.items():
        monkeypatch.setenv(name, value)
    made = deployments.settings(redis_url, storage_url=s3.storage_url(uuid4().hex))
    with closing(Desk(made)) as desk:
        job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
        assert await store(made, job_id) == "to be tried again"
        untouched(desk, job_id, "attempt 1: the storage answers 403 SignatureDoesNotMatch")
        assert "another" not in str(desk.timeline(job_id))


async def test_a_file_that_is_in_the_way_is_an_attempt_and_says_so(
    on_file: Settings, file_desk: Desk, files: Files, tmp_path: Path
) -> None:
    job_id = file_desk.made(files.serve("/film.mp4", whole(FILM)))
    in_the_way = tmp_path / "objects" / "lipsync_studio"
    in_the_way.parent.mkdir()
    in_the_way.write_bytes(b"not a folder")
    assert await store(on_file, job_id) == "to be tried again"
    untouched(file_desk, job_id, "")
    in_the_way.unlink()
    assert await store(on_file, job_id) == "apply"


# -- a process that stops ---------------------------------------------------------------------------------------------


INTERRUPTED: dict[str, Answer] = {
    "before the body": stall(FILM, 0),
    "after the first parts": stall(LONG, 17 * 2**20),
    "while it drips": drip(FILM),
    "while it runs": endless(),
}


@pytest.mark.parametrize("answer", INTERRUPTED.values(), ids=INTERRUPTED)
async def test_an_interrupted_run_leaves_nothing_and_another_takes_over(
    settings: Settings, desk: Desk, files: Files, lying_there: Lying, answer: Answer
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    interrupted = asyncio.Event()
    async with worker(settings, interrupted=interrupted) as archivist:
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
    assert await store(settings, job_id) == "apply"  # at once: the lease was given up
    assert lying_there() == {f"lipsync_studio/{job_id}/0.mp4": FILM}


async def test_a_run_says_that_it_is_alive_for_as_long_as_it_is(
    on_file: Settings, file_desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "LEASE_MS", 2000)
    gate = threading.Event()
    job_id = file_desk.made(files.serve("/film.mp4", gated(FILM, 1000, gate)))
    run = asyncio.create_task(store(on_file, job_id))
    await asked_for(files, "/film.mp4")
    for _ in range(3):
        file_desk.make_due("tasks")
        await asyncio.to_thread(
            eventually, lambda: (due_in(file_desk, job_id) or 0) > tasks.PATIENCE - 5, "a sign of life"
        )
        assert await store(on_file, job_id) == "held by another run"
    gate.set()
    assert await run == "apply"
    assert due_in(file_desk, job_id) is None


# -- constant memory --------------------------------------------------------------------------------------------------

MEASURE = """
    import asyncio, resource, sys
    from service.deployment import configured, opened
    from workers import outbound
    from workers.archive import Archivist

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    async def main():
        settings = configured()
        async with (
            opened(settings) as deployment,
            outbound.client(allow_private_networks=settings.allow_private_networks) as http,
        ):
            archivist = Archivist(deployment, http, asyncio.Event())
            for job_id in sys.argv[1:]:
                print(await archivist.store(job_id), peak(), flush=True)

    asyncio.run(main())
"""


def test_a_large_file_passes_through_little_memory(
    settings: Settings, desk: Desk, files: Files, request: pytest.FixtureRequest
) -> None:
    size = 300 * 2**20
    small = desk.made(files.serve("/small.mp4", whole(FILM)))
    big = desk.made(files.serve("/big.mp4", large(size)))
    variables = deployments.environment(replace(settings, log_format="json"))
    if settings.storage_url.startswith("s3"):
        variables |= request.getfixturevalue("s3").environment
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), small, big]
    done = subprocess.run(
        command, env=environment(variables), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (_, before), (_, after) = (line.split() for line in done.stdout.splitlines() if line.startswith("apply "))
    (output,) = desk.job(big).outputs
    assert output.stored is not None
    digest = hashlib.sha256()
    for _ in range(300):
        digest.update(bytes(2**20))
    assert (output.stored.bytes, output.stored.sha256) == (size, digest.hexdigest())
    assert int(after) - int(before) < 120, f"MB at the peak: {before} before, {after} after"


# -- helpers ----------------------------------------------------------------------------------------------------------


def replace_s3(s3: S3, endpoint: str, folder: Path) -> S3:
    return S3(endpoint=endpoint, key=s3.key, secret=s3.secret, bucket=s3.bucket, region=s3.region, folder=folder)


async def asked_for(files: Files, path: str, times: int = 1) -> None:
    """Wait until a path has been asked for so often."""

    async def enough() -> bool:
        return len(files.requests(path)) >= times

    await eventually_async(enough, f"request {times} for {path}")
