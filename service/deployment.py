"""What every process of a deployment is made of: its settings, its Redis, its door. Opened once, closed once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from redis.asyncio import Redis

from service import logs, metrics, reports, tracing
from service.jobs.calls import Calls
from service.jobs.connection import connect
from service.jobs.scripts import Ask
from service.jobs.store import Store
from service.jobs.sums import Sums
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
        self.calls = Calls(self.store, settings)
        self.sums = Sums(self.redis, self.store, settings)
        self.tracker = Tracker(self.redis, settings, rhythms(settings))
        self.tokens = Tokens(settings.secret_keys, settings.public_url)
        self.storage = Storage(settings.storage_url)

    @asynccontextmanager
    async def opened(self, part: str) -> AsyncIterator[Self]:
        """Count for as long as the block lasts; then close the connections, once what is on its way has arrived."""
        if self.settings.tracing and not tracing.begin(part):
            logs.get("tracing").warning(
                "there is no tracing: OTEL_EXPORTER_OTLP_ENDPOINT wants callsheet[otel] installed"
            )
        stop = asyncio.Event()
        counting = asyncio.create_task(metrics.Counts(part, self.sums.add).run(stop))
        try:
            yield self
        finally:
            await self.tracker.drain()
            stop.set()  # not cancelled: redis-py may take that for a time-out of its own, and go on
            await asyncio.wait({counting}, timeout=metrics.LAST)
            counting.cancel()
            await self.redis.aclose()
            if self.settings.tracing:
                await asyncio.to_thread(tracing.end)


@asynccontextmanager
async def opened(settings: Settings, part: str = "task") -> AsyncIterator[Deployment]:
    """A deployment for as long as the block lasts; `part` is the kind of process."""
    async with Deployment(settings).opened(part) as deployment:
        yield deployment


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
    try:
        reporting = bool(settings.sentry_dsn) and reports.begin(settings.sentry_dsn, redact, settings.secrets())
    except ValueError:  # whose words may quote it
        sys.exit("callsheet: SENTRY_DSN is not usable: take it from the project's settings in Sentry")
    logs.configure(settings.log_format, redact, *([reports.report] if reporting else []))
    if settings.sentry_dsn and not reporting:
        logs.get("reports").warning("errors are not reported: SENTRY_DSN wants callsheet[sentry] installed")
    return settings
