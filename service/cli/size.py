"""`callsheet size`: what a deployment needs for so many jobs a day, by figures that `make scale` has measured."""

from __future__ import annotations

from math import ceil
from typing import Final

import click

from service.cli.output import console, json_option, print_json

#: CPU of one job in seconds: the dearer of both runs of 10,000 jobs, on a busy machine. See docs/scaling.md.
CPU: Final = {"web": 0.0034, "worker": 0.0071, "poller": 0.0014, "redis": 0.0031}
#: CPU of a worker for one MB that it stores, in seconds.
CPU_PER_MB: Final = 0.004
#: Bytes in Redis of a job, for as long as it is kept, and of the stream of events.
BYTES_PER_JOB: Final = 5_900
STREAM_BYTES: Final = 100 * 2**20
#: Bytes of memory of a process, and of a file in flight.
PROCESS_BYTES: Final = 75 * 2**20
FILE_BYTES: Final = 2 * 2**20
#: How much of one core a process should take at the busiest hour: a small dyno has little more for itself.
SHARE: Final = 0.25
MB_PER_SECOND: Final = 5.0  #: one file on its way from a vendor into a bucket
SECONDS_PER_DAY: Final = 86_400


def needs(jobs_per_day: int, peak: float, megabytes: float, days: int, concurrency: int) -> dict[str, float]:
    """Processes of each kind, memory in MB, how busy Redis is. `peak` is the busiest hour, in means."""
    rate = jobs_per_day / SECONDS_PER_DAY * peak
    busy = {kind: rate * seconds for kind, seconds in CPU.items()}
    busy["worker"] += rate * megabytes * CPU_PER_MB
    in_flight = rate * megabytes / MB_PER_SECOND
    workers = max(ceil(busy["worker"] / SHARE), ceil(in_flight / concurrency), 1)
    return {
        "web": max(ceil(busy["web"] / SHARE), 1),
        "worker": workers,
        "poller": max(ceil(busy["poller"] / SHARE), 1),
        "worker_mb": (PROCESS_BYTES + FILE_BYTES * min(concurrency, ceil(in_flight / workers))) / 2**20,
        "redis_mb": ceil((jobs_per_day * days * BYTES_PER_JOB + STREAM_BYTES) / 2**20),
        "redis_busy": busy["redis"],
        "jobs_per_second": rate,
    }


@click.command()
@click.option("--jobs-per-day", type=click.IntRange(1), required=True)
@click.option("--peak", default=4.0, show_default=True, help="The busiest hour, as a multiple of the mean.")
@click.option("--megabytes", default=20.0, show_default=True, help="Of one result.")
@click.option("--days", default=30, show_default=True, help="JOB_RETENTION_DAYS.")
@click.option("--concurrency", default=32, show_default=True, help="WORKER_CONCURRENCY.")
@json_option
def size(jobs_per_day: int, peak: float, megabytes: float, days: int, concurrency: int, as_json: bool) -> None:
    """Say how many processes and how much Redis so many jobs take, and what is full first."""
    found = needs(jobs_per_day, peak, megabytes, days, concurrency)
    if as_json:
        print_json(found)
        return
    console.print(f"{found['jobs_per_second']:.2f} jobs a second in the busiest hour, {megabytes:g} MB each")
    for kind in ("web", "worker", "poller"):
        memory = found["worker_mb"] if kind == "worker" else PROCESS_BYTES / 2**20
        console.print(f"{found[kind]:>6.0f} × {kind}, {memory:.0f} MB each")
    console.print(
        f"{found['redis_mb']:>6,.0f} MB of Redis for {days} days of jobs; its one core {found['redis_busy']:.0%} busy"
    )
    per_gb = 2**30 / BYTES_PER_JOB / days
    console.print(f"Full first: Redis' memory. A GB holds {per_gb:,.0f} jobs a day for {days} days.")
