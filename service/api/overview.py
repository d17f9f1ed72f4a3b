"""`/v1/overview`: how the deployment is doing now, and how the last hours went, by the sums of all processes.

What it costs depends on the number of hours, vendors and statuses, never on the number of jobs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
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

#: The sums of an hour are kept for eight days.
QUERY: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {"hours": re.compile(r"[1-9]|[1-9][0-9]|1[0-6][0-9]")}

_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')

#: One number an hour, the oldest first.
Series = dict[str, list[float]]
Quantiles = dict[str, list[float | None]]
Sample = tuple[str, dict[str, str], float]


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
    since: datetime  #: the beginning of the first hour
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
    store, accounts = deployment.store, deployment.settings.accounts

    async def overview(request: Request) -> Response:
        hours = int(read_query(request, QUERY).get("hours", "24"))
        at = datetime.now(UTC)
        since = at.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
        names = [f"{since + timedelta(hours=number):%Y-%m-%dT%H}" for number in range(hours)]
        each = [[_sample(*count) for count in counts.items()] for counts in await store.counts_of(names)]
        gauges = await store.gauges()
        jobs, archives = _jobs(map(_sample, gauges, gauges.values()))
        windows = {
            slug: {kind: limit.seconds for kind, limit in account.limits.items()} for slug, account in accounts.items()
        }
        by_source = _series(
            each, "source", {slug for slug, vendor in VENDORS.items() if vendor.RHYTHM.grace is not None}
        )
        told = {source: sum(values) for source, values in by_source.items()}
        found = Overview(
            at=at,
            since=since,
            jobs=jobs,
            archives=archives,
            now={name: value for name, value in gauges.items() if not name.startswith("callsheet_jobs")},
            vendors={
                slug: VendorNow(
                    unwell={kind: Trouble(failures=n, retry_at=_moment(ms)) for kind, (n, ms) in health.unwell.items()},
                    calls=health.calls,
                    in_line=health.in_line,
                    polls_due=int(gauges.get(f'callsheet_polls_due{{vendor="{slug}"}}', 0)),
                )
                for slug, health in (await store.vendor_health(windows)).items()
            },
            verdicts=_series(each, "status"),
            by_vendor=_series(each, "vendor"),
            by_source=by_source,
            lost_callbacks=told["poll"] / sum(told.values())
            if told.get("poll")
            else 0.0
            if any(told.values())
            else None,
            ack_seconds=_quantiles(each, "callsheet_ack_seconds_bucket"),
            job_seconds=_quantiles(each, "callsheet_job_seconds_bucket"),
            recovery_seconds=_quantiles(each, "callsheet_recovery_seconds_bucket"),
        )
        return json_answer(msgspec.json.encode(found))

    return [Route("/overview", overview, methods=["GET"])]


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _sample(name: str, value: float) -> Sample:
    return name.partition("{")[0], dict(_LABEL.findall(name)), value


def _jobs(samples: Iterable[Sample]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    jobs: dict[str, dict[str, int]] = {}
    archives: dict[str, int] = defaultdict(int)
    for name, labels, value in samples:
        if name == "callsheet_jobs" and value:
            of_vendor = jobs.setdefault(labels["vendor"], {})
            of_vendor[labels["status"]] = of_vendor.get(labels["status"], 0) + int(value)
            archives[labels["archive"]] += int(value)
    return jobs, archives


def _series(each: list[list[Sample]], label: str, vendors: Iterable[str] = VENDORS) -> Series:
    """The verdicts of each hour by one of their labels."""
    found: Series = {}
    for hour, samples in enumerate(each):
        for name, labels, value in samples:
            if name == "callsheet_verdicts_total" and labels["status"] in VERDICTS and labels["vendor"] in vendors:
                found.setdefault(labels[label], [0.0] * len(each))[hour] += value
    return dict(sorted(found.items()))


def _quantiles(each: list[list[Sample]], name: str) -> Quantiles:
    found: Quantiles = {"p50": [], "p95": []}
    for samples in each:
        buckets: dict[float, float] = defaultdict(float)
        for sample, labels, value in samples:
            if sample == name:
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
