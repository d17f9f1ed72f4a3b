"""What a file is by its first bytes, and that every storage keeps and hands it out as that."""

from __future__ import annotations

import asyncio
import io
import os
import re
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from sandbox.media import files as sandbox_files
from service.storage import UNKNOWN_TYPE, NotStored, Storage, served_type, sniffed
from tests.support.files import MOV, MP4, PNG, WEBM
from tests.support.servers import S3

EBML: Final = WEBM[:-5]


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(100))
    return file.getvalue()


def ftyp(brand: str) -> bytes:
    return b"\0\0\0\x18ftyp%b\0\0\2\0isommp42" % brand.encode()


def ogg(packet: bytes) -> bytes:
    return b"OggS\0\2" + bytes(8) + b"\1\2\3\4" + bytes(4) + b"\5\6\7\x0a" + b"\1\x1e" + packet


MEDIA: Final = {
    "a real film": (sandbox_files.result("film"), "video/mp4"),
    "mp4": (MP4, "video/mp4"),
    "mp42": (ftyp("mp42"), "video/mp4"),
    "avc1": (ftyp("avc1"), "video/mp4"),
    "iso6": (ftyp("iso6"), "video/mp4"),
    "M4V": (ftyp("M4V "), "video/mp4"),
    "3GP": (ftyp("3gp5"), "video/mp4"),
    "DASH": (ftyp("dash"), "video/mp4"),
    "QuickTime": (MOV, "video/quicktime"),
    "M4A": (ftyp("M4A "), "audio/mp4"),
    "M4B": (ftyp("M4B "), "audio/mp4"),
    "WebM": (WEBM, "video/webm"),
    "WebM of few words": (b"\x1aE\xdf\xa3\x87B\x82\x84webm", "video/webm"),
    "Matroska": (EBML + b"\x88matroska", "video/matroska"),
    "AVI": (b"RIFF\x24\0\0\0AVI LIST", "video/x-msvideo"),
    "a real PNG": (sandbox_files.INPUTS["face.png"], "image/png"),
    "PNG": (PNG, "image/png"),
    "a real JPEG": (sandbox_files.PREVIEW, "image/jpeg"),
    "JPEG with Exif": (b"\xff\xd8\xff\xe1\0\x10Exif", "image/jpeg"),
    "GIF87": (b"GIF87a\1\0\1\0", "image/gif"),
    "GIF89": (b"GIF89a\1\0\1\0", "image/gif"),
    "a GIF with a script in it": (b"GIF89a/*\0*/=alert(1)//<script>alert(1)</script>", "image/gif"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8X", "image/webp"),
    "a real MP3": (sandbox_files.INPUTS["voice.mp3"], "audio/mpeg"),
    "MP3 with a tag": (b"ID3\3\0\0\0\0\x0f\x76", "audio/mpeg"),
    "MP3": (b"\xff\xfb\x90\x64", "audio/mpeg"),
    "MP3 with a checksum": (b"\xff\xfa\x90\x64", "audio/mpeg"),
    "MP3 of MPEG 2": (b"\xff\xf3\x48\xc4", "audio/mpeg"),
    "MP3 of MPEG 2.5": (b"\xff\xe3\x18\xc4", "audio/mpeg"),
    "a real WAV": (wav(), "audio/wav"),
    "a large WAV": (b"RF64\xff\xff\xff\xffWAVEds64", "audio/wav"),
    "AAC": (b"\xff\xf1\x50\x80\x02\x1f\xfc", "audio/aac"),
    "AAC of MPEG 2 with a checksum": (b"\xff\xf8\x50\x80", "audio/aac"),
    "FLAC": (b"fLaC\0\0\0\x22", "audio/flac"),
    "Vorbis": (ogg(b"\1vorbis"), "audio/ogg"),
    "Opus": (ogg(b"OpusHead"), "audio/ogg"),
    "Theora": (ogg(b"\x80theora"), "video/ogg"),
}

OTHERS: Final = {
    "nothing": b"",
    "zeros": bytes(64),
    "HTML": b"<!DOCTYPE html><script>alert(1)</script>",
    "HTML behind a mark of its order": "\ufeff<html><script>alert(1)</script>".encode(),
    "HTML in UTF-16": "\ufeff<html><script>alert(1)</script>".encode("utf-16-le"),
    "HTML in UTF-16, the other way": "\ufeff<html><script>alert(1)</script>".encode("utf-16-be"),
    "HTML that plays a film": b"<!--ftypisom--><script>alert(1)</script>",
    "HTML behind a film's first words": b"aaaaftypmp42<script>alert(1)</script>",
    "HTML behind a QuickTime film's": b"<!--ftypqt  --><script>alert(1)</script>",
    "HTML behind a voice's": b"<!--ftypM4A --><script>alert(1)</script>",
    "HTML behind a picture's": b"RIFF<!--WEBP--><script>alert(1)</script>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "XML": b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'/>",
    "JavaScript": b"alert(1)//",
    "JavaScript that plays a picture": b"GIF80a=alert(1)",
    "a sentence about tags": b"ID3 tags <script>alert(1)</script>",
    "PDF": b"%PDF-1.7",
    "ZIP": b"PK\3\4",
    "HEIC": ftyp("heic"),
    "JPEG 2000": ftyp("jp2 "),
    "a RIFF of no medium": b"RIFF\x24\0\0\0ACON",
    "EBML of no medium": EBML + b"\x84html",
    "WebM too late": EBML + b"\x81x" + bytes(64) + b"B\x82\x84webm",
    "a PNG that does not begin there": b" " + PNG,
    "a film that does not begin there": b"\n" + MP4,
    "MPEG audio of no layer III": b"\xff\xfd\x90\x64",
    "a frame that nobody can play": b"\xff\xfb\xf0\x64",
}


@pytest.mark.parametrize(("head", "media_type"), MEDIA.values(), ids=MEDIA)
def test_a_medium_is_known_by_its_first_bytes_and_may_be_served_as_what_it_is(head: bytes, media_type: str) -> None:
    assert sniffed(head) == media_type
    assert sniffed(head[:64]) == media_type
    assert served_type(media_type) == media_type


@pytest.mark.parametrize("head", OTHERS.values(), ids=OTHERS)
def test_what_is_no_medium_has_no_type_of_its_own(head: bytes) -> None:
    assert sniffed(head) == UNKNOWN_TYPE == "application/octet-stream"


@pytest.mark.parametrize(
    "media_type", ["text/html", "image/svg+xml", "application/pdf", "VIDEO/MP4", "video/mp4;x", ""]
)
def test_a_type_that_no_medium_has_is_not_served(media_type: str) -> None:
    assert served_type(media_type) == UNKNOWN_TYPE


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "file":
        return Storage((tmp_path / "objects").as_uri())
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return Storage(s3.storage_url(tmp_path.name))


BODIES: Final = {
    "a film": (MP4 + os.urandom(1000), "video/mp4"),
    "less than is looked at": (PNG, "image/png"),
    "as much as is looked at": (WEBM.ljust(64, b"\0"), "video/webm"),
    "one byte": (b"\xff", UNKNOWN_TYPE),
    "nothing": (b"", UNKNOWN_TYPE),
    "a script": (b"<script>alert(1)</script>" * 10, UNKNOWN_TYPE),
}


@pytest.mark.parametrize("size", [1, 3, 63, 64, 65, 2**20])
@pytest.mark.parametrize(("body", "media_type"), BODIES.values(), ids=BODIES)
async def test_a_file_is_stored_whole_and_as_what_it_is_in_whatever_pieces_it_comes(
    storage: Storage, body: bytes, media_type: str, size: int
) -> None:
    assert await storage.put("kitta/job_1/0.mp4", in_pieces(body, size)) == media_type
    if path := storage.path("kitta/job_1/0.mp4"):
        assert path.read_bytes() == body
    else:
        handed_out(await storage.signed_url("kitta/job_1/0.mp4"), body, media_type)


def handed_out(url: str, body: bytes, media_type: str) -> None:
    answer = httpx.get(url)
    assert answer.content == body
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-disposition"] == 'attachment; filename="job_1-0.mp4"'


async def test_what_breaks_before_it_shows_what_it_is_is_not_stored(storage: Storage) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield MP4[:10]
        raise EOFError("here")

    with pytest.raises(EOFError, match="here"):
        await storage.put("kitta/job_1/0.mp4", broken())
    assert await storage.size("kitta/job_1/0.mp4") is None


@asynccontextmanager
async def bucket_that_answers(*answers: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The endpoint of a bucket with these answers to uploads, the last for good, and the bodies that it was sent."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        bodies.append(await reader.readexactly(int(length[1]) if length else 0))
        status = answers[min(len(bodies), len(answers)) - 1]
        text = f"<Error><Code>Told</Code><Message>{head.decode()}</Message></Error>"
        writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n{text}".encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", bodies


@pytest.mark.parametrize(
    ("answers", "told", "tries"),
    [
        (("503", "200"), None, 2),
        (("429", "500", "200"), None, 3),
        (("503",), "the storage answers 503 Told", 3),
        (("403",), "the storage answers 403 Told", 1),
        (("307", "200"), "the storage answers 307 Told", 1),
    ],
    ids=str,
)
async def test_a_bucket_is_asked_again_with_the_whole_file_where_that_may_help(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...], told: str | None, tries: int
) -> None:
    body = MP4 + os.urandom(2**21)
    async with bucket_that_answers(*answers) as (endpoint, bodies):
        for name, value in S3_VARIABLES.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        upload = Storage("s3://bucket").put("kitta/job_1/0.mp4", in_pieces(body, 2**16))
        if told is None:
            await upload
        else:
            with pytest.raises(NotStored) as refused:  # in words that do not quote the signed URL
                await upload
            assert str(refused.value) == told
    assert bodies == [body] * tries


S3_VARIABLES: Final = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
