"""What every process of a deployment is made of: its settings, its Redis, its door. Opened once, closed once."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from service import logs
from service.jobs.scripts import Ask
from service.jobs.store import Store, connect
from service.jobs.tokens import Tokens, redact
from service.jobs.tracker import Tracker
from service.settings import Settings, SettingsError, load
from service.storage import Storage, StorageError
from service.vendors import VENDORS


class Deployment:
    """The parts, wired. Needs a running event loop only when they are used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis: Redis = connect(settings)
        self.store = Store(self.redis, settings)
        self.tracker = Tracker(self.redis, settings, rhythms(settings))
        self.tokens = Tokens(settings.secret_keys, settings.public_url)
        self.storage = Storage(settings.storage_url)

    async def close(self) -> None:
        """Close the connections, once the facts that are on their way have arrived."""
        await self.tracker.drain()
        await self.redis.aclose()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Deployment]:
    """A deployment for as long as the block lasts."""
    deployment = Deployment(settings)
    try:
        yield deployment
    finally:
        await deployment.close()


def rhythms(settings: Settings) -> dict[str, Ask]:
    """How often each vendor that can be asked is asked."""
    found = {}
    for slug, vendor in VENDORS.items():
        if not settings.accounts[slug].complete:
            continue
        rhythm = vendor.RHYTHM
        grace = rhythm.every if rhythm.grace is None else rhythm.grace
        if rhythm.grace is not None and settings.poll_grace is not None:
            grace = settings.poll_grace
        found[slug] = Ask(*(int(seconds * 1000) for seconds in (grace, rhythm.every, rhythm.slowest)))
    return found


def configured() -> Settings:
    """The settings of this process, with logging set up; or the end of it with a readable list of problems."""
    try:
        settings = load(VENDORS.values())
        Storage(settings.storage_url)
    except SettingsError as error:
        sys.exit(f"callsheet: {error}")
    except (*StorageError, ValueError) as error:
        sys.exit(f"callsheet: STORAGE_URL is not usable: {str(error).splitlines()[0]}")
    logs.configure(settings.log_format, redact)
    return settings
