"""How a worker process learns that it has to stop, and how it waits without missing that."""

from __future__ import annotations

import asyncio
import signal


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, and nothing else happens: what is under way is for its owner to end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def stopped(stop: asyncio.Event, within: float) -> bool:
    """Wait for the event, at most `within` seconds; whether it came."""
    try:
        async with asyncio.timeout(within):
            await stop.wait()
    except TimeoutError:
        return False
    return True
