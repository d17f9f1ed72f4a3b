"""Connections to Redis, as the settings say; the one place that knows of time-outs, retries and certificates."""

from __future__ import annotations

from typing import Any

from redis import Redis as SyncRedis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError, ReadOnlyError, TimeoutError

from service.settings import Settings


def connect(settings: Settings) -> Redis:
    """An asyncio client. Callers beyond the number of its connections wait for their turn."""
    # A connection that died while idle, or whose server is no longer the primary; every write here may be repeated.
    again = Retry(ConstantBackoff(0.05), 1, supported_errors=(ConnectionError, TimeoutError, ReadOnlyError))
    options = _options(settings) | {"max_connections": settings.redis_max_connections, "timeout": 10, "retry": again}
    pool = BlockingConnectionPool.from_url(settings.redis_url, **options)
    return Redis.from_pool(pool)


def connect_sync(settings: Settings) -> SyncRedis:
    """A client for callers without an event loop, and for RQ's own classes."""
    return SyncRedis.from_url(settings.redis_url, **_options(settings))


def _options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": 5, "health_check_interval": 30}
    if settings.redis_url.startswith("rediss://") and not settings.redis_tls_verify:
        options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    return options
