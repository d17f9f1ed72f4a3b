"""The lease that lets one run of a task in, and the signs of life that keep it.

A run that dies needs nobody to clean up: its lease ends by itself, and the sweep sends another in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from redis import RedisError

from service.jobs import tasks
from service.jobs.store import Store
from workers.stopping import stopped

#: Shorter than the sweep's patience: whoever the sweep sends in place of a killed run must find the lease free.
LEASE_MS: Final = 45_000


@asynccontextmanager
async def held(store: Store, task: str, job_id: str) -> AsyncIterator[Lease | None]:
    """One task of one job, for nobody else while the block lasts; None where another run holds it.

    By itself it lasts for `LEASE_MS`: whatever may take longer belongs in a block of `Lease.alive`.
    """
    lease = Lease(store, f"{task}-{job_id}", uuid4().hex)
    if not await store.lease(lease.name, lease.owner, LEASE_MS):
        yield None
        return
    try:
        yield lease
    finally:
        await store.give_up(lease.name, lease.owner)


@dataclass(frozen=True)
class Lease:
    """A run's hold on its task."""

    store: Store
    name: str  #: of the lease, and of the task in RQ and in what is due
    owner: str

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Say that the run is alive while the block lasts, and nothing after it: the outcome sets the next due time.

        So the outcome is to be recorded behind this block, and still under the lease.
        """

        async def beat() -> None:
            await self.store.alive(self.name, tasks.PATIENCE)
            await self.store.renew(self.name, self.owner, LEASE_MS)

        async with beating(beat, LEASE_MS / 3000, first=0):
            yield


@asynccontextmanager
async def beating(beat: Callable[[], Awaitable[None]], every: float, first: float | None = None) -> AsyncIterator[None]:
    """Make a sign of life every so many seconds while the block lasts, the first after `first`, and none after it."""
    over = asyncio.Event()

    async def beats() -> None:
        pause = every if first is None else first
        while not await stopped(over, pause):
            pause = every
            with suppress(RedisError, OSError):  # the next beat may reach it
                await beat()

    heart = asyncio.create_task(beats())
    try:
        yield
    finally:
        over.set()  # not cancelled: a beat on its way arrives before the block ends, not after
        await heart
