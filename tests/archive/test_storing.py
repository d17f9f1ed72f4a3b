"""Bringing results home: whole, under their names, and once, in constant memory."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import textwrap

import pytest
from msgspec.structs import replace

from service.deployment import opened
from service.model import Archive, JobError, Observation, Output, OutputKind, Source, Status
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support.archives import (
    FILM,
    HASH,
    Lying,
    asked_for,
    both_storages,
    due_in,
    in_a_bucket,
    store,
    stored_in,
    under_way,
)
from tests.support.files import MOV, MP4, PNG, WEBM, Answer, Files, chunked, drip, large, raw, redirect, whole
from tests.support.processes import ROOT, environment
from tests.support.sandbox import Desk
from workers import outbound

# -- what is stored -------------------------------------------------------------------------------------


@both_storages
async def test_an_output_is_stored_with_its_hash_size_and_type(desk: Desk, files: Files, lying_there: Lying) -> None:
    job_id = desk.made(files.serve("/film.mp4", whole(FILM, media_type="application/octet-stream")))
    assert await store(desk, job_id) == "apply"
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


@in_a_bucket
async def test_a_bucket_hands_out_what_was_stored_as_what_it_is(settings: Settings, desk: Desk, files: Files) -> None:
    job_id = desk.made(files.serve("/film.webm", whole(FILM, media_type="text/plain")))
    assert await store(desk, job_id) == "apply"
    (output,) = desk.job(job_id).outputs
    assert output.stored is not None
    async with opened(settings) as deployment, outbound.client(allow_private_networks=True) as http:
        answer = await http.get(await deployment.storage.signed_url(output.stored.key))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}-0.webm"'
    assert answer.content == FILM


@both_storages
async def test_every_output_is_stored_under_its_number(desk: Desk, files: Files, lying_there: Lying) -> None:
    bodies = {"one.webm": WEBM, "two": MP4 + b"2", "three.php": MP4 + b"3", "four.MOV": MOV}
    job_id = desk.made(*(files.serve(f"/{name}", whole(body)) for name, body in bodies.items()))
    assert await store(desk, job_id) == "apply"
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
    desk: Desk, files: Files, kind: OutputKind, path: str, name: str, body: bytes, media_type: str
) -> None:
    files.serve(path.partition("?")[0], whole(body, media_type="video/x-flv"))
    job_id = desk.track("lipsync_studio")
    outputs = (Output(kind=kind, url=files.url + path),)
    seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=outputs)
    desk.record(seen, vendor="lipsync_studio", job_id=job_id)
    assert await store(desk, job_id) == "apply"
    (output,) = desk.job(job_id).outputs
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
async def test_every_way_to_send_a_file_is_understood(desk: Desk, files: Files, answer: Answer) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    assert await store(desk, job_id) == "apply"
    (output,) = desk.job(job_id).outputs
    assert output.stored is not None
    assert (output.stored.bytes, output.stored.sha256) == (len(FILM), HASH)


async def test_a_file_that_comes_byte_by_byte_is_stored_as_what_it_is(
    settings: Settings, desk: Desk, files: Files
) -> None:
    job_id = desk.made(files.serve("/film", drip(FILM[:100], every=0.001, media_type="text/plain")))
    assert await store(desk, job_id) == "apply"
    (output,) = desk.job(job_id).outputs
    assert output.stored is not None
    assert output.stored.content_type == "video/mp4"
    assert stored_in(settings) == {output.stored.key: FILM[:100]}


async def test_as_many_redirects_as_are_usual_are_followed(desk: Desk, files: Files) -> None:
    files.serve("/5", whole(FILM))
    for number, code in enumerate((301, 302, 303, 307, 308)):
        there = f"{files.url}/{number + 1}" if number % 2 else f"{number + 1}?sig=a%20b#end"
        files.serve(f"/{number}", redirect(there, code))
    job_id = desk.made(f"{files.url}/0")
    assert await store(desk, job_id) == "apply"
    (output,) = desk.job(job_id).outputs
    assert output.stored is not None
    assert output.stored.sha256 == HASH
    assert output.url == f"{files.url}/0"


# -- twice ----------------------------------------------------------------------------------------------


@both_storages
async def test_storing_twice_stores_once(desk: Desk, files: Files, lying_there: Lying) -> None:
    job_id = desk.made(files.serve("/film.mp4", whole(FILM)))
    assert [await store(desk, job_id) for _ in range(2)] == ["apply", "nothing to do"]
    assert len(lying_there()) == 1
    assert desk.announced(job_id).count("job.stored") == 1
    assert len(files.requests("/film.mp4")) == 1


@both_storages
async def test_of_two_at_once_one_stores(desk: Desk, files: Files, lying_there: Lying) -> None:
    job_id, first, gate = await under_way(desk, files, "/film.mp4")
    assert await store(desk, job_id) == "held by another run"
    gate.set()
    assert await first == "apply"
    assert len(files.requests("/film.mp4")) == 1
    assert len(lying_there()) == 1
    assert desk.announced(job_id).count("job.stored") == 1


@both_storages
async def test_two_at_once_without_a_lease_store_the_same_once(desk: Desk, files: Files, lying_there: Lying) -> None:
    """A run may outlive its lease: its Redis was away, its process stood still."""
    job_id, first, gate = await under_way(desk, files, "/film.mp4")
    runs = [first]
    for number in (2, 3):
        desk.end_leases()
        runs.append(asyncio.create_task(store(desk, job_id)))
        await asked_for(files, "/film.mp4", times=number)
    desk.end_leases()
    gate.set()
    outcomes = await asyncio.gather(*runs)
    assert outcomes.count("apply") == 1
    assert lying_there() == {f"lipsync_studio/{job_id}/0.mp4": FILM}
    assert desk.job(job_id).archive is Archive.STORED
    assert desk.announced(job_id).count("job.stored") == 1


async def test_a_copy_of_what_the_job_no_longer_says_is_not_counted(
    settings: Settings, desk: Desk, files: Files
) -> None:
    job_id, run, gate = await under_way(desk, files, "/old.mp4")
    fresh = (Output(url=files.serve("/new.mp4", whole(b"new"))),)
    seen = Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=fresh)
    assert desk.record(seen, vendor="lipsync_studio", job_id=job_id).outcome == "update"
    gate.set()
    assert await run == "apply"
    (output,) = desk.job(job_id).outputs
    assert output.url == f"{files.url}/new.mp4"
    assert output.stored is not None
    assert output.stored.sha256 == hashlib.sha256(b"new").hexdigest()
    assert stored_in(settings) == {output.stored.key: b"new"}
    assert desk.announced(job_id).count("job.stored") == 1


async def test_a_job_that_the_vendor_fails_meanwhile_is_left_alone(desk: Desk, files: Files) -> None:
    job_id, run, gate = await under_way(desk, files, "/film.mp4")
    seen = Observation(source=Source.POLL, status=Status.FAILED, error=JobError(code="late", message="late"))
    desk.record(seen, vendor="lipsync_studio", job_id=job_id)
    gate.set()
    await run
    job = desk.job(job_id)
    assert (job.status, job.archive) == (Status.FAILED, Archive.NONE)
    assert "job.stored" not in desk.announced(job_id)
    assert await store(desk, job_id) == "nothing to do"


async def test_a_job_that_nobody_knows_is_nothing_to_do(desk: Desk) -> None:
    assert await store(desk, "job_" + "0" * 24) == "nothing to do"


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


@both_storages
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
