"""Puts an input that was given as a URL where a vendor takes only files of its own.

The file is fetched first, to a temporary file: storage behind signed URLs wants to know the length, and a link that
breaks off halfway is noticed before the vendor has half a file.
"""

from __future__ import annotations

import asyncio
import mimetypes
import tempfile
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import IO, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from service.vendors import VENDORS
from service.vendors.base import Refusal, Slot
from workers import download
from workers.download import Download, Interrupted, NotFetched, Unwanted
from workers.outbound import TransportError
from workers.vendor_client import Answer, VendorClient

#: Seconds that a vendor has to make an uploaded file ready, and between two looks at it.
READY_WITHIN: Final = 120.0
READY_EVERY: Final = 1.0
#: Seconds that the bytes may take on their way; the signed address lasts 15 minutes.
PUT_SECONDS: Final = 840.0
_CHUNK: Final = 2**18

T = TypeVar("T")


class NotReady(Exception):
    """What has to be there before a job can be sent is not there: an upload, a token, a face."""

    def __init__(self, code: str, message: str, *, passing: bool = False, retry_after: float = 0.0) -> None:
        """`code` is one of `Refusal`'s; `passing`: another try may succeed."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.passing = passing
        self.retry_after = retry_after


class Uploader:
    """Carries files from links to vendors."""

    def __init__(self, vendors: VendorClient, http: httpx.AsyncClient, limit: int, interrupted: asyncio.Event) -> None:
        """`limit` is in bytes."""
        self._vendors = vendors
        self._http = http
        self._limit = limit
        self._interrupted = interrupted

    async def upload(self, slug: str, field: str, url: str) -> str:
        """The vendor's id of the file, which is ready to be used.

        Raises:
            NotReady: Nothing usable came of it.
            Interrupted: The process stops, wherever it stands or stalls.
        """
        under_way = asyncio.create_task(self._upload(slug, field, url))
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait((under_way, interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not under_way.done():
                raise Interrupted
            return await under_way
        finally:
            under_way.cancel()
            interrupted.cancel()
            await asyncio.gather(under_way, interrupted, return_exceptions=True)

    async def _upload(self, slug: str, field: str, url: str) -> str:
        vendor = VENDORS[slug]
        with tempfile.TemporaryFile() as file:
            ending, size = await self._fetch(field, url, vendor.UPLOADS[field], file)
            slot = said(
                await self._vendors.ask(slug, vendor.upload_request(field, ending), vendor.read_upload, "upload")
            )
            await self._put(slot, file, size)
        try:
            async with asyncio.timeout(READY_WITHIN):
                request = vendor.file_request(slot.file_id)
                while not said(await self._vendors.ask(slug, request, vendor.read_file)):  # noqa: ASYNC110
                    await asyncio.sleep(READY_EVERY)
        except TimeoutError:
            words = f"input.{field}: the vendor has not made the file ready in {READY_WITHIN:.0f} s"
            raise NotReady("vendor_error", words, passing=True) from None
        return slot.file_id

    async def _fetch(self, field: str, url: str, endings: tuple[str, ...], file: IO[bytes]) -> tuple[str, int]:
        """The file's ending as the vendor knows it, and its size in bytes."""
        fetched = Download(self._limit, self._interrupted)
        try:
            async with download.opened(self._http, url) as response:
                ending = _ending(url, response.headers.get("content-type", ""), endings)
                if ending and ending not in endings:
                    words = f"input.{field}: the vendor takes {', '.join(endings)}, not {ending}"
                    raise NotReady("invalid_input", words)
                async for chunk in fetched.chunks(response):
                    file.write(chunk)
        except NotFetched as error:
            passing = not isinstance(error, Unwanted)
            raise NotReady("invalid_input", f"input.{field}: {error}", passing=passing) from error
        return ending or endings[0], fetched.size

    async def _put(self, slot: Slot, file: IO[bytes], size: int) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            file.seek(0)
            while chunk := file.read(_CHUNK):
                yield chunk

        headers = {**slot.headers, "Content-Length": str(size)}
        try:
            async with asyncio.timeout(PUT_SECONDS):
                answer = await self._http.put(slot.url, content=chunks(), headers=headers)
        except TransportError as error:
            raise NotReady("vendor_unreachable", f"the upload broke off: {download.words(error)}") from error
        if not answer.is_success:
            raise NotReady("vendor_error", f"the upload was answered with {answer.status_code}", passing=True)


def said(answer: Answer[T]) -> T:
    """What a vendor answered to a call before the submission. Raises `NotReady` where that is a no."""
    if isinstance(answer.reading, Refusal):
        no = answer.reading
        raise NotReady(no.code, no.message, passing=no.retryable, retry_after=answer.retry_after)
    return answer.reading


def _ending(url: str, content_type: str, endings: tuple[str, ...]) -> str:
    """By the name in the URL, else by what its server says; empty where neither tells."""
    named = PurePosixPath(urlsplit(url).path).suffix.lower()
    if named in endings or (mimetypes.guess_type(f"x{named}")[0] or "").startswith(("video/", "audio/")):
        return named
    told = content_type.partition(";")[0].strip().lower()
    return _ENDINGS.get(told) or (
        mimetypes.guess_extension(told) or "" if told.startswith(("video/", "audio/")) else ""
    )


#: Where `mimetypes` says something else, or nothing.
_ENDINGS: Final = {
    "audio/mpeg": ".mp3",
    "audio/mp3": ".mp3",
    "audio/mp4": ".m4a",
    "audio/x-m4a": ".m4a",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/wave": ".wav",
    "video/quicktime": ".mov",
}
