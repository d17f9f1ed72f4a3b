"""What is counted, and how the counts of all processes become one sum.

A process counts in its own memory and every few seconds sends what was added since to Redis, once: a router that is all
a scraper can reach tells of every process, and a process that ends leaves its counts behind. One that is killed takes
those of the last `EVERY` seconds with it. Labels are words of ours and vendors' slugs, never what a stranger has sent.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Final
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Histogram
from redis import RedisError

from service.model import Problem, Source, Status

#: Seconds between two sendings, and how long a process that ends waits for the last one.
EVERY: Final = 5.0
LAST: Final = 3.0

REGISTRY: Final = CollectorRegistry(auto_describe=False)

_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0, 86_400.0)


# A family with labels is a look-up of its bound children: to make one anew costs as much as all else about counting.


def _counter(name: str, told: str, *labels: str) -> Callable[..., Counter]:
    return cache(Counter(f"callsheet_{name}", told, labels, registry=REGISTRY).labels)


def _histogram(name: str, told: str, *labels: str) -> Callable[..., Histogram]:
    return cache(Histogram(f"callsheet_{name}", told, labels, registry=REGISTRY, buckets=_SLOW).labels)


def _quick_histogram(name: str, told: str) -> Histogram:
    return Histogram(f"callsheet_{name}", told, registry=REGISTRY, buckets=_QUICK)


callbacks: Final = _counter("callbacks_total", "Callbacks answered, by what came of them.", "vendor", "outcome")
ack_seconds: Final = _quick_histogram("ack_seconds", "From a callback's first byte to its durable acknowledgement.")
quarantined: Final = _counter("quarantined_total", "Callbacks that could not be understood.", "vendor", "problem")
verdicts: Final = _counter("verdicts_total", "Ends of jobs, by who told first.", "vendor", "status", "source")
job_seconds: Final = _histogram("job_seconds", "From a vendor having a job to its end known.", "vendor", "source")
recovery_seconds: Final = _histogram(
    "recovery_seconds", "From a job's end, as the vendor dates it, to its being known here.", "vendor", "source"
)
submissions: Final = _counter("submissions_total", "Jobs sent to vendors.", "vendor", "outcome")
polls: Final = _counter("polls_total", "Looks at jobs, by what they brought.", "vendor", "outcome")
rate_limit_wait_seconds: Final = _histogram(
    "rate_limit_wait_seconds", "Waits for a turn in a vendor's limit.", "vendor", "kind"
)
archives: Final = _counter("archives_total", "Attempts to bring a result home.", "vendor", "outcome")
archive_bytes: Final = _counter("archive_bytes_total", "Bytes brought home.", "vendor")
archive_seconds: Final = _histogram("archive_seconds", "What it took to bring a result home.", "vendor")
deliveries: Final = _counter("deliveries_total", "Tries to send an event to an endpoint.", "outcome")
delivery_seconds: Final = _quick_histogram("delivery_seconds", "What such a try took.")
errors: Final = _counter("errors_total", "Errors that nobody foresaw.", "part")
swept: Final = Counter(
    "callsheet_swept_total", "Tasks that were lost and enqueued again, or whose next try was due.", registry=REGISTRY
)

#: Read from Redis whenever somebody asks, by gauges.lua.
GAUGES: Final[Mapping[str, str]] = {
    "callsheet_processes": "Processes that have sent their counts within the last 15 seconds.",
    "callsheet_queue_depth": "Tasks that wait for a worker.",
    "callsheet_queue_oldest_seconds": "Since when the first of them waits.",
    "callsheet_tasks_running": "Tasks that a worker has taken.",
    "callsheet_tasks": "Tasks to be done some time, retries included.",
    "callsheet_jobs": "Jobs that are kept.",
    "callsheet_polls_due": "Jobs whose vendor should have been asked by now.",
    "callsheet_poll_lag_seconds": "Since when the first of them waits.",
    "callsheet_deadlines_overdue": "Jobs whose deadline has passed unseen.",
    "callsheet_quarantine": "Callbacks in quarantine.",
    "callsheet_endpoints": "Endpoints; the failing ones are left alone for a while.",
    "callsheet_deliveries_waiting": "Events that wait for an endpoint.",
    "callsheet_vendor_unwell": "1 while a vendor is left alone.",
    "callsheet_redis_memory_bytes": "Memory that Redis uses.",
    "callsheet_redis_memory_limit_bytes": "Memory that Redis may use; 0 where nothing limits it.",
}

#: Sends the sums of a process: its name, the number of the sending, sample → what was added to it.
Send = Callable[[str, int, Mapping[str, float]], Awaitable[None]]


class Counts:
    """What this process counts from now on, on its way to the sums."""

    def __init__(self, part: str, send: Send) -> None:
        self._process = f"{part}:{uuid4().hex}"
        self._send = send
        self._number = 0
        self._told = _samples()
        self._added: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Send every few seconds, and once more when `stop` is set."""
        over = False
        while not over:
            over = stop.is_set()  # asked before: what was counted until then is in this sending
            with suppress(RedisError, OSError):  # the next one brings it
                await self.send()
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await stop.wait()

    async def send(self) -> None:
        """Send what was added, as often as it takes: the number tells Redis what it has seen already."""
        if self._added:  # whose answer did not come
            await self._send(self._process, self._number, self._added)
        now = _samples()
        added = {name: value - self._told.get(name, 0.0) for name, value in now.items()}
        self._added = {name: value for name, value in added.items() if value}
        self._told, self._number = now, self._number + 1
        await self._send(self._process, self._number, self._added)
        self._added = {}


