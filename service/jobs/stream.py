"""The stream of events: what has to be known of one, positions in it, and how far back it goes."""

from __future__ import annotations

from typing import Any

import msgspec
from redis import ResponseError
from redis.asyncio import Redis


class Subject(msgspec.Struct, frozen=True):
    """What has to be known of a job, or of anything else that an event is about, to filter by it."""

    id: str = ""
    vendor: str = ""
    metadata: dict[str, Any] = {}


class Head(msgspec.Struct, frozen=True):
    """What has to be known of an event."""

    id: str
    type: str
    data: Subject


read_head = msgspec.json.Decoder(Head).decode


def says(metadata: dict[str, Any], wanted: dict[str, object]) -> bool:
    """Whether a job's metadata has what an endpoint asks for."""
    return all(name in metadata and _same(metadata[name], value) for name, value in wanted.items())


def _same(one: object, other: object) -> bool:
    """Whether two JSON values are equal; to Python, true is 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and says(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


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
