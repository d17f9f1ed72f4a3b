"""Reads what a link leads to, for any task: redirects one by one, then the body in a stream, hashed as it passes.

A link is a stranger's word: what it leads to is judged before and while it is read. The guard on addresses is the
transport's (outbound.py); where the bytes go is the caller's.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal
from urllib.parse import urljoin

import httpx

from service.storage import NotStored
from workers import outbound

#: A download may take this long, and must on the whole be at least this fast once it has had time to begin.
MAX_SECONDS: Final = 3600.0
MIN_BYTES_PER_SECOND: Final = 1024
MIN_RATE_AFTER: Final = 60.0
MAX_REDIRECTS: Final = 5
#: How often a download is looked at of which nothing comes, in seconds.
LOOK_EVERY: Final = 5.0
#: From the request to the end of the answer's headers; a read timeout alone never ends a drip.
MAX_HEAD_SECONDS: Final = 60.0
#: How a page or a message begins, whatever its server calls it; no media file does.
_PAGES: Final = (b"<!doctype", b"<html", b"<?xml", b'{"')
_PAGE_HEAD: Final = 100  #: bytes in which it begins


class NotFetched(Exception):
    """An attempt that did not bring the file; another may."""


class DeadLink(NotFetched):
    """The link is gone: another link is needed, not another attempt."""


class Unwanted(NotFetched):
    """What the link leads to is not for us: more attempts would only fetch it again."""


class Interrupted(Exception):
    """This process is about to stop; another takes the task over."""


@asynccontextmanager
async def opened(http: httpx.AsyncClient, url: str) -> AsyncIterator[httpx.Response]:
    """The answer to a GET, redirects followed one by one so that each target is judged anew.

    Raises:
        NotFetched: It is not the answer that a file would have.
    """
    for _ in range(MAX_REDIRECTS + 1):
        try:
            async with asyncio.timeout(MAX_HEAD_SECONDS):
                response = await http.send(http.build_request("GET", url), stream=True)
        except outbound.TransportError as error:
            text = "the link's address is not allowed" if outbound.was_forbidden(error) else words(error)
            raise NotFetched(text) from error
        try:
            if response.has_redirect_location:
                url = _target(url, response.headers["location"])
                continue
            _check(response)
            yield response
            return
        finally:
            await response.aclose()
    raise NotFetched(f"more than {MAX_REDIRECTS} redirects")


class Download:
    """One stream on its way: counted, hashed, held to `limit` bytes, and broken off once `interrupted` is set."""

    def __init__(self, limit: int, interrupted: asyncio.Event) -> None:
        self._limit = limit
        self._interrupted = interrupted
        self.size = 0
        self.digest = hashlib.sha256()

    def check(self) -> None:
        """Say so where the process stops, to whoever is still busy with the bytes."""
        if self._interrupted.is_set():
            raise Interrupted

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body's pieces. Whatever is wrong is raised here, inside the upload, which aborts it.

        Raises:
            NotFetched: The body is not, or not wholly, what it should be.
            Interrupted: The process stops.
        """
        began, head = time.monotonic(), b""
        source = response.aiter_raw()  # as it arrives: pieces of a fixed size would hide how slowly that is
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            announced = response.headers.get("content-length", "")
            if announced.isdecimal() and int(announced[:20]) > self._limit:
                raise Unwanted(f"the file is larger than {self._limit} bytes: it has {announced[:20]}")
            while chunk := await self._next(source, interrupted, began):
                if len(head) < _PAGE_HEAD:  # however small the pieces are that it comes in
                    head += chunk[:_PAGE_HEAD]
                    if head.lstrip().lower().startswith(_PAGES):
                        raise NotFetched("the link answers with a page or a message, not with media")
                self.size += len(chunk)
                self._check_limits(time.monotonic() - began)
                self.digest.update(chunk)
                yield chunk
        except outbound.TransportError as error:
            raise NotFetched(f"the download broke off after {self.size} bytes: {words(error)}") from error
        finally:
            interrupted.cancel()
        if self.size == 0:
            raise NotFetched("the file is empty")

    async def _next(
        self, source: AsyncIterator[bytes], interrupted: asyncio.Task[Literal[True]], began: float
    ) -> bytes:
        """The next piece, empty at the end. A server that stalls does not keep the process from stopping, and one that
        sends without end what is no piece, as the extension of a chunk, is held to the same limits as any other.
        """
        piece = asyncio.ensure_future(anext(source, b""))
        try:
            while not piece.done() and not interrupted.done():
                await asyncio.wait((piece, interrupted), timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if not piece.done():
                    self._check_limits(time.monotonic() - began)
            if interrupted.done():
                raise Interrupted
            return await piece
        finally:
            if not piece.done():
                piece.cancel()
                await asyncio.wait((piece,))

    def _check_limits(self, seconds: float) -> None:
        if self.size > self._limit:
            raise Unwanted(f"the file is larger than {self._limit} bytes")
        if seconds > MAX_SECONDS or (seconds > MIN_RATE_AFTER and self.size < MIN_BYTES_PER_SECOND * seconds):
            raise NotFetched(f"too slow: {self.size} bytes in {seconds:.0f} s")


def words(error: BaseException) -> str:
    """An error in one short line."""
    if isinstance(error, NotFetched | NotStored):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")[:300]


def _target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise NotFetched(f"a redirect to nowhere: {error}") from error


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status in (401, 403, 404, 410):
        raise DeadLink(f"the link answers {status}")
    if status != 200:
        raise NotFetched(f"the link answers {status}")
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/html" or media_type.endswith(("json", "xml")):
        raise NotFetched(f"the link answers with {media_type}, not with media")
    if response.headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
        raise NotFetched("the file comes packed for the way, which was not asked for")
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise NotFetched("the file comes compressed, which was not asked for")
