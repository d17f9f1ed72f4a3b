"""Everything that Redis holds, to be compared: what changed, key by key."""

from __future__ import annotations

import re
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

#: What processes count and what operators did: it comes and goes beside the facts about jobs.
_BESIDE: Final = re.compile(rb".*:(metrics|processes|counted|audit)(:.*)?")


def keys(redis: Redis) -> list[bytes]:
    """The keys of the facts about jobs."""
    return sorted(key for key in redis.scan_iter(count=1000) if not _BESIDE.fullmatch(key))


def holding(redis: Redis, words: str) -> set[str]:
    """The keys, of all that there are, in whose names or contents the words are."""
    found = {key: _READERS[cast("bytes", redis.type(key))](redis, key) for key in redis.scan_iter(count=1000)}
    return {key.decode() for key, held in found.items() if words in f"{key!r} {held!r}"}


def snapshot(redis: Redis) -> dict[str, Any]:
    """Key → what it holds. Keys that go away meanwhile are not there."""
    types = {key: cast("bytes", redis.type(key)) for key in keys(redis)}
    return {key.decode(): _READERS[type_](redis, key) for key, type_ in types.items() if type_ in _READERS}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The keys that are not as they were, new and gone ones too."""
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
