"""What the vendors, the media and the observer's routes share: jobs, faults, callbacks and the count of calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from sandbox.callbacks import Sender
from sandbox.faults import Board
from sandbox.jobs import Jobs


class World:
    """One sandbox. `seconds` is how long a job takes, `speed` divides the waits between retries."""

    def __init__(self, seconds: float, speed: float) -> None:
        self.seconds = seconds
        self.speed = speed
        self.jobs = Jobs()
        self.board = Board()
        self.sender = Sender(speed)
        self.stopping = asyncio.Event()  #: set when open answers must end
        self.on_reset: list[Callable[[], None]] = []  #: what else is forgotten at a reset
        self._calls: Counter[tuple[str, str]] = Counter()

    def count(self, vendor: str, call: str) -> None:
        self._calls[vendor, call] += 1

    def calls(self) -> dict[str, dict[str, int]]:
        """How often each call was made, by vendor."""
        found: dict[str, dict[str, int]] = {}
        for (vendor, call), times in sorted(self._calls.items()):
            found.setdefault(vendor, {})[call] = times
        return found

    def reset(self) -> None:
        """Forget jobs, orders and counts, and send nothing more of what was due."""
        self.sender.cancel()
        self.jobs.clear()
        self.board.clear()
        self._calls.clear()
        for forget in self.on_reset:
            forget()

    def stop(self) -> None:
        """End open answers and pending callbacks at once."""
        self.stopping.set()
        self.sender.cancel()
