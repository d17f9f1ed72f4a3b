"""`python -m tests.scale`: the same jobs by one process of each kind, and by four, four and two. The ledgers are equal.

The jobs are the fault suite's: all vendors, callbacks lost, doubled, late, out of order, forged and garbled. What is
compared is what became of each: status, archive, its events, and how often its vendor was paid; that each file is what
its vendor made is found by either run itself. What a job costs in CPU and in Redis' memory is told beside.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from tests.bench.measure import cpu_seconds
from tests.chaos.audit import Books, common_findings
from tests.chaos.orders import CALLBACKS, orders
from tests.chaos.stage import Plan, Stage
from tests.hostile.measure import resident
from tests.support.processes import eventually

SEED: Final = 20261120
WITHIN: Final = 3600.0
#: Seconds that a callback is waited for.
GRACE: Final = 8.0
ONE: Final = {"web": 1, "worker": 1, "poller": 1}
MANY: Final = {"web": 4, "worker": 4, "poller": 2}
ROLES: Final = ("web", "worker", "poller", "redis")


@dataclass
class Run:
    """What came of the jobs, by their nonces, and what it took."""

    ledger: dict[str, tuple[object, ...]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)  #: role → seconds
    memory: dict[str, int] = field(default_factory=dict)  #: role → bytes of its largest process
    redis_bytes: float = 0.0  #: of one job that has ended
    connections: int = 0  #: to Redis, at most; a few of them are this program's own


def run(folder: Path, jobs: int, processes: Mapping[str, int]) -> Run:
    """All jobs, to their ends."""
    found, settings = Run(), {"WEB_CONCURRENCY": str(processes["web"])}
    plan = Plan(workers=processes["worker"], pollers=processes["poller"], subscriber=False, settings=settings)
    with Stage(folder, plan, seed=SEED, grace=GRACE) as stage:
        empty, began = redis_bytes(stage), time.monotonic()
        stage.crowd.send(orders(jobs, random.Random(SEED), callbacks=CALLBACKS))

        def over() -> bool:
            stage.revive()
            clients: Any = stage.desk.redis.info("clients")
            found.connections = max(found.connections, clients["connected_clients"])
            return not stage.crowd.busy and not stage.ledger.open()

        eventually(over, "the end of every job", timeout=WITHIN)
        found.seconds = time.monotonic() - began
        found.redis_bytes = (redis_bytes(stage) - empty) / jobs
        for name, process in (*stage.running.items(), ("redis", stage.valkey.process)):
            role = name.partition("-")[0]
            found.cpu[role] = found.cpu.get(role, 0.0) + cpu_seconds(process.pid)
            found.memory[role] = max(found.memory.get(role, 0), *map(resident, [process.pid, *children(process.pid)]))
        books = Books(stage)
        found.findings = [*books.row("scale", "", 0.0).findings, *common_findings(books, hasty=True)]
        for nonce, entry in stage.ledger.entries.items():
            job, heard = books.jobs[entry.job_id], stage.ledger.told.get(entry.job_id, [])
            events = sorted(type_ for type_ in heard if type_ != "job.processing")  # which not everybody sees
            paid = len(books.made.get(nonce, ()))
            found.ledger[nonce] = (job["vendor"], job["status"], job["archive"], len(job["outputs"]), events, paid)
    return found


def live_bytes(folder: Path, jobs: int) -> float:
    """What one job takes in Redis that is accepted, and waits with its order and its task."""
    with Stage(folder, Plan(workers=0, pollers=0, subscriber=False), seed=SEED, grace=GRACE) as stage:
        empty = redis_bytes(stage)
        stage.crowd.send(orders(jobs, random.Random(SEED), direct=0))
        eventually(lambda: not stage.crowd.busy, "the acceptance of every job", timeout=WITHIN)
        return (redis_bytes(stage) - empty) / jobs


def redis_bytes(stage: Stage) -> int:
    """What Redis has in memory, but for the stream, whose length is bounded."""
    redis: Any = stage.desk.redis
    return int(redis.info("memory")["used_memory"]) - int(redis.memory_usage(stage.desk.key("stream"), samples=0) or 0)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@click.command()
@click.option("--jobs", default=10_000, show_default=True)
def main(jobs: int) -> None:
    """Ends with 1 where the ledgers differ, or either is not as it should be."""
    console, runs = Console(highlight=False, width=120), dict[str, Run]()
    for name, processes in {"one of each": ONE, "4 web, 4 workers, 2 pollers": MANY}.items():
        with TemporaryDirectory(prefix="callsheet-scale-") as folder:
            console.print(f"{jobs:,} jobs by {name} …")
            runs[name] = run(Path(folder), jobs, processes)
    with TemporaryDirectory(prefix="callsheet-scale-") as folder:
        live = live_bytes(Path(folder), jobs)
    table = Table(title=f"{jobs:,} jobs, seed {SEED}", title_justify="left")
    for column in ("", "s", *(f"{role}: ms of CPU a job, MB" for role in ROLES), "Redis: bytes a job, connections"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in runs.items():
        spent = [f"{found.cpu[role] * 1000 / jobs:.2f}, {found.memory[role] / 2**20:.0f}" for role in ROLES]
        table.add_row(name, f"{found.seconds:.0f}", *spent, f"{found.redis_bytes:.0f}, {found.connections}")
    console.print(table)
    console.print(f"A job that waits to be sent takes {live:.0f} bytes.")
    one, many = runs.values()
    different = [nonce for nonce in one.ledger | many.ledger if one.ledger.get(nonce) != many.ledger.get(nonce)]
    findings = [f"{name}: {finding}" for name, found in runs.items() for finding in found.findings]
    findings += [
        f"{nonce}: {one.ledger.get(nonce)} by one, {many.ledger.get(nonce)} by many" for nonce in different[:5]
    ]
    for finding in findings:
        console.print(f"[red]BAD[/red] {finding}", soft_wrap=True)
    alike = len(one.ledger) - len(different)
    console.print(f"{alike:,} of {jobs:,} jobs ended alike: {'BAD' if findings else 'good'}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
