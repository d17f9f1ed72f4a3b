"""Serving media: results by signed links, inputs by name, with ranges and the faults of downloads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sandbox.answers import Transfer
from sandbox.faults import UnknownFault, asked_in
from sandbox.jobs import Job, Output, Phase
from sandbox.media import files
from sandbox.world import World

#: `download_slow` without a number: seconds for the whole file, before `speed`.
_SLOW: Final = 5.0

_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


def routes(world: World) -> Sequence[Route]:
    return [
        Route("/media/input/{name}", partial(_input, world)),
        Route("/media/{vendor}/{id}/0.{suffix}", partial(_result, world)),
    ]


async def _input(world: World, request: Request) -> Response:
    name, query = request.path_params["name"], request.url.query
    if name not in files.INPUTS:
        return PlainTextResponse("no such input", 404)
    try:
        words = asked_in(f"?{query}")
    except UnknownFault as unknown:
        return PlainTextResponse(str(unknown), 400)
    content = files.marked(name, query) if words else files.INPUTS[name]
    return _ranged(world, request, content, name)


async def _result(world: World, request: Request) -> Response:
    vendor, id, suffix = (request.path_params[key] for key in ("vendor", "id", "suffix"))
    job = world.jobs.get(vendor, id)
    if job is None or job.output is None or job.phase() is not Phase.SUCCEEDED or suffix not in ("mp4", "jpg"):
        return PlainTextResponse("no such file", 404)
    signature = request.query_params.get("sig", "")
    if not job.output.knows(signature):
        return PlainTextResponse("wrong signature", 403)
    if job.output.dead(signature):
        return PlainTextResponse("link expired", 410)
    if suffix == "jpg":
        return _ranged(world, request, files.PREVIEW, "preview.jpg")
    if request.method == "HEAD":
        return _ranged(world, request, files.result(job.name), "result.mp4")
    return _download(world, request, job, job.output)


def _download(world: World, request: Request, job: Job, output: Output) -> Response:
    output.attempts += 1
    content, first = files.result(job.name), output.attempts == 1
    if first and "download_500" in job.faults:
        return PlainTextResponse("Internal Server Error", 500)
    over = 0.0
    if "download_slow" in job.faults:
        asked = job.faults["download_slow"]
        over = _SLOW / world.speed if asked is None else asked
    return _ranged(
        world,
        request,
        content,
        "result.mp4",
        over=over,
        broken=first and "download_broken" in job.faults,
        output=output,
    )


def _ranged(
    world: World,
    request: Request,
    content: bytes,
    name: str,
    *,
    over: float = 0.0,
    broken: bool = False,
    output: Output | None = None,
) -> Response:
    """`content`, or the one range of it that was asked for."""
    headers = {"Accept-Ranges": "bytes"}
    span, status = _span(request.headers.get("range"), len(content)), 200
    if span is None:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(content)}"})
    if len(span) < len(content):
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(content)}"
    part = content[span.start : span.stop]
    media_type = files.TYPES[name.rpartition(".")[2]]
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers | {"Content-Length": str(len(part))}, media_type=media_type)

    def done() -> None:
        if output is not None and span.stop == len(content):
            output.downloads += 1

    return Transfer(
        part,
        world.stopping,
        status_code=status,
        headers=headers,
        media_type=media_type,
        over=over,
        cut_at=len(part) // 2 if broken else None,
        done=done,
    )


def _span(asked: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for: all of them where it is absent or odd, None where there are none such."""
    match = _RANGE.fullmatch(asked or "")
    if match is None or not any(match.groups()):
        return range(size)
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size) if int(last) else None
    stop = min(size, int(last) + 1) if last else size
    return range(int(first), stop) if int(first) < stop else None
