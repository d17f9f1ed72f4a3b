"""What is not stored: links and answers of every bad kind, too large, too slow, or never to be had."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.support import deployment as deployments
from tests.support.archives import FILM, LONG, Lying, both_storages, store, untouched, worker
from tests.support.files import (
    Answer,
    Files,
    chunked,
    cut,
    drip,
    drip_head,
    endless,
    hang,
    large,
    raw,
    redirect,
    stall,
    status,
    whole,
)
from tests.support.network import NetworkRefusedError
from tests.support.processes import free_port
from tests.support.sandbox import Desk, desk_of
from workers import download, outbound

LIMIT = 2**20  #: bytes that an output may have, where a test is about that


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
@both_storages
async def test_what_is_not_the_whole_file_leaves_nothing_behind_and_is_tried_again(
    desk: Desk, files: Files, lying_there: Lying, answer: Answer, words: str
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    async with worker(desk) as archivist:
        assert await archivist.store(job_id) == "to be tried again"
        untouched(desk, job_id, words)
        assert lying_there() == {}
        files.serve("/film.mp4", whole(FILM))
        assert await archivist.store(job_id) == "apply"
    assert lying_there() == {f"lipsync_studio/{job_id}/0.mp4": FILM}
    assert desk.announced(job_id).count("job.stored") == 1


async def test_one_redirect_too_many_is_not_followed(desk: Desk, files: Files) -> None:
    files.serve("/6", whole(FILM))
    for number in range(6):
        files.serve(f"/{number}", redirect(f"/{number + 1}"))
    job_id = desk.made(f"{files.url}/0")
    assert await store(desk, job_id) == "to be tried again"
    untouched(desk, job_id, "more than 5 redirects")
    assert files.requests("/6") == []


BAD_LINKS = {
    "no name": "http://a..example/film.mp4",
    "too long a name": f"http://{'a' * 64}.example/film.mp4",
    "no port": "http://127.0.0.1:99999/film.mp4",
    "half an address": "http://[/film.mp4",
}


@pytest.mark.parametrize("url", BAD_LINKS.values(), ids=BAD_LINKS)
async def test_a_link_that_leads_nowhere_is_an_attempt_like_any_other(
    desk: Desk, url: str, monkeypatch: pytest.MonkeyPatch, refused_connections: list[str]
) -> None:
    look_up = socket.getaddrinfo

    def find_nothing(*where: Any, **how: Any) -> Any:
        try:
            return look_up(*where, **how)
        except NetworkRefusedError:
            refused_connections.clear()
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    job_id = desk.made(url)
    assert await store(desk, job_id) == "to be tried again"
    untouched(desk, job_id, "")


@pytest.mark.parametrize("code", [301, 307])
async def test_a_redirect_to_a_private_address_is_refused(
    redis_url: str, files: Files, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in production, but for the first hop, which a test can only play on this machine."""
    made = deployments.settings(redis_url, allow_private_networks=False)
    files.serve("/film.mp4", whole(FILM))
    files.serve("/0", redirect(f"https://127.0.0.1:{files.port}/film.mp4", code))
    with desk_of(made) as desk:
        job_id = desk.made(f"{files.url}/0")
        guard = outbound.GuardedTransport.handle_async_request
        seen: list[str] = []

        async def first_hop_free(self: outbound.GuardedTransport, request: object) -> object:
            self._allow_private = not seen
            seen.append(str(request))
            return await guard(self, request)  # type: ignore[arg-type]

        monkeypatch.setattr(outbound.GuardedTransport, "handle_async_request", first_hop_free)
        assert await store(desk, job_id) == "to be tried again"
        untouched(desk, job_id, "not allowed")
    assert len(seen) == 2
    assert (files.connections, files.requests("/film.mp4")) == (1, [])


async def test_a_link_to_a_private_address_is_not_fetched(redis_url: str, files: Files) -> None:
    made = deployments.settings(redis_url, allow_private_networks=False)
    with desk_of(made) as desk:
        for url in (files.url, f"https://127.0.0.1:{files.port}", f"https://localhost:{files.port}"):
            job_id = desk.made(f"{url}/film.mp4")
            assert await store(desk, job_id) == "to be tried again"
            untouched(desk, job_id, "not allowed")
    assert files.connections == 0


TOO_LARGE: dict[str, Answer] = {
    "as it says": large(LIMIT + 1),
    "by far": large(64 * 2**20),
    "whatever it says": large(LIMIT + 1, announced=LIMIT + 1),
    "in endless chunks": endless(),
}


@pytest.mark.parametrize("answer", TOO_LARGE.values(), ids=TOO_LARGE)
@both_storages
async def test_what_is_larger_than_allowed_is_not_stored(
    desk: Desk, files: Files, lying_there: Lying, answer: Answer
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    assert await store(desk, job_id, max_output_bytes=LIMIT) == "to be tried again"
    untouched(desk, job_id, f"larger than {LIMIT} bytes")
    assert lying_there() == {}


async def test_what_is_just_as_large_as_allowed_is_stored(desk: Desk, files: Files) -> None:
    job_id = desk.made(files.serve("/film.mp4", large(LIMIT)))
    assert await store(desk, job_id, max_output_bytes=LIMIT) == "apply"


@pytest.mark.parametrize("answer", [hang, stall(FILM, 0), stall(LONG, 17 * 2**20)], ids=["head", "body", "late"])
@both_storages
async def test_a_download_that_stands_still_is_given_up(
    desk: Desk, files: Files, lying_there: Lying, answer: Answer
) -> None:
    job_id = desk.made(files.serve("/film.mp4", answer))
    async with asyncio.timeout(10), worker(desk, patience=0.3) as archivist:
        assert await archivist.store(job_id) == "to be tried again"
    untouched(desk, job_id, "")
    assert lying_there() == {}


#: The limit of which there is little here, what does not keep to it, and what is said of that.
SLOW: dict[str, tuple[str, Answer, str]] = {
    "never silent for long, and never done": ("MIN_RATE_AFTER", drip(FILM), "too slow"),
    "headers that never end": ("MAX_HEAD_SECONDS", drip_head(), ""),
    "too long in all": ("MAX_SECONDS", drip(FILM, size=1024), "too slow"),
}


@pytest.mark.parametrize(("limit", "answer", "words"), SLOW.values(), ids=SLOW)
async def test_a_download_that_drips_is_given_up(
    desk: Desk, files: Files, monkeypatch: pytest.MonkeyPatch, limit: str, answer: Answer, words: str
) -> None:
    monkeypatch.setattr(download, limit, 0.3)
    job_id = desk.made(files.serve("/film.mp4", answer))
    async with asyncio.timeout(4):
        assert await store(desk, job_id) == "to be tried again"
    untouched(desk, job_id, words)
