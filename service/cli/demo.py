"""`callsheet demo`: jobs for every vendor, with what goes wrong in real life, and proof of the outcome.

It ends with exit code 0 only if every job ended as it should and no vendor was asked for one too many, if every stored
file is, byte by byte, what the vendor served, if each event was published once, and if no callback's token got out.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click
import httpx
import msgspec
from redis import Redis, RedisError
from rich.console import Console

from service.cli.client import Client
from service.cli.demo_plan import SCENES, Scene
from service.cli.jobs import ended
from service.cli.local import Local
from service.cli.output import console, json_option, price, print_json, since, table
from service.jobs import tasks
from service.jobs.connection import connect_sync
from service.settings import Settings, load
from service.vendors import VENDORS

TIMEOUT: Final = 90.0
#: Long enough for callbacks to come first, short enough to see the lost one recovered.
GRACE: Final = "4"
SECONDS: Final = 1.5


class Row(msgspec.Struct, kw_only=True):
    """One line of the table at the end."""

    vendor: str
    label: str
    job_id: str
    verdict_by: str
    status: str
    archive: str
    bytes: int
    sha256: str
    verified: bool
    cost: str
    seconds: float
    problems: list[str] = []


@click.command()
@click.option(
    "--timeout", default=TIMEOUT, show_default=True, help="Seconds after which a job has not ended as it should."
)
@json_option
def demo(timeout: float, as_json: bool) -> None:
    """Run jobs through every vendor, with callbacks lost, doubled, late and garbled, and check every file.

    REDIS_URL and STORAGE_URL are used where they are set; otherwise everything is embedded, and gone afterwards.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Console(quiet=True) if as_json else console
    lines: list[str] = []
    environ = {"KEY_PREFIX": f"callsheet-demo-{uuid4().hex[:8]}", "POLL_GRACE_SECONDS": GRACE, "LOG_FORMAT": "json"}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="callsheet-demo-") as folder,
            Local(Path(folder), environ, seconds=SECONDS) as local,
        ):
            screen.print("Starting the store, the sandbox, web, worker and poller…")
            local.start(lambda name, line: lines.append(f"{name}: {line}"))
            settings = load(VENDORS.values(), local.environ)
            with connect_sync(settings) as redis:
                try:
                    rows = _Demo(local, redis, settings, lines).run(timeout, screen)
                finally:
                    local.stop()  # or they would go on writing
                    if os.environ.get("REDIS_URL"):
                        _tidy(redis, settings)
        _tell(rows, as_json)
    except (click.ClickException, httpx.HTTPError, RedisError):
        click.echo("\nThe last lines of the processes:\n" + "\n".join(lines[-60:]), err=True)
        raise


