"""The subscriber's endpoint: takes every signed webhook, and writes down whose it was and what it was called.

It drops nothing, so that the suite can see what a receiver has to drop: a webhook that comes again has to have the id
of the first one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from standardwebhooks.webhooks import Webhook

from tests.chaos.ledger import Ledger
from tests.support.hooks import Hook, Hooks, always, hooks_server

_PATH = "/subscriber"
#: Seconds: the library's own.
_TOLERANCE: Final = 300


class Subscriber:
    """One endpoint in a thread of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self.url = ""
        self.secret = ""  #: as the service has told it
        self._ledger = ledger
        self._taken = always(204)
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        async with hooks_server() as hooks:
            self.url = hooks.at(_PATH, lambda hook: self._take(hooks, hook))
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            await self._over.wait()

    async def _take(self, hooks: Hooks, hook: Hook) -> str:
        hooks.forget()  # the ledger is what remembers
        ledger, event = self._ledger, hook.event
        if wrong := self._wrong(hook):
            ledger.strange.append(f"a webhook's signature: {wrong}")
        job_id, type_ = event["data"]["id"], event["type"]
        if (job_id, type_) not in ledger.delivered:
            ledger.sent.setdefault(job_id, []).append(type_)
        ledger.delivered[job_id, type_] += 1
        ledger.webhook_ids.setdefault((job_id, type_), set()).add(hook.headers["webhook-id"])
        return await self._taken(hook)

    def _wrong(self, hook: Hook) -> str:
        """Why it is not to be taken, as the library says it; but that one knows no clock that was moved meanwhile."""
        id_, seconds = hook.headers["webhook-id"], int(hook.headers["webhook-timestamp"])
        signed = Webhook(self.secret).sign(id_, datetime.fromtimestamp(seconds, UTC), hook.body.decode())
        if signed not in hook.headers["webhook-signature"].split():
            return "No matching signature found"
        off = seconds - time.time()
        return "" if -_TOLERANCE < off < self._ledger.ahead + _TOLERANCE else f"it is {off:.0f} s off"


@contextlib.contextmanager
def subscriber_of(ledger: Ledger) -> Iterator[Subscriber]:
    """A `Subscriber` for the length of a block."""
    subscriber = Subscriber(ledger)
    subscriber.start()
    try:
        yield subscriber
    finally:
        subscriber.stop()
