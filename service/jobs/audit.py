"""Who did what: the operators' log, a stream of its own that keeps the latest. The owner of the key `audit`.

The same goes to the log, logger `audit`, for those who have to keep it longer than Redis does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from service import logs
from service.jobs.store import Store

#: Entries that are kept, about.
KEPT: Final = 10_000

_log = logs.get("audit")


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One action of an operator."""

    at: datetime
    who: str  #: the name of an API key, or `terminal:` and the user's name
    action: str  #: `endpoints.create`, `jobs.resolve`, …
    subject: str  #: the job, endpoint, delivery, letter or vendor that it was about
    result: str  #: the answer's HTTP status


async def note(store: Store, who: str, action: str, subject: str, result: str) -> None:
    """Write down that somebody did something.

    Raises:
        redis.RedisError: It is in the log alone.
    """
    _log.info("audit", who=who, action=action, subject=subject, result=result)
    await write(store, who, action, subject, result)


async def write(store: Store, who: str, action: str, subject: str, result: str) -> None:
    """`note` for the terminal, whose own output is what was asked for."""
    fields: dict[Any, Any] = {"who": who, "action": action, "subject": subject, "result": result}
    await store.redis.xadd(store.key("audit"), fields, maxlen=KEPT)


async def page(store: Store, limit: int, cursor: str = "") -> tuple[list[AuditEntry], str | None]:
    """The latest entries, newest first, and where the next page begins (None: there is none)."""
    rows: Any = await store.redis.xrevrange(store.key("audit"), f"({cursor}" if cursor else "+", "-", count=limit + 1)
    entries = [
        AuditEntry(
            at=datetime.fromtimestamp(int(position.partition(b"-")[0]) / 1000, UTC),
            **{name.decode(): value.decode() for name, value in fields.items()},
        )
        for position, fields in rows[:limit]
    ]
    return entries, rows[limit - 1][0].decode() if len(rows) > limit else None
