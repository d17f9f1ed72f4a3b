"""`callsheet doctor`: what is wrong with a deployment, and how to mend it. It writes nothing but a probe."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click
import httpx
import msgspec
from redis import Redis, RedisError
from rq import Queue
from rq import Worker as RQWorker

from service import settings as settings_module
from service.cli.client import environment
from service.cli.output import console, json_option, print_json
from service.deployment import opened
from service.jobs import tasks
from service.jobs.connection import connect_sync
from service.jobs.endpoints import Endpoints
from service.model import Endpoint
from service.settings import MIN_API_KEY, Settings, SettingsError
from service.storage import Storage, StorageError
from service.vendors import VENDORS

MIN_SECRET: Final = 32
#: Redis 7 brought the script flags that refuse a whole commit where memory is full.
MIN_REDIS: Final = 7
#: Events for one endpoint that are more than a moment's queue.
MANY_WAIT: Final = 1000


class Finding(msgspec.Struct, frozen=True):
    level: str  #: `ok`, `warning` or `error`
    about: str
    says: str
    fix: str = ""


_MARKS: Final = {"ok": ("green", "ok"), "warning": ("yellow", "warning"), "error": ("red", "ERROR")}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is wrong with this deployment and how to mend it. Exit code 1 where something is."""
    try:
        settings = settings_module.load(VENDORS.values(), environment())
    except SettingsError as error:
        findings = [Finding("error", "settings", problem, "see 'Settings' in the README") for problem in error.problems]
    else:
        findings = list(_examine(settings))
    if as_json:
        print_json([msgspec.structs.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            colour, word = _MARKS[finding.level]
            console.print(f"[{colour}]{word:>8}[/]  [bold]{finding.about}[/]: {finding.says}", soft_wrap=True)
            if finding.fix:
                console.print(f"{'':>10}→ {finding.fix}", soft_wrap=True)
    sys.stdout.flush()
    # The threads of the storage's client abort a Python that ends in the moment after they were used.
    os._exit(any(finding.level == "error" for finding in findings))


def _examine(settings: Settings) -> Iterator[Finding]:
    yield from _secrets(settings)
    yield from _public_url(settings)
    yield from _redis(settings)
    yield asyncio.run(_storage(settings))
    yield from asyncio.run(_endpoints(settings))
    yield from _vendors(settings)


def _secrets(settings: Settings) -> Iterator[Finding]:
    short = [number for number, key in enumerate(settings.secret_keys, 1) if len(key) < MIN_SECRET]
    if short:
        fix = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
        yield Finding("error", "SECRET_KEYS", f"key {short[0]} has fewer than {MIN_SECRET} characters", fix)
    else:
        yield Finding("ok", "SECRET_KEYS", f"{len(settings.secret_keys)} long enough")
    weak = [name for name, key in settings.api_keys.items() if key.short]
    if weak:
        yield Finding(
            "error",
            "API_KEYS",
            f"the key of {', '.join(weak)} has fewer than {MIN_API_KEY} characters",
            "use longer ones",
        )
    else:
        yield Finding("ok", "API_KEYS", f"{len(settings.api_keys)} long enough")
    if settings.allow_private_networks:
        fix = "unset it in production: it is for the sandbox and for tests"
        says = "on: links, vendors and subscribers may point into this network, unencrypted; this is unsafe"
        yield Finding("warning", "ALLOW_PRIVATE_NETWORKS", says, fix)


def _public_url(settings: Settings) -> Iterator[Finding]:
    if not settings.public_url.startswith("https://"):
        level = "warning" if settings.allow_private_networks else "error"
        fix = "set it to the https:// address that vendors reach: callback tokens must not travel in clear"
        yield Finding(level, "PUBLIC_URL", "is not https", fix)
    try:
        answer = httpx.get(f"{settings.public_url}/readyz", timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        fix = "start the web process, and see that the address leads to it"
        yield Finding("error", "PUBLIC_URL", f"nobody answers there: {type(error).__name__}", fix)
        return
    ready = answer.status_code == 200 and "ready" in answer.text
    says = f"the web process answers there with {answer.status_code}"
    yield Finding("ok" if ready else "error", "PUBLIC_URL", says, "" if ready else "see the web process's log")


def _redis(settings: Settings) -> Iterator[Finding]:
    redis = connect_sync(settings)
    try:
        began = time.perf_counter()
        redis.ping()
        ms = (time.perf_counter() - began) * 1000
        info: dict[str, Any] = redis.info()
        yield Finding("ok", "Redis", f"answers in {ms:.1f} ms")
        yield from _redis_settings(redis, info)
        if not info.get("cluster_enabled"):  # else it may only say which other server has the key
            yield from _processes(settings, redis)
    except (RedisError, OSError) as error:
        fix = "check REDIS_URL; for a platform's self-signed certificate set REDIS_TLS_VERIFY=0"
        yield Finding("error", "Redis", f"does not answer: {type(error).__name__}: {error}"[:200], fix)
    finally:
        redis.close()


def _redis_settings(redis: Redis, info: dict[str, Any]) -> Iterator[Finding]:
    version = str(info.get("valkey_version") or info["redis_version"])
    if int(version.split(".")[0]) < MIN_REDIS:
        yield Finding("error", "Redis version", version, f"use Redis {MIN_REDIS} or Valkey")
    else:
        yield Finding("ok", "Redis version", version)
    if info.get("cluster_enabled"):
        fix = "use one server, with replicas and a failover if you like"
        yield Finding("error", "Redis Cluster", "one step here writes keys of many slots, which a cluster refuses", fix)
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        yield Finding("ok", "Redis eviction", policy)
    else:
        fix = "set maxmemory-policy to noeviction (on Heroku: heroku redis:maxmemory --policy noeviction)"
        yield Finding("error", "Redis eviction", f"{policy}: when memory is full, jobs are thrown away in silence", fix)
    if info.get("aof_enabled"):
        if _configured(redis, "appendfsync") in ("always", ""):
            yield Finding("ok", "Redis persistence", "append-only file")
        else:
            fix = "set appendfsync always, if a second of acknowledged callbacks is too much to lose"
            yield Finding("warning", "Redis persistence", "append-only file, written every second", fix)
    elif _configured(redis, "save") != "":
        fix = "set appendonly yes, or choose a plan that persists every write"
        yield Finding("warning", "Redis persistence", "snapshots only: a crash loses what came since the last", fix)
    else:
        fix = "set appendonly yes; without it a restart loses every job"
        yield Finding("error", "Redis persistence", "none", fix)


def _configured(redis: Redis, name: str) -> str | None:
    """A setting of Redis; None where it does not tell, as managed ones do not."""
    try:
        return str(redis.config_get(name).get(name, ""))
    except RedisError:
        return None


def _processes(settings: Settings, redis: Redis) -> Iterator[Finding]:
    queues = [Queue(settings.queue(task), connection=redis) for task in tasks.PATHS]
    workers, waiting = RQWorker.count(queue=queues[0]), sum(queue.count for queue in queues)
    if workers:
        yield Finding("ok", "worker", f"{workers} running, {waiting} tasks waiting")
    else:
        yield Finding("error", "worker", f"none is running, {waiting} tasks wait", "start the worker process")
    unconfirmed = redis.scan_iter(f"{settings.key_prefix}:jobs:*:unconfirmed:*", count=1000)
    if lost := sum(int(redis.zcard(key)) for key in unconfirmed):
        fix = "see 'callsheet jobs list --status unconfirmed', then 'callsheet jobs resolve'"
        yield Finding("warning", "submissions", f"{lost} were sent and not answered", fix)
    overdue = redis.zcount(f"{settings.key_prefix}:deadlines", "-inf", (time.time() - 300) * 1000)
    if overdue:
        yield Finding("error", "poller", f"{overdue} deadlines passed unseen", "start the poller process")


async def _storage(settings: Settings) -> Finding:
    key = f".doctor/{time.time_ns()}"
    try:
        storage = Storage(settings.storage_url)
        await storage.put(key, _probe())
        size = await storage.size(key)
        await storage.delete(key)
    except StorageError as error:
        says = f"cannot be written: {type(error).__name__}: {error}".splitlines()[0][:300]
        fix = "check the address, the bucket and the credentials (AWS_…, GOOGLE_…, AZURE_…)"
        return Finding("error", "STORAGE_URL", says, fix)
    if size != len(_PROBE):
        return Finding("error", "STORAGE_URL", f"gives back {size} of {len(_PROBE)} bytes", "check the storage itself")
    if settings.storage_url.startswith("file:") and "DYNO" in environment():
        fix = "name a bucket: s3://bucket/prefix, gs://… or az://…"
        return Finding("error", "STORAGE_URL", "is on a dyno's own disk, which is wiped every day", fix)
    return Finding("ok", "STORAGE_URL", "can be written, read and cleared")


_PROBE: Final = b"callsheet doctor was here\n"


async def _probe() -> AsyncIterator[bytes]:
    yield _PROBE


async def _endpoints(settings: Settings) -> list[Finding]:
    """Endpoints that do not get what they should; a Redis that does not answer has been told of."""
    try:
        async with opened(settings) as deployment:
            endpoints = Endpoints(deployment.redis, deployment.store, settings)
            every = await endpoints.all()
            ids = [one.id for one in every]
            found = zip(every, await endpoints.waiting(*ids), await endpoints.failing_since(*ids), strict=True)
            unwell = [finding for one in found if (finding := _unwell(*one))]
    except (RedisError, OSError):
        return []
    return unwell or [Finding("ok", "endpoints", f"{len(every)}, and none of them in trouble")]


def _unwell(endpoint: Endpoint, waiting: int, since: datetime | None) -> Finding | None:
    about, why = f"endpoint {endpoint.id}", f"'callsheet deliveries list {endpoint.id}' tells why"
    if not endpoint.enabled and endpoint.disabled_reason != "by hand":
        fix = f"'callsheet endpoints change {endpoint.id} --enable', then 'endpoints replay' what it has missed"
        return Finding("warning", about, f"disabled: {endpoint.disabled_reason}", fix)
    if since and (hours := (datetime.now(UTC) - since).total_seconds() / 3600) > 1:
        return Finding("warning", about, f"nothing has got through for {hours:.0f} h, {waiting} events wait", why)
    if waiting > MANY_WAIT:
        return Finding("warning", about, f"{waiting} events wait: it takes them more slowly than they come", why)
    return None


def _vendors(settings: Settings) -> Iterator[Finding]:
    for slug, account in settings.accounts.items():
        if not account.complete:
            says = "no credentials: its callbacks are received, but it is neither submitted to nor polled"
            yield Finding("warning", slug, says, f"set {account.wanted}")
        elif account.base_url != VENDORS[slug].BASE_URL:
            fix = f"unset {slug.upper()}_BASE_URL, unless that is meant"
            yield Finding("warning", slug, f"called at {account.base_url}, not at its own address", fix)
        else:
            yield Finding("ok", slug, "has credentials")
