"""What a file costs on its way home: CPU per GiB, memory, and whether slow ones hold up each other."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from service.deployment import opened
from service.model import Observation, Output, Source, Status, new_id
from service.settings import Settings
from tests.hostile.measure import peak
from tests.support.processes import Process
from tests.support.servers import s3_server

from .measure import OURS, SERVER_CORE, Row, cpu_seconds, rotated
from .stage import Stage, our_worker, stage

GIB: Final = 2**30
_VENDOR: Final = "kitta"


async def _wanted(settings: Settings, urls: Sequence[str]) -> None:
    """A succeeded job for each of the links; the commits push the tasks that store them."""
    async with opened(settings) as deployment:
        for url in urls:
            job_id = new_id("job", time.time_ns() // 10**6)
            seen = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id=f"v-{job_id}")
            await deployment.tracker.record(seen, vendor=_VENDOR, job_id=job_id, create=True)
            seen = Observation(source=Source.POLL, status=Status.SUCCEEDED, outputs=(Output(url=url),))
            await deployment.tracker.record(seen, vendor=_VENDOR, job_id=job_id)


def _bring_home(at: Stage, worker: Process, urls: Sequence[str]) -> float:
    """Seconds until the worker has stored what is behind all the links."""
    stored = f"{at.settings.key_prefix}:jobs:{_VENDOR}:succeeded:stored"
    wanted, began = at.redis.zcard(stored) + len(urls), time.monotonic()
    asyncio.run(_wanted(at.settings, urls))
    worker.wait_until(lambda: at.redis.zcard(stored) == wanted, "all files at home", timeout=300)
    return time.monotonic() - began


def cpu_rows(folder: Path, size: int, rounds: int) -> list[Row]:
    """To files, and to S3: `rclone serve s3`, which is not counted."""
    to_files = Row("CPU per GiB to files, with SHA-256", "s", {"httpx into obstore": 0.5}, digits=2)
    to_s3 = Row("CPU per GiB to S3, with SHA-256", "s", {"httpx into obstore": 0.5}, digits=2)
    with stage(folder / "to-files") as at:
        _measure(at, to_files, size, rounds)
    with s3_server(folder / "to-files") as s3, stage(folder / "to-s3", s3) as at:
        _measure(at, to_s3, size, rounds)
    return [to_files, to_s3]


def _measure(at: Stage, row: Row, size: int, rounds: int) -> None:
    url, share = f"{at.outside}/file/{size}", size / GIB
    with our_worker(at) as worker:
        _bring_home(at, worker, [f"{at.outside}/file/1000"])  # the connections are made
        for number in range(rounds):
            for name in rotated((OURS, "httpx into obstore", "curl to a file"), number):
                before = cpu_seconds(worker.pid)
                if name == OURS:
                    _bring_home(at, worker, [url])
                    row.add(name, (cpu_seconds(worker.pid) - before) / share)
                elif name == "curl to a file":
                    row.add(name, _curl(url, at.folder / "by-curl") / share)
                else:
                    row.add(name, at.run("httpx-file", url, at.settings.storage_url) / share)


def _curl(url: str, target: Path) -> float:
    before = os.times()
    words = ["taskset", "--cpu-list", str(SERVER_CORE), "curl", "--silent", "--fail", "--output", str(target), url]
    subprocess.run(words, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def slow_rows(folder: Path, count: int, size: int, seconds: float) -> list[Row]:
    """So many files at once that drip for so long, in one process: its memory, and whether one waits for another."""
    memory = Row(f"memory of a worker, {count} slow files at once", "MB", {"150 MB": 1.0}, digits=0)
    waiting = Row(f"time until {count} slow files are home", "s", {"one slow file": 1.5})
    with stage(folder, worker_concurrency=count) as at, our_worker(at) as worker:
        link = f"{at.outside}/slow/{size}/{seconds}"
        waiting.add("one slow file", _bring_home(at, worker, [link]))
        waiting.add(OURS, _bring_home(at, worker, [link] * count))
        memory.add(OURS, peak(worker.pid) / 2**20)
        memory.add("150 MB", 150)
    return [memory, waiting]


def large_row(folder: Path, size: int) -> Row:
    """One file of any size: the memory that its worker has at most, beside that of a small one."""
    made = Row(f"memory of a worker, one file of {size / GIB:g} GiB", "MB", {"a file of 16 MiB": 1.1}, digits=0)
    with stage(folder) as at, our_worker(at) as worker:
        _bring_home(at, worker, [f"{at.outside}/file/{2**24}"])
        made.add("a file of 16 MiB", peak(worker.pid) / 2**20)
        _bring_home(at, worker, [f"{at.outside}/file/{size}"])
        made.add(OURS, peak(worker.pid) / 2**20)
    return made
