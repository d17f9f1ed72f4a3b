"""Object storage behind `STORAGE_URL`: where our copies of the outputs lie, and how they are handed out.

Credentials of S3, GCS and Azure are read by obstore from the names that each provider documents (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`…).
"""

from __future__ import annotations

import glob
import mimetypes
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

_SIGNED_FOR: Final = timedelta(minutes=15)
_ENDINGS: Final = {
    OutputKind.VIDEO: (".mp4", ".webm", ".mov", ".mkv"),
    OutputKind.IMAGE: (".png", ".jpg", ".jpeg", ".webp", ".gif"),
    OutputKind.AUDIO: (".mp3", ".wav", ".m4a", ".ogg", ".flac"),
}


def object_key(vendor: str, job_id: str, number: int, output: Output) -> str:
    """Where an output is kept, made from the job alone, so that storing it twice stores it once."""
    ending = Path(output.url.partition("#")[0].partition("?")[0]).suffix.lower()
    usual = _ENDINGS[output.kind]
    return f"{vendor}/{job_id}/{number}{ending if ending in usual else usual[0]}"


def content_type(key: str) -> str:
    """The type that a stored file is served as: from our own key, never from what the vendor's server claimed."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


class Storage:
    """One place for objects: a folder, or a bucket with a prefix."""

    def __init__(self, url: str) -> None:
        local = url.startswith("file://")
        self._store: ObjectStore = from_url(url, mkdir=True) if local else from_url(url, retry_config=_RETRIES)

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream, whole or not at all. Whatever `chunks` raises aborts the upload and comes through.

        An upload is not aborted by cancelling the caller: raise from `chunks` instead.
        """
        attributes = None
        if not isinstance(self._store, LocalStore):
            attributes = {
                "Content-Type": content_type(key),
                "Content-Disposition": f'attachment; filename="{Path(key).name}"',
            }
        await obstore.put_async(
            self._store, key, chunks, attributes=attributes, chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE
        )
        if path := self.path(key):  # parts that a killed process left beside its file
            for part in path.parent.glob(f"{glob.escape(path.name)}#*"):
                part.unlink(missing_ok=True)

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
        return Path(self._store.prefix) / key

    async def signed_url(self, key: str) -> str:
        """A URL from which anybody can fetch the object for a quarter of an hour."""
        bucket = cast("S3Store | GCSStore | AzureStore", self._store)  # `path` is for the other kind
        return await obstore.sign_async(bucket, "GET", key, expires_in=_SIGNED_FOR)
