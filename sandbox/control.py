"""The observer's side, under `/_sandbox/`: ordering faults, and reading what happened.

Nothing is masked here: a test that watches a service has to see what the vendor saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.faults import WORDS, Faults, UnknownFault, parse
from sandbox.jobs import Attempt, Job, Phase
from sandbox.media import files
from sandbox.vendor import Vendor
from sandbox.world import World


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /_sandbox/faults`."""

    faults: Annotated[list[str], msgspec.Meta(min_length=1)]
    vendor: str | None = None
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None


_ORDER: Final = msgspec.json.Decoder(Order)


def routes(world: World, vendors: Sequence[Vendor]) -> Sequence[Route]:
    return [
        Route("/healthz", _healthz),
        Route("/_sandbox/jobs", partial(_jobs, world, vendors)),
        Route("/_sandbox/calls", partial(_calls, world)),
        Route("/_sandbox/reset", partial(_reset, world), methods=["POST"]),
        Route("/_sandbox/faults", partial(_faults, world)),
        Route("/_sandbox/faults", partial(_order, world, vendors), methods=["POST"]),
        Route("/_sandbox/faults", partial(_clear, world), methods=["DELETE"]),
    ]


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _jobs(world: World, vendors: Sequence[Vendor], request: Request) -> Response:
    """Every job, newest first within each vendor."""
    slug, url = request.query_params.get("vendor"), request.query_params.get("callback_url")
    found = [
        _job(job)
        for vendor in vendors
        if slug in (None, vendor.slug)
        for job in world.jobs.newest_first(vendor.slug)
        if url in (None, job.callback_url)
    ]
    return JSONResponse({"data": found})


async def _calls(world: World, _: Request) -> Response:
    return JSONResponse({"data": world.calls()})


async def _reset(world: World, _: Request) -> Response:
    world.reset()
    return JSONResponse({"reset": True})


async def _faults(world: World, _: Request) -> Response:
    return _standing(world)


async def _order(world: World, vendors: Sequence[Vendor], request: Request) -> Response:
    slugs = [vendor.slug for vendor in vendors]
    try:
        order = _ORDER.decode(await request.body())
        faults = parse(order.faults)
    except (msgspec.DecodeError, UnicodeError, RecursionError, UnknownFault) as problem:
        return JSONResponse({"error": str(problem), "allowed": sorted(WORDS)}, 400)
    if order.vendor is not None and order.vendor not in slugs:
        return JSONResponse({"error": f"unknown vendor {order.vendor!r}", "allowed": slugs}, 400)
    world.board.place(order.vendor, faults, order.count)
    return _standing(world)


async def _clear(world: World, _: Request) -> Response:
    world.board.clear()
    return _standing(world)


def _standing(world: World) -> Response:
    """What stands ordered."""
    orders = [
        {"vendor": order.vendor, "faults": _words(order.faults), "count": order.left} for order in world.board.orders()
    ]
    return JSONResponse({"data": orders})


def _job(job: Job) -> dict[str, object]:
    phase = job.phase()
    over = phase not in (Phase.QUEUED, Phase.PROCESSING)
    return {
        "vendor": job.vendor,
        "id": job.id,
        "status": phase,
        "model": job.model,
        "submitted_at": job.submitted_at,
        "finished_at": job.finished_at if over else None,
        "callback_url": job.callback_url,
        "callbacks": [_attempt(attempt) for attempt in job.callbacks],
        "status_calls": job.status_calls,
        "list_calls": job.list_calls,
        "outputs": [_output(job)] if job.output is not None and phase is Phase.SUCCEEDED else [],
        "faults": _words(job.faults),
        "request": job.request,
    }


def _output(job: Job) -> dict[str, object] | None:
    if job.output is None:
        return None
    return {
        "url": job.base + job.output.link(),
        "sha256": files.sha256(job.name),
        "bytes": files.size(job.name),
        "attempts": job.output.attempts,
        "downloads": job.output.downloads,
    }


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "at": attempt.at,
        "kind": attempt.kind,
        "http_status": attempt.http_status,
        "error": attempt.error,
    }


def _words(faults: Faults) -> list[str]:
    return [word if number is None else f"{word}:{number:g}" for word, number in faults.items()]
