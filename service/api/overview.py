"""`/v1/overview`: how the deployment is doing now, and how the last hours went, by the sums of all processes.

What it costs depends on the number of hours, vendors and statuses, never on the number of jobs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.problems import read_query
from service.api.rows import json_answer
from service.deployment import Deployment
from service.model import VERDICTS
from service.vendors import VENDORS

#: Hours whose sums are kept.
_KEPT: Final = 8 * 24
QUERY: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {"hours": re.compile(r"[1-9]|[1-9][0-9]|1[0-6][0-9]")}

#: Points of a plot, at most; with more hours than that, each is about several.
_POINTS: Final = 48
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
_VERDICTS: Final = "callsheet_verdicts_total"
_TIMES: Final = {name: f"callsheet_{name}_bucket" for name in ("ack_seconds", "job_seconds", "recovery_seconds")}

#: One number a point, the oldest first.
Series = dict[str, list[float]]
Quantiles = dict[str, list[float | None]]
#: The sums of some time that are told here, by name: labels, value.
Sums = dict[str, list[tuple[dict[str, str], float]]]


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor is left alone: it has failed so often in a row."""

    failures: int
    retry_at: datetime


class VendorNow(msgspec.Struct, frozen=True, kw_only=True):
    """`unwell` and `calls` (made within the window of the limit) by kind of call."""

    unwell: dict[str, Trouble]
    calls: dict[str, int]
    in_line: int  #: jobs that wait for their turn to be sent
    polls_due: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    since: datetime  #: the beginning of the first point
    step: int  #: hours that a point is about
    jobs: dict[str, dict[str, int]]  #: that are kept: vendor → status → how many
    archives: dict[str, int]  #: the same by what became of our copy
    now: dict[str, float]  #: gauges, as `/metrics` names them
    vendors: dict[str, VendorNow]
    verdicts: Series  #: by status
    by_vendor: Series
    by_source: Series  #: of vendors that call back: who told first
    lost_callbacks: float | None  #: the part of those verdicts for which the vendor had to be asked
    ack_seconds: Quantiles
    job_seconds: Quantiles  #: from the vendor having a job to its end known here
    recovery_seconds: Quantiles  #: from a job's end, as its vendor dates it, to its being known here


def routes(deployment: Deployment) -> list[Route]:
    overviews = _Overviews(deployment)
    return [Route("/overview", overviews.read, methods=["GET"])]


class _Overviews:
    def __init__(self, deployment: Deployment) -> None:
        self._calls = deployment.calls
        self._sums = deployment.sums
        self._windows = {
            slug: {kind: limit.seconds for kind, limit in account.limits.items()}
            for slug, account in deployment.settings.accounts.items()
        }
        self._past: dict[str, Sums] = {}  #: hours that are over by everybody's clock

    async def read(self, request: Request) -> Response:
        hours = int(read_query(request, QUERY).get("hours", "24"))
        step = ceil(hours / _POINTS)
        at = datetime.now(UTC)
        since = at.replace(minute=0, second=0, microsecond=0) - timedelta(hours=ceil(hours / step) * step - 1)
        points = await self._points(since, at, step)
        gauges = await self._sums.gauges()
        jobs, archives = _jobs(gauges)
        by_source = _series(points, "source", {slug for slug, one in VENDORS.items() if one.RHYTHM.grace is not None})
        told = {source: sum(values) for source, values in by_source.items()}
        found = Overview(
            at=at,
            since=since,
            step=step,
            jobs=jobs,
            archives=archives,
            now={name: value for name, value in gauges.items() if not name.startswith("callsheet_jobs")},
            vendors=await self._vendors(gauges),
            verdicts=_series(points, "status"),
            by_vendor=_series(points, "vendor"),
            by_source=by_source,
            lost_callbacks=told.get("poll", 0) / sum(told.values()) if any(told.values()) else None,
            **{name: _quantiles(points, sample) for name, sample in _TIMES.items()},
        )
        return json_answer(msgspec.json.encode(found))

    async def _points(self, since: datetime, until: datetime, step: int) -> list[Sums]:
        count = int((until - since).total_seconds() // 3600) + 1
        hours = [f"{since + timedelta(hours=number):%Y-%m-%dT%H}" for number in range(count)]
        asked = [hour for hour in hours if hour not in self._past]
        sums = self._past | dict(zip(asked, map(_sums, await self._sums.counts_of(asked)), strict=True))
        self._past = {hour: sums[hour] for hour in sorted(sums)[-_KEPT:] if hour < hours[-2:][0]}
        return [_joined(sums[hour] for hour in hours[start : start + step]) for start in range(0, count, step)]

    async def _vendors(self, gauges: Mapping[str, float]) -> dict[str, VendorNow]:
        return {
            slug: VendorNow(
                unwell={kind: Trouble(failures=n, retry_at=_moment(ms)) for kind, (n, ms) in health.unwell.items()},
                calls=health.calls,
                in_line=health.in_line,
                polls_due=int(gauges.get(f'callsheet_polls_due{{vendor="{slug}"}}', 0)),
            )
            for slug, health in (await self._calls.health(self._windows)).items()
        }


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _sums(counts: Mapping[str, float]) -> Sums:
    found: Sums = {name: [] for name in (_VERDICTS, *_TIMES.values())}
    for sample, value in counts.items():
        name = sample.partition("{")[0]
        if name in found:
            found[name].append((dict(_LABEL.findall(sample)), value))
    return found


def _joined(parts: Iterable[Sums]) -> Sums:
    found: Sums = defaultdict(list)
    for part in parts:
        for name, samples in part.items():
            found[name] += samples
    return found


def _jobs(gauges: Mapping[str, float]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """The jobs that are kept, by vendor and status, and by what became of our copy."""
    jobs: dict[str, dict[str, int]] = {}
    archives: dict[str, int] = defaultdict(int)
    for sample, value in gauges.items():
        if sample.startswith("callsheet_jobs{") and value:
            labels = dict(_LABEL.findall(sample))
            of_vendor = jobs.setdefault(labels["vendor"], {})
            of_vendor[labels["status"]] = of_vendor.get(labels["status"], 0) + int(value)
            archives[labels["archive"]] += int(value)
    return jobs, archives


def _series(points: list[Sums], label: str, vendors: Iterable[str] = VENDORS) -> Series:
    """The verdicts of each point by one of their labels."""
    found: Series = {}
    for number, sums in enumerate(points):
        for labels, value in sums[_VERDICTS]:
            if labels["status"] in VERDICTS and labels["vendor"] in vendors:
                found.setdefault(labels[label], [0.0] * len(points))[number] += value
    return dict(sorted(found.items()))


def _quantiles(points: list[Sums], name: str) -> Quantiles:
    found: Quantiles = {"p50": [], "p95": []}
    for sums in points:
        buckets: dict[float, float] = defaultdict(float)
        for labels, value in sums[name]:
            buckets[float(labels["le"])] += value
        for part, values in found.items():
            values.append(_quantile(buckets, int(part[1:]) / 100))
    return found


def _quantile(buckets: Mapping[float, float], part: float) -> float | None:
    """By the rule of Prometheus: evenly within a bucket, and no more than the last bound."""
    total = buckets.get(float("inf"), 0.0)
    lower, below = 0.0, 0.0
    for bound, count in sorted(buckets.items()) if total else ():
        if count >= part * total:
            within = (part * total - below) / (count - below) if count > below else 0.0
            return lower if bound == float("inf") else lower + (bound - lower) * within
        lower, below = bound, count
    return None
