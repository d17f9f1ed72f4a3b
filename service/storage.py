"""Object storage behind `STORAGE_URL`: where our copies of the outputs lie, and how they are handed out.

Credentials of S3, GCS and Azure are read by obstore from the names that each provider documents (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`…).
"""

from __future__ import annotations

import asyncio
import glob
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from ssl import SSLContext
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Final, Literal, cast
from uuid import uuid4

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from service.model import Output, OutputKind

if TYPE_CHECKING:
    from obstore.store import RetryConfig


class NotStored(OSError):
    """A bucket did not take an object, in words that can be shown to anybody."""

    def __init__(self, words: str, *, passing: bool = True) -> None:
        """`passing`: the same request may succeed in a moment."""
        super().__init__(words)
        self.passing = passing


#: What is raised when the storage does not do as asked: by obstore, by files, by an upload.
StorageError: Final = (BaseError, OSError)

#: Bytes of a file that are read, and handed to the connection, at once.
_PIECE_BYTES: Final = 2**19

#: For a hiccup only: a storage that is down is tried again by the task, later.
_RETRIES: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_PAUSES: Final = (0.5, 2.0)  #: before an upload's second try, and before its third
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_WORDS: Final = frozenset({"RequestTimeout", "OperationAborted"})  #: S3's, with other statuses
#: Seconds. A large object may take its time between its last byte and the answer.
_TIMEOUT: Final = httpx.Timeout(20, read=60)
#: Of an object that is handed out from here; memory for each reader.
_STREAM_BYTES: Final = 256 * 1024

_SIGNED_FOR: Final = timedelta(minutes=15)  #: to begin with it, not to end
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
#: S3's, Google's and Azure's word for what is wrong.
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")


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

    async def put(self, key: str, chunks: AsyncIterator[bytes], check: Callable[[], None] | None = None) -> str:
        """Store a stream, whole or not at all, and return its sniffed type.

        Whatever `chunks` raises comes through, and so does what `check` raises, which is asked while a bucket is being
        written and ends that.
        """
        path, head = self.path(key), b""
        # On disk first: however many are under way, and however slow, memory has a piece of each.
        with _spool(path) as spool:
            async for chunk in chunks:
                head += chunk[: _HEAD_BYTES - len(head)]
                spool.write(chunk)
            media_type = sniffed(head)
            if path is None:
                await self._upload(key, spool, media_type, check)
            else:
                _keep(spool, path)
        return media_type

    async def _upload(self, key: str, spool: IO[bytes], media_type: str, check: Callable[[], None] | None) -> None:
        """Put a file into the bucket in one request, by a URL that our credentials have signed.

        Never in parts: whoever dies in the middle of those leaves them behind, to be paid for and never seen. A request
        that breaks off leaves nothing.
        """
        named = f'attachment; filename="{file_name(key)}"'
        headers = {"Content-Type": media_type, "Content-Disposition": named, "Content-Length": str(spool.tell())}
        headers["Accept-Encoding"] = "identity"
        if isinstance(self._store, AzureStore):
            headers |= {"x-ms-blob-type": "BlockBlob", "x-ms-blob-content-disposition": named}
        async with httpx.AsyncClient(verify=_authorities(), timeout=_TIMEOUT) as http:
            pauses = iter(_PAUSES)
            while refusal := await self._refusal(http, key, _pieces(spool, check), headers):
                if not refusal.passing or not (pause := next(pauses, 0.0)):
                    raise refusal
                await asyncio.sleep(pause)

    async def _refusal(
        self, http: httpx.AsyncClient, key: str, pieces: AsyncIterator[bytes], headers: dict[str, str]
    ) -> NotStored | None:
        """What a bucket has against an object; None once it has it."""
        try:
            answer = await http.put(await self._signed("PUT", key), content=pieces, headers=headers)
        except httpx.HTTPError as error:
            return NotStored(f"the storage cannot be reached: {type(error).__name__}")
        if answer.is_success:
            return None
        found = _CODE.search(answer.text)  # not more than its word: the rest may quote the URL
        word = found[1] if found else ""
        words = f"the storage answers {answer.status_code} {word}".rstrip()
        return NotStored(words, passing=answer.status_code in _PASSING or word in _PASSING_WORDS)

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
        return await self._signed("GET", key)

    async def _signed(self, method: Literal["GET", "PUT"], key: str) -> str:
        bucket = cast("S3Store | GCSStore | AzureStore", self._store)  # `path` is for the other kind
        return await obstore.sign_async(bucket, method, key, expires_in=_SIGNED_FOR)


@contextmanager
def _spool(path: Path | None) -> Iterator[IO[bytes]]:
    """A file that is gone when the block ends: beside the one that it may become, or where the system has such."""
    if path is None:
        with TemporaryFile() as spool:
            yield spool
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.with_name(f"{path.name}#{uuid4().hex}").open("xb") as spool:
            yield spool
    finally:
        for left in path.parent.glob(f"{glob.escape(path.name)}#*"):  # those of killed processes too
            left.unlink(missing_ok=True)


def _keep(spool: IO[bytes], path: Path) -> None:
    spool.flush()
    Path(spool.name).replace(path)


async def _pieces(spool: IO[bytes], check: Callable[[], None] | None) -> AsyncIterator[bytes]:
    spool.seek(0)
    while piece := spool.read(_PIECE_BYTES):
        if check:
            check()
        yield piece


@cache
def _authorities() -> SSLContext:
    """Made once: to read them all costs more than most uploads."""
    return httpx.create_ssl_context()
