"""Object storage behind `STORAGE_URL`: where our copies of the outputs lie, and how they are handed out.

Credentials of S3, GCS and Azure are read by obstore from the names that each provider documents (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`…).
"""

from __future__ import annotations

import glob
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from service.model import Output, OutputKind

if TYPE_CHECKING:
    from obstore.store import RetryConfig

#: What obstore raises when the storage does not do as asked.
StorageError: Final = (BaseError, OSError)

#: Parts of a multipart upload: with two under way, a file of any size passes through some 16 MB of memory.
PART_BYTES: Final = 8 * 2**20
_PARTS_AT_ONCE: Final = 1

#: For a hiccup only: a storage that is down is tried again by the task, later.
_RETRIES: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
#: Of an object that is handed out from here; memory for each reader.
_STREAM_BYTES: Final = 256 * 1024

_SIGNED_FOR: Final = timedelta(minutes=15)
_ENDINGS: Final = {
    OutputKind.VIDEO: (".mp4", ".webm", ".mov", ".mkv"),
    OutputKind.IMAGE: (".png", ".jpg", ".jpeg", ".webp", ".gif"),
    OutputKind.AUDIO: (".mp3", ".wav", ".m4a", ".ogg", ".flac"),
}

#: The type of what begins like no medium that we know: browsers keep it and run nothing of it.
UNKNOWN_TYPE: Final = "application/octet-stream"
#: How the files begin that are served by a type of their own. Where two fit, the first counts.
_MAGIC: Final = {
    "video/mp4": rb"\0\0..ftyp(?:iso.|mp4.|avc1|M4V.|F4V |3g..|dash|cmf.|MSNV|XAVC)",
    "video/quicktime": rb"\0\0..ftypqt  ",
    "audio/mp4": rb"\0\0..ftyp(?:M4[AB]|F4[AB]) ",
    "video/webm": rb"\x1aE\xdf\xa3.{0,40}?B\x82.webm",
    "video/matroska": rb"\x1aE\xdf\xa3.{0,40}?B\x82.matroska",
    "video/x-msvideo": rb"RIFF....AVI ",
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBPVP8",
    "audio/wav": rb"(?:RIFF|RF64)....WAVE",
    "audio/mpeg": rb"ID3[\2-\4]|\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]",  # a tag, or a frame of layer III
    "audio/aac": rb"\xff[\xf0\xf1\xf8\xf9]",  # a frame of ADTS
    "audio/flac": rb"fLaC",
    "video/ogg": rb"OggS\0.{23}\x80theora",
    "audio/ogg": rb"OggS\0",
}
_BEGINNINGS: Final = {media_type: re.compile(begins, re.DOTALL) for media_type, begins in _MAGIC.items()}
_HEAD_BYTES: Final = 64  #: in which each of them ends


def object_key(vendor: str, job_id: str, number: int, output: Output) -> str:
    """Where an output is kept, made from the job alone, so that storing it twice stores it once."""
    ending = Path(output.url.partition("#")[0].partition("?")[0]).suffix.lower()
    usual = _ENDINGS[output.kind]
    return f"{vendor}/{job_id}/{number}{ending if ending in usual else usual[0]}"


def file_name(key: str) -> str:
    """What a stored file is called where somebody saves it: the job's id and the output's number."""
    return "-".join(key.split("/")[-2:])


def sniffed(head: bytes | bytearray) -> str:
    """What a file is by its first bytes alone, whatever its name is and its server claims."""
    return next((name for name, begins in _BEGINNINGS.items() if begins.match(head)), UNKNOWN_TYPE)


def served_type(content_type: str) -> str:
    """A recorded type where it is one that a stored file may be served as."""
    return content_type if content_type in _MAGIC else UNKNOWN_TYPE


class Storage:
    """One place for objects: a folder, or a bucket with a prefix."""

    def __init__(self, url: str) -> None:
        local = url.startswith("file://")
        self._store: ObjectStore = from_url(url, mkdir=True) if local else from_url(url, retry_config=_RETRIES)

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> str:
        """Store a stream, whole or not at all, and return its sniffed type.

        Whatever `chunks` raises aborts the upload and comes through.
        An upload is not aborted by cancelling the caller: raise from `chunks` instead.
        """
        head = bytearray()
        while len(head) < PART_BYTES and (chunk := await anext(chunks, b"")):
            head += chunk
        media_type = sniffed(head[:_HEAD_BYTES])
        attributes = None
        if not isinstance(self._store, LocalStore):  # which refuses any; the API serves its files with the same
            attributes = {
                "Content-Type": media_type,
                "Content-Disposition": f'attachment; filename="{file_name(key)}"',
            }
        await obstore.put_async(
            self._store,
            key,
            # What fits into one part goes in one request: an upload in parts that breaks off may leave them behind.
            bytes(head) if len(head) < PART_BYTES else _joined(bytes(head), chunks),
            attributes=attributes,
            chunk_size=PART_BYTES,
            max_concurrency=_PARTS_AT_ONCE,
        )
        if path := self.path(key):  # parts that a killed process left beside its file
            for part in path.parent.glob(f"{glob.escape(path.name)}#*"):
                part.unlink(missing_ok=True)
        return media_type

    async def size(self, key: str) -> int | None:
        """Bytes of an object, or None where there is none."""
        try:
            return (await obstore.head_async(self._store, key))["size"]
        except FileNotFoundError:
            return None

    async def delete(self, key: str) -> None:
        await obstore.delete_async(self._store, key)

    def path(self, key: str) -> Path | None:
        """The file behind a key where objects are files of this machine."""
        if not isinstance(self._store, LocalStore) or self._store.prefix is None:
            return None
        # A key is read from Redis: whoever can write there must not be handed any file of this machine.
        return Path(self._store.prefix).joinpath(*(part for part in key.split("/") if part not in ("", ".", "..")))

    async def stream(self, key: str, part: tuple[int, int] | None) -> AsyncIterator[bytes]:
        """The bytes of an object; of a part, from its first until before its last."""
        found = await obstore.get_async(self._store, key, options={"range": part} if part else None)
        return (bytes(chunk) async for chunk in found.stream(min_chunk_size=_STREAM_BYTES))

    async def signed_url(self, key: str) -> str:
        """A URL from which anybody can fetch the object for a quarter of an hour."""
        bucket = cast("S3Store | GCSStore | AzureStore", self._store)  # `path` is for the other kind
        return await obstore.sign_async(bucket, "GET", key, expires_in=_SIGNED_FOR)


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk
