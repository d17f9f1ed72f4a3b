"""A process that does one kind of work and says what CPU it took: `python -m tests.bench.asker our-polls kitta`.

The other side of the comparison, as one would write it with the library alone; and our poller, held to one vendor.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import click
import httpx
import obstore
import uvloop
from obstore.store import from_url

from service.deployment import configured, opened
from workers import outbound
from workers.poller import Poller
from workers.vendor_client import VendorClient

_IN_FLIGHT: Final = 16


async def _measured(work: Awaitable[object]) -> float:
    began = time.process_time()
    await work
    return time.process_time() - began


async def httpx_polls(url: str, count: int) -> float:
    """Plain httpx, so many requests in flight."""
    turns = asyncio.Semaphore(_IN_FLIGHT)
    async with httpx.AsyncClient(trust_env=False) as http:

        async def ask(number: int) -> None:
            async with turns:
                (await http.get(f"{url}/job-{number}", headers={"Authorization": "Bearer secret"})).json()

        async def everything() -> None:
            await asyncio.gather(*(ask(number) for number in range(count)))

        await ask(0)
        return await _measured(everything())


async def our_polls(vendor: str) -> float:
    """The poller's own turns, until nothing is due: claim, limit, call, reading, commit and log line."""
    settings = configured()
    async with opened(settings) as deployment, outbound.client(allow_private_networks=True) as http:
        poller = Poller(deployment, VendorClient(deployment, http))
        await deployment.redis.ping()

        async def everything() -> None:
            while await poller.look_after(vendor):
                pass

        return await _measured(everything())


async def httpx_file(url: str, storage: str) -> float:
    """httpx into obstore, hashed on the way, in the pieces that httpx gives."""
    digest = hashlib.sha256()
    store = from_url(storage)

    async def everything() -> None:
        async with httpx.AsyncClient(trust_env=False) as http, http.stream("GET", url) as response:

            async def pieces() -> AsyncIterator[bytes]:
                async for piece in response.aiter_bytes():
                    digest.update(piece)
                    yield piece

            await obstore.put_async(store, "by-httpx.mp4", pieces())

    return await _measured(everything())


_WORK: Final[dict[str, Callable[[str, str], Awaitable[float]]]] = {
    "httpx-polls": lambda url, count: httpx_polls(url, int(count)),
    "our-polls": lambda vendor, _: our_polls(vendor),
    "httpx-file": httpx_file,
}


@click.command()
@click.argument("work", type=click.Choice(list(_WORK)))
@click.argument("first")
@click.argument("second", default="")
def main(work: str, first: str, second: str) -> None:
    async def run() -> float:
        return await _WORK[work](first, second)

    loop = uvloop if work == "our-polls" else asyncio  # as the poller has it; the others as their pages do
    print("seconds of CPU:", loop.run(run()), flush=True)
    os._exit(0)  # obstore's threads at times abort an interpreter that ends in the usual way


if __name__ == "__main__":
    main()
