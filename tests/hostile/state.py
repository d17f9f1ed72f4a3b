"""Everything that Redis holds, to be compared: what changed, key by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from redis import Redis

#: Type of a key → how it is read whole.
_READERS: Final[dict[bytes, Callable[[Any, bytes], object]]] = {
    b"string": lambda redis, key: redis.get(key),
    b"list": lambda redis, key: redis.lrange(key, 0, -1),
    b"hash": lambda redis, key: redis.hgetall(key),
    b"set": lambda redis, key: redis.smembers(key),
    b"zset": lambda redis, key: dict(redis.zrange(key, 0, -1, withscores=True)),
    b"stream": lambda redis, key: redis.xrange(key),
}


def snapshot(redis: Redis) -> dict[str, Any]:
    """Key → what it holds. Keys that go away meanwhile are not there."""
    keys: list[bytes] = sorted(redis.scan_iter(count=1000))
    types = {key: cast("bytes", redis.type(key)) for key in keys}
    return {key.decode(): _READERS[type_](redis, key) for key, type_ in types.items() if type_ in _READERS}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The keys that are not as they were, new and gone ones too."""
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