class _Demo:
    """The internal service that the demo plays."""

    def __init__(self, local: Local, redis: Redis, settings: Settings, lines: list[str]) -> None:
        self._local = local
        self._redis = redis
        self._stream = f"{settings.key_prefix}:stream"
        self._lines = lines  #: what the processes have printed
        self._api = Client(local.url, local.api_key)
        self._events: list[dict[str, Any]] = []
        self._ledger: list[dict[str, Any]] = []  #: the jobs as the vendors know them

    def run(self, timeout: float, screen: Console) -> list[Row]:
        """Submit everything, and follow the events until every job has ended or the time is over."""
        media, deadline = f"{self._local.sandbox_url}/media/input/", time.monotonic() + timeout
        jobs = [(scene, self._api.call("POST", "/v1/jobs", json=scene.request(media))) for scene in SCENES]
        over, after = set[str](), "-"
        while len(over) < len(jobs) and time.monotonic() < deadline:
            self._local.check()
            entries: Any = self._redis.xrange(self._stream, after)
            for entry, fields in entries:
                event = json.loads(fields[b"event"])
                job, after = event["data"], f"({entry.decode()}"
                self._events.append(event)
                if ended(job) is not None:
                    over.add(job["id"])
                seconds, count = since(job, event["timestamp"]), f"{len(over):2} of {len(jobs)}"
                words = f"{event['type']:<15} {job['vendor']:<15} {job['metadata']['scene']}"
                screen.print(f"{seconds:6.1f} s  {count}  {words}")
            time.sleep(0.1)
        self._ledger = httpx.get(f"{self._local.sandbox_url}/_sandbox/jobs", trust_env=False).json()["data"]
        return [self._row(scene, job["id"], job["callback_url"]) for scene, job in jobs]

    # -- the proof ---------------------------------------------------------------------------------------

    def _row(self, scene: Scene, job_id: str, callback_url: str) -> Row:
        job = self._api.get(f"/v1/jobs/{job_id}")
        timeline = self._api.get(f"/v1/jobs/{job_id}/timeline")["data"]
        taken = {entry.get("vendor_job_id") for entry in timeline}
        tasks = [task for task in self._ledger if task["id"] in taken]
        served = [output["sha256"] for task in tasks for output in task["outputs"]]
        copies = [output["stored"] for output in job["outputs"] if output["stored"]]
        digests = [copy["sha256"] for copy in copies]
        verdicts = [e["source"] for e in timeline if e["status"] == job["status"] and e["why"].startswith("was ")]
        row = Row(
            vendor=scene.vendor,
            label=scene.label,
            job_id=job_id,
            verdict_by=verdicts[0] if verdicts else "nobody",
            status=job["status"],
            archive=job["archive"],
            bytes=sum(copy["bytes"] for copy in copies),
            sha256=" ".join(digests),
            verified=bool(digests) and digests == served == [self._digest(copy["url"]) for copy in copies],
            cost=price(job["cost"]),
            seconds=since(job, job["stored_at"] or job["completed_at"] or job["created_at"]),
        )
        asked = sum(task["vendor"] == scene.vendor for task in self._ledger)
        expected = (
            ("status", row.status, scene.status),
            ("archive", row.archive, scene.archive),
            ("the verdict's source", row.verdict_by, scene.verdict_by),
            ("the stored file verified", row.verified, scene.archive == "stored"),
            ("its number of jobs at the vendor", len(tasks), scene.tasks),
            ("the vendor's number of jobs", asked, sum(one.tasks for one in SCENES if one.vendor == scene.vendor)),
        )
        row.problems = [f"{what} is {found}, not {wanted}" for what, found, wanted in expected if found != wanted]
        known = json.dumps([job, timeline], ensure_ascii=False)
        if scene.says not in known:
            row.problems.append(f"its timeline says nothing of {scene.says}")
        if callback_url.rpartition(".")[2] in "".join([known, json.dumps(self._events), *self._lines]):
            row.problems.append("a callback's token got out")
        events = Counter(event["type"] for event in self._events if event["data"]["id"] == job_id)
        row.problems += [f"{type_} was announced {times} times" for type_, times in events.items() if times > 1]
        return row

    def _digest(self, url: str) -> str:
        """Of the bytes that a user gets, wherever they are kept."""
        headers = {"Authorization": f"Bearer {self._local.api_key}"}
        answer = httpx.get(url, headers=headers, timeout=20, trust_env=False, follow_redirects=True)
        return hashlib.sha256(answer.content).hexdigest()


def _tidy(redis: Redis, settings: Settings) -> None:
    """Take the demo's keys out of a Redis that is not its own."""
    queues = [settings.queue(task) for task in tasks.PATHS]
    for pattern in (f"{settings.key_prefix}:*", *(f"rq:*:{queue}*" for queue in queues)):
        for key in redis.scan_iter(pattern, count=1000):
            redis.unlink(key)
    redis.srem("rq:queues", *(f"rq:queue:{queue}" for queue in queues))


def _tell(rows: list[Row], as_json: bool) -> None:
    """Print the outcome. Raises `ClickException` where it is not what it should be."""
    if as_json:
        print_json([msgspec.structs.asdict(row) for row in rows])
    else:
        columns = ("vendor", "job", "verdict", "status", "archive", "SHA-256", "estimated / charged", "seconds")
        table(columns, map(_cells, rows))
    if wrong := [f"{row.vendor}, {row.label}: {'; '.join(row.problems)}" for row in rows if row.problems]:
        raise click.ClickException("\n".join([f"{len(wrong)} of {len(rows)} did not end as they should:", *wrong]))
    if not as_json:
        files = sum(row.verified for row in rows)
        words = f"All {len(rows)} jobs ended as they should; {files} files stored and verified."
        console.print(words, style="bold green")


def _cells(row: Row) -> list[object]:
    digest = f"{'✓' if row.verified else '✗'} {row.sha256[:6]}…" if row.sha256 else None
    end = (row.verdict_by, row.status, row.archive, digest, row.cost, f"{row.seconds:.1f}")
    return [row.vendor, row.label, *end]
