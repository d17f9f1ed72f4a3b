"""`python -m tests.fanout`: twenty endpoints, ten of them dead, slow or flaky, and what that costs the other ten.

The same jobs are run twice, with and without the bad ones; a worker and a poller are processes of their own. Fails
where an endpoint that lives has not had every event of its filter, or not in order. Retries of the flaky ones are made
due as if their time had come.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

import click

from service.deployment import Deployment, opened
from service.jobs.endpoints import Endpoints
from service.jobs.stream import says
from service.model import Endpoint, Observation, Source, Status, new_id
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.hooks import Answer, Hook, Hooks, always, hooks_server
from tests.support.processes import BIN, Process, free_port, processes_in
from tests.support.servers import valkey_server

SLUGS: Final = sorted(VENDORS)
TYPES: Final = ("job.submitted", "job.processing", "job.failed")


@dataclass
class Subscriber:
    kind: str
    path: str
    filters: dict[str, Any]
    answer: Answer | None  #: None: nobody listens there
    endpoint: Endpoint | None = None
    expected: list[tuple[str, str]] = field(default_factory=list)


def flaky(share: float) -> Answer:
    """Fails now and then, by an answer or by hanging up."""
    chance, fine, poor = random.Random(7), always(204), always(500)

    async def answered(hook: Hook) -> str:
        luck = chance.random()
        return "" if luck < share / 2 else await (poor if luck < share else fine)(hook)

    return answered


def subscribers(*, bad: bool) -> list[Subscriber]:
    filters: list[dict[str, Any]] = [
        *({} for _ in range(4)),
        *({"types": (type_,)} for type_ in TYPES),
        *({"vendors": (slug,)} for slug in SLUGS[:2]),
        {"metadata": {"shop": 1}},
    ]
    found = [Subscriber("good", f"/good/{number}", each, always(204)) for number, each in enumerate(filters)]
    if bad:
        never, one = always(204, seconds=3600), {"types": TYPES[2:], "vendors": (SLUGS[2],)}
        dead = [None, None, never, always(500), always(503, retry_after="30")]
        found += [Subscriber("dead", f"/dead/{number}", {}, answer) for number, answer in enumerate(dead)]
        found += [Subscriber("slow", f"/slow/{n}", one, always(204, seconds=s)) for n, s in enumerate((0.2, 0.5, 1.0))]
        found += [Subscriber("flaky", f"/flaky/{n}", {"vendors": (SLUGS[3],)}, flaky(0.3)) for n in range(2)]
    return found


class Run:
    """One run over a deployment of its own."""

    def __init__(self, deployment: Deployment, hooks: Hooks, everybody: list[Subscriber]) -> None:
        self._deployment = deployment
        self._hooks = hooks
        self._everybody = everybody
        self.endpoints = Endpoints(deployment.redis, deployment.store, deployment.settings)

    async def subscribe(self) -> None:
        nobody = f"http://127.0.0.1:{free_port()}"
        for each in self._everybody:
            now = await self._deployment.store.now_ms()
            url = self._hooks.at(each.path, each.answer) if each.answer else nobody
            each.endpoint = Endpoint(id=new_id("ep", now), url=url, created_at=datetime.now(UTC), **each.filters)
            await self.endpoints.add(each.endpoint)

    async def publish(self, jobs: int, seconds: float) -> None:
        """So many jobs, three events each, evenly over the time."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(jobs):
                await asyncio.sleep(max(0.0, began + number * seconds / jobs - time.monotonic()))
                group.create_task(self._job(SLUGS[number % len(SLUGS)], {"shop": number % 5}))

    async def _job(self, vendor: str, metadata: dict[str, object]) -> None:
        job_id = new_id("job", await self._deployment.store.now_ms())
        record, called = self._deployment.tracker.record, Source.CALLBACK
        first = Observation(source=Source.SUBMIT, status=Status.QUEUED, metadata=metadata)
        await record(first, vendor=vendor, job_id=job_id, create=True)
        for status in (Status.PROCESSING, Status.FAILED):
            await asyncio.sleep(0.05)
            await record(Observation(source=called, status=status), vendor=vendor, job_id=job_id)
        for each in self._everybody:
            mine = vendor in each.filters.get("vendors", SLUGS) and says(metadata, each.filters.get("metadata", {}))
            each.expected += [(job_id, type_) for type_ in TYPES if mine and type_ in each.filters.get("types", TYPES)]

    async def settle(self, seconds: float) -> None:
        """Wait until nothing waits for those that live, and let the flaky ones' time pass."""
        living = [each.endpoint.id for each in self._everybody if each.kind != "dead" and each.endpoint]
        until = time.monotonic() + seconds
        while any(await self.endpoints.waiting(*living)) and time.monotonic() < until:
            for each in self._everybody:
                if each.kind == "flaky" and each.endpoint:
                    await self._let_time_pass(each.endpoint.id)
            await asyncio.sleep(1)

    async def _let_time_pass(self, endpoint_id: str) -> None:
        store, redis = self._deployment.store, self._deployment.redis
        now, due = await store.now_ms(), store.key("deliveries", endpoint_id)
        later = await redis.zrange(due, now + 61_000, "+inf", byscore=True)  # sooner is what is being sent
        if waiting := cast("list[bytes]", later):
            await redis.zadd(due, dict.fromkeys(waiting, now), xx=True)
            await redis.zadd(store.key("tasks"), {f"notify-{endpoint_id}": now}, xx=True, lt=True)

    def wrong(self) -> list[str]:
        """What those that live did not get, or not in order."""
        found = []
        for each in (each for each in self._everybody if each.kind != "dead"):
            got = self._hooks.delivered(each.path)
            if lost := set(each.expected) - set(got):
                found.append(f"{each.path} has not had {len(lost)} of {len(each.expected)} events")
            if more := set(got) - set(each.expected):
                found.append(f"{each.path} has had {len(more)} events that its filter does not let through")
            last: dict[str, int] = {}
            for job_id, type_ in got:
                if TYPES.index(type_) < last.get(job_id, 0):
                    found.append(f"{each.path} has had {job_id} out of order")
                last[job_id] = TYPES.index(type_)
        return found

    def rows(self) -> list[list[str]]:
        return [self._row(kind) for kind in dict.fromkeys(each.kind for each in self._everybody)]

    def _row(self, kind: str) -> list[str]:
        some = [each for each in self._everybody if each.kind == kind]
        requests = sum(len(self._hooks.got[each.path]) for each in some)
        first: dict[tuple[str, str], float] = {}
        for each in some:
            for hook in self._hooks.taken[each.path]:
                at = datetime.fromisoformat(hook.event["timestamp"]).timestamp()
                first.setdefault((each.path, hook.headers["webhook-id"]), hook.wall - at)
        waits = sorted(1000 * wait for wait in first.values())
        told = [f"{waits[int(len(waits) * share)]:,.0f}" if waits else "-" for share in (0.5, 0.99)]
        counts = sum(len(each.expected) for each in some), len(first), requests
        return [f"{len(some)} {kind}", *(f"{count:,}" for count in counts), *told]


