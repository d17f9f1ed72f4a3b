"""A stored output for a player on a page: bytes from our own address, with ranges, whatever storage they lie in.

The API's answer for a bucket is a redirect, and a page of ours loads nothing from outside. Like the API's, these
answers are attachments of a sniffed type: they play in a page, and never are one.
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.api.problems import ApiError
from service.model import Stored
from service.storage import Storage, StorageError, file_name, served_type

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


async def streamed(request: Request, storage: Storage, stored: Stored) -> Response:
    """The object, or the range of it that the request asks for."""
    size, status = stored.bytes, 200
    start, end = 0, size
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": f'attachment; filename="{file_name(stored.key)}"',
        "content-security-policy": "sandbox; default-src 'none'",
    }
    if asked := _RANGE.fullmatch(request.headers.get("range", "")):
        start, end = _bounds(asked[1], asked[2], size)
        if start >= end:
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        status, headers["content-range"] = 206, f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    media_type = served_type(stored.content_type)
    if request.method == "HEAD" or start == end:
        return Response(status_code=status, headers=headers, media_type=media_type)
    try:  # not every bucket calls it a part when it is all
        body = await storage.stream(stored.key, None if (start, end) == (0, size) else (start, end))
    except FileNotFoundError:
        raise ApiError(404, "the stored file is gone from storage") from None
    except StorageError:
        raise ApiError(503, "the object storage does not answer; try again") from None
    return StreamingResponse(body, status, headers, media_type)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if first:
        return int(first), min(size, int(last) + 1 if last else size)
    return max(0, size - int(last or 0)), size
