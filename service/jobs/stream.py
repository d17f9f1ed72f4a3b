"""The stream of events: positions in it, and how far back it goes."""

from __future__ import annotations

from typing import Any

from redis import ResponseError
from redis.asyncio import Redis

#: Of an entry: ms, and its number among those of the same moment.
Position = tuple[int, int]


def position(text: bytes | str) -> Position:
    ms, _, number = (text if isinstance(text, str) else text.decode()).partition("-")
    return int(ms), int(number or 0)


async def ends(redis: Redis, key: str) -> tuple[Position, Position]:
    """The position before the first entry that the stream still has (0, 0: all of them), and the last one."""
    try:
        info: Any = await redis.xinfo_stream(key)
    except ResponseError:  # no stream yet
        return (0, 0), (0, 0)
    last = position(info["last-generated-id"])
    if info["entries-added"] == info["length"]:
        return (0, 0), last
    ms, number = position(info["first-entry"][0]) if info["first-entry"] else (last[0], last[1] + 1)
    return ((ms, number - 1) if number else (ms - 1, 10**9)), last
