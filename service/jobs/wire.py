"""The way of facts to Redis: `commit.lua` is called on connections of their own.

They are redis-py's, and its pool makes them; but what its client does around each call costs more than everything else
about a callback, and is the same work every time. Never used for anything but this one script.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as NoAnswer

#: Seconds from the first byte of a call to the last one of its answer, connecting included.
PATIENCE: Final = 5.0


class Wire:
    """Calls one script, on as many connections as there are calls at once. They are kept."""

    def __init__(self, pool: ConnectionPool, script: str) -> None:
        self._pool = pool
        self._script = script
        self._sha = hashlib.sha1(script.encode()).hexdigest()  # noqa: S324  Redis' own name for it
        self._idle: list[AbstractConnection] = []

    async def call(self, args: list[bytes]) -> list[list[bytes]]:
        """The script's answer. What is lost with its connection is sent again, as often as the pool has it."""
        connection = self._idle.pop() if self._idle else await self._connection()

        async def lost(_error: Exception) -> None:
            await connection.disconnect(nowait=True)

        try:
            found = await connection.retry.call_with_retry(lambda: self._call(connection, args), lost)
            return cast("list[list[bytes]]", found)
        finally:
            self._idle.append(connection)

    async def _connection(self) -> AbstractConnection:
        made: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        made.socket_timeout = None  # one limit for a whole call costs less than one for each part of it
        return made

    async def _call(self, connection: AbstractConnection, args: list[bytes]) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                try:
                    return await _answer(connection, "EVALSHA", self._sha, 0, *args)
                except NoScriptError:
                    await _answer(connection, "SCRIPT", "LOAD", self._script)
                    return await _answer(connection, "EVALSHA", self._sha, 0, *args)
        except TimeoutError:
            raise NoAnswer(f"no answer within {PATIENCE:g} seconds") from None


async def _answer(connection: AbstractConnection, *words: str | int | bytes) -> Any:
    await connection.send_packed_command(connection.pack_command(*words), check_health=False)
    return await connection.read_response()