def begin_at_zero(vendors: Iterable[str]) -> None:
    """Tell of what is rare before it happens: no alert sees a step from nothing to one."""
    for part in ("worker", "poller", "archive", "notify"):
        errors(part)
    for outcome in ("delivered", "again", "given_up"):
        deliveries(outcome)
    for vendor in vendors:
        verdicts(vendor, Status.EXPIRED, Source.DEADLINE)
        for outcome in ("stored", "again", "failed"):
            archives(vendor, outcome)
        for outcome in ("apply", "not_understood", "no_such_url", "too_large", "unavailable"):
            callbacks(vendor, outcome)
        for problem in Problem:
            quarantined(vendor, problem)


def _samples() -> dict[str, float]:
    """Every sample by the name that Prometheus gives it."""
    return {
        sample.name + _labels(sample.labels): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""


def exposition(sums: Mapping[str, float], gauges: Mapping[str, float]) -> str:
    """Prometheus' text format, version 0.0.4. Sums of families that this release does not know are left out."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    known = dict.fromkeys(_samples(), 0.0) | dict(sums) | dict(gauges)
    for name in sorted(known, key=_order):
        found[name.partition("{")[0]].append(f"{name} {known[name]!r}\n")
    return "".join(
        f"# HELP {family} {told}\n# TYPE {family} {type_}\n" + "".join(line for name in names for line in found[name])
        for family, told, type_, names in families()
        if any(name in found for name in names)
    )


def families() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Name, description, type, and the names of the samples."""
    for family in REGISTRY.collect():
        if family.type == "counter":
            name = f"{family.name}_total"
            yield name, family.documentation, family.type, (name,)
        else:
            names = tuple(f"{family.name}_{part}" for part in ("bucket", "sum", "count"))
            yield family.name, family.documentation, family.type, names
    for name, told in GAUGES.items():
        yield name, told, "gauge", (name,)


_LE: Final = re.compile(r',?le="([^"]+)"')


def _order(sample: str) -> tuple[str, float]:
    """The buckets of a histogram stand in their order."""
    le = _LE.search(sample)
    return _LE.sub("", sample), float(le[1]) if le else 0.0