async def run(jobs: int, seconds: float, *, bad: bool, folder: Path) -> tuple[list[list[str]], list[str]]:
    """The table's rows, and what went wrong."""
    async with AsyncExitStack() as stack:
        valkey = stack.enter_context(valkey_server(folder))
        silent = deployments.accounts(without=tuple(SLUGS))
        settings = deployments.settings(valkey.url, accounts=silent)
        started = stack.enter_context(processes_in(folder))
        for name, module in (("worker", "main"), ("poller", "poller")):
            command: list[str | Path] = [BIN / "python", "-m", f"workers.{module}"]
            process = started.start(name, command, env=deployments.environment(settings))
            process.wait_until(partial(_has_started, process, name), "its start")
        deployment, hooks = (
            await stack.enter_async_context(opened(settings)),
            await stack.enter_async_context(hooks_server()),
        )
        made = Run(deployment, hooks, subscribers(bad=bad))
        await made.subscribe()
        await made.publish(jobs, seconds)
        await made.settle(120 + seconds)
        return made.rows(), made.wrong()


def _has_started(process: Process, name: str) -> bool:
    return f"{name} started" in process.output()


COLUMNS: Final = ("endpoints", "events", "taken", "requests", "p50 ms", "p99 ms")


@click.command()
@click.option("--jobs", default=2000, show_default=True)
@click.option("--seconds", default=100.0, show_default=True, help="Over which the jobs are spread.")
def main(jobs: int, seconds: float) -> None:
    """Compare twenty endpoints, ten of them bad, with the ten good ones alone."""
    failed = False
    for bad in (True, False):
        with TemporaryDirectory() as folder:
            rows, wrong = asyncio.run(run(jobs, seconds, bad=bad, folder=Path(folder)))
        which = "with" if bad else "without"
        click.echo(f"\n{jobs} jobs in {seconds:g} s, {which} the bad ones; times from commit to arrival")
        for row in (COLUMNS, *rows):
            click.echo("  ".join(cell.rjust(10) for cell in row))
        for words in wrong[:10]:
            click.echo(f"WRONG: {words}")
        failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
