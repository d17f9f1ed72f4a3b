"""What was promised and what was heard, written by the suite itself: acknowledgements, events, webhooks, odd answers.

The service is never asked what it has said. One thread reads the stream, as a consumer that must miss nothing; another
listens to pub/sub; both read Valkey itself, whatever lies between it and the service. A third takes webhooks
(subscriber.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import redis

from tests.chaos.orders import Order

_PATIENCE: Final = 2.0  #: seconds that a reader waits for a Valkey that does not answer, before it connects anew


@dataclass
class Entry:
    """One job, from its order on."""

    order: Order
    job_id: str = ""  #: as the service has acknowledged it
    callback_url: str = ""
    sha256: str = ""  #: of its file, where the suite itself plays the vendor


class _Subject(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    type: str
    data: _Subject


_event: Final = msgspec.json.Decoder(_Event).decode


@dataclass
class Ledger:
    """Everything that was seen. Written by several threads, each its own part."""

    entries: dict[str, Entry] = field(default_factory=dict)  #: by nonce
    by_job: dict[str, Entry] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)  #: of the API: `202`, `503`, an error's name
    strange: list[str] = field(default_factory=list)  #: answers that nobody should ever get
    heard: Counter[tuple[str, str]] = field(default_factory=Counter)  #: in the stream, by job and type
    heard_at: dict[tuple[str, str], float] = field(default_factory=dict)  #: for the first time, unix seconds
    #: The types of a job's events, as they stand in the stream.
    told: dict[str, list[str]] = field(default_factory=dict)
    published: Counter[tuple[str, str]] = field(default_factory=Counter)  #: by pub/sub
    subscribed: frozenset[str] = frozenset()  #: the vendors of whose jobs somebody is sent webhooks
    delivered: Counter[tuple[str, str]] = field(default_factory=Counter)  #: by webhook, by job and type
    sent: dict[str, list[str]] = field(default_factory=dict)  #: the types of a job's webhooks, as they first came
    webhook_ids: dict[tuple[str, str], set[str]] = field(default_factory=dict)  #: that one event came with
    operated: set[str] = field(default_factory=set)  #: jobs that the operator had to resolve
    ahead: int = 0  #: seconds by which Redis' clock was moved

    def expect(self, order: Order) -> Entry:
        entry = self.entries[order.nonce] = Entry(order)
        return entry

    def acknowledge(self, entry: Entry, job_id: str, callback_url: str) -> None:
        entry.job_id, entry.callback_url = job_id, callback_url
        self.by_job[job_id] = entry

    def acknowledged(self, group: str | None = None) -> list[Entry]:
        return [entry for entry in list(self.by_job.values()) if group is None or entry.order.group == group]

    def done_at(self, entry: Entry) -> float | None:
        """When its last event was heard."""
        return self.heard_at.get(self._last(entry))

    def _last(self, entry: Entry) -> tuple[str, str]:
        refused = entry.order.refusable and (entry.job_id, "job.failed") in self.heard_at
        return entry.job_id, "job.failed" if refused else entry.order.last_event

    def open(self) -> list[Entry]:
        """Acknowledged, and not at their end, or the subscriber has not been sent that yet."""
        return [entry for entry in self.acknowledged() if not self._ended(entry)]

    def _ended(self, entry: Entry) -> bool:
        last = self._last(entry)
        return last in self.heard_at and (entry.order.vendor not in self.subscribed or last in self.delivered)


class Listeners:
    """The two subscribers."""

    def __init__(self, url: str, prefix: str, ledger: Ledger) -> None:
        self._url = url
        self._prefix = prefix
        self._ledger = ledger
        self._after = "0"
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._keep, args=(what,)) for what in (self._read, self._subscribe)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, listen: Any) -> None:
        """Listen anew whenever the connection is lost."""
        while not self._over.is_set():
            client = redis.Redis.from_url(self._url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE)
            with client, contextlib.suppress(redis.RedisError, OSError):
                listen(client)
            self._over.wait(0.1)

    def _read(self, client: redis.Redis) -> None:
        stream = f"{self._prefix}:stream"
        while not self._over.is_set():
            found: Any = client.xread({stream: self._after}, count=1000, block=500)
            for entry_id, fields in found[0][1] if found else ():
                event = _event(fields[b"event"])
                name = (event.data.id, event.type)
                self._ledger.heard[name] += 1
                self._ledger.heard_at.setdefault(name, time.time())
                self._ledger.told.setdefault(event.data.id, []).append(event.type)
                self._after = entry_id

    def _subscribe(self, client: redis.Redis) -> None:
        with client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(f"{self._prefix}:events")
            while not self._over.is_set():
                if message := channel.get_message(timeout=0.5):
                    event = _event(message["data"])
                    self._ledger.published[event.data.id, event.type] += 1


@contextlib.contextmanager
def listening_to(url: str, prefix: str, ledger: Ledger) -> Iterator[None]:
    """The subscribers for the length of a block."""
    listeners = Listeners(url, prefix, ledger)
    listeners.start()
    try:
        yield
    finally:
        listeners.stop()
