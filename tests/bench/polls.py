"""What asking a vendor about a job costs: our poller's whole turn beside plain httpx; and how far a list call goes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import httpx

from service.deployment import opened
from service.model import Observation, Source, Status, new_id
from service.settings import Settings

from .measure import OURS, Row, rotated
from .stage import Stage, stage

_TOGETHER: Final = 128


async def _due(settings: Settings, vendor: str, count: int) -> None:
    """So many jobs about which the vendor is to be asked now."""
    async with opened(settings) as deployment:
        for start in range(0, count, _TOGETHER):
            facts = []
            for number in range(start, min(count, start + _TOGETHER)):
                seen = Observation(source=Source.SUBMIT, status=Status.PROCESSING, vendor_job_id=f"job-{number}")
                job_id = new_id("job", time.time_ns() // 10**6)
                facts.append(deployment.tracker.record(seen, vendor=vendor, job_id=job_id, create=True, poll_now=True))
            await asyncio.gather(*facts)


def cpu_row(folder: Path, count: int, rounds: int) -> Row:
    made = Row("CPU per status poll, 16 in flight", "µs", {"plain httpx": 0.15})
    with stage(folder) as at:
        for number in range(rounds):
            for name in rotated((OURS, "plain httpx"), number):
                at.redis.flushall()
                if name == OURS:
                    asyncio.run(_due(at.settings, "lipsync_studio", count))
                    asked = _asked(at)
                    used = at.run("our-polls", "lipsync_studio")
                    if _asked(at) - asked != count:
                        raise AssertionError(f"{_asked(at) - asked} polls of {count} jobs")
                else:
                    used = at.run("httpx-polls", f"{at.outside}/lipsync_studio", str(count))
                made.add(name, used / count * 1e6)
    return made


def list_row(folder: Path) -> Row:
    """Requests for each of 100 due jobs of a vendor that has a list call."""
    made = Row("requests per due kitta job, 100 due", "", {"a request each": 1 / 50}, digits=3)
    with stage(folder) as at:
        asyncio.run(_due(at.settings, "kitta", 100))
        at.run("our-polls", "kitta")
        made.add(OURS, _asked(at) / 100)
        made.add("a request each", 1.0)
    return made


def _asked(at: Stage) -> int:
    return int(httpx.get(f"{at.outside}/asked", trust_env=False).json()["asked"])
