"""`callsheet demo`: jobs through every vendor, with what goes wrong in real life, and proof of the outcome.

It ends with exit code 0 only if every job ended as it should and every stored file is, byte by byte, what the vendor
served.
"""

from __future__ import annotations

import hashlib
import json
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click
import httpx
import msgspec
from redis import RedisError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.cli import demo_plan
from service.cli.demo_plan import SCENES, Scene
from service.cli.local import Local
from service.cli.output import console, json_option, print_json, table
from service.jobs import tasks
from service.jobs.store import connect_sync
from service.model import VERDICTS
from service.settings import load
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
    status: str = ""
    verdict_by: str = ""
    archive: str = ""
    bytes: int = 0
    sha256: str = ""
    verified: bool = False
    seconds: float = 0.0
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
    lines: deque[str] = deque(maxlen=60)
    prefix = f"callsheet-demo-{uuid4().hex[:8]}"
    settings = {"KEY_PREFIX": prefix, "POLL_GRACE_SECONDS": GRACE, "LOG_FORMAT": "json"}
    with tempfile.TemporaryDirectory(prefix="callsheet-demo-") as folder:
        try:
            with Local(Path(folder), settings, seconds=SECONDS) as local:
                if not as_json:
                    console.print("Starting the store, the sandbox, web, worker and poller…")
                local.start(lambda name, line: lines.append(f"{name}: {line}"))
                rows = _Demo(local, quiet=as_json).run(timeout)
                _tidy(local)
        except (click.ClickException, httpx.HTTPError, RedisError):
            click.echo("\n".join(lines), err=True)
            raise
    if as_json:
        print_json([msgspec.structs.asdict(row) for row in rows])
    else:
        _show(rows)
    if any(row.problems for row in rows):
        click.echo("\nThe last lines of the processes:\n" + "\n".join(lines), err=True)
        raise SystemExit(1)


class _Demo:
    """The internal service that the demo plays."""

    def __init__(self, local: Local, *, quiet: bool) -> None:
        self._local = local
        self._quiet = quiet
        self._settings = load(VENDORS.values(), local.environ)
        self._http = httpx.Client(timeout=20, trust_env=False)
        self._api = httpx.Client(
            base_url=local.url, headers={"Authorization": f"Bearer {local.api_key}"}, timeout=20, trust_env=False
        )
        self._events: dict[str, dict[str, Any]] = {}  #: job id → the job as its last event had it
        self._began: dict[str, float] = {}

    def run(self, timeout: float) -> list[Row]:
        with self._listening() as messages:
            jobs = {scene: self._submit(scene) for scene in SCENES if scene.after is None}
            with self._progress() as progress:
                bar = progress.add_task("jobs at their end", total=len(SCENES))
                deadline = time.monotonic() + timeout
                while len(self._ended()) < len(SCENES) and time.monotonic() < deadline:
                    self._local.check()
                    for event in messages():
                        self._hear(event, progress)
                    jobs |= {scene: self._submit(scene, self._job(jobs, scene.after)) for scene in self._ready(jobs)}
                    progress.update(bar, completed=len(self._ended()))
            ledger = self._http.get(f"{self._local.sandbox_url}/_sandbox/jobs").json()["data"]
            return [self._row(scene, jobs.get(scene, ""), {job["id"]: job for job in ledger}) for scene in SCENES]

    @contextmanager
    def _listening(self) -> Iterator[Any]:
        """The events on pub/sub, subscribed to before anything is submitted."""
        with connect_sync(self._settings) as redis, redis.pubsub(ignore_subscribe_messages=True) as subscription:
            subscription.subscribe(f"{self._settings.key_prefix}:events")

            def messages() -> Iterator[dict[str, Any]]:
                message = subscription.get_message(timeout=0.2)
                while message:
                    yield json.loads(message["data"])
                    message = subscription.get_message(timeout=0)

            yield messages

    def _submit(self, scene: Scene, faces: dict[str, Any] | None = None) -> str:
        """Register a job, submit it to the vendor with its callback URL, attach the vendor's id."""
        job = _answer(self._api.post("/v1/jobs", json={"vendor": scene.vendor, "metadata": {"scene": scene.label}}))
        self._began[job["id"]] = time.monotonic()
        vendor, body = demo_plan.VENDORS[scene.vendor], dict(scene.body)
        if vendor.callback_field:
            body[vendor.callback_field] = job["callback_url"]
        if faces:
            found = faces["result"]
            body |= {"session_id": found["session_id"], "face_id": found["face_list"][0]["face_id"]}
        url = f"{self._local.sandbox_url}/{scene.vendor}{scene.path}"
        vendor_job_id = vendor.find_id(_answer(self._http.post(url, json=body, headers=vendor.headers)))
        _answer(self._api.patch(f"/v1/jobs/{job['id']}", json={"vendor_job_id": vendor_job_id}))
        return str(job["id"])

    def _ready(self, jobs: dict[Scene, str]) -> list[Scene]:
        """Scenes that waited for another's faces, and have them now."""
        return [scene for scene in SCENES if scene not in jobs and self._job(jobs, scene.after).get("result")]

    def _job(self, jobs: dict[Scene, str], label: str | None) -> dict[str, Any]:
        wanted = next((id_ for scene, id_ in jobs.items() if scene.label == label), "")
        return self._events.get(wanted, {})

    def _hear(self, event: dict[str, Any], progress: Progress) -> None:
        job = event["data"]
        if job["id"] in self._began:
            self._events[job["id"]] = job
            seconds = time.monotonic() - self._began[job["id"]]
            line = f"{seconds:6.1f} s  {event['type']:<15} {job['vendor']:<15} {job['metadata'].get('scene', '')}"
            if not self._quiet:
                progress.console.print(line, highlight=False)

    def _ended(self) -> list[str]:
        over = [job for job in self._events.values() if job["status"] in VERDICTS and job["archive"] != "waiting"]
        return [job["id"] for job in over]

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=console, disable=self._quiet, transient=True)

    # -- the proof ---------------------------------------------------------------------------------------

    def _row(self, scene: Scene, job_id: str, ledger: dict[str, dict[str, Any]]) -> Row:
        row = Row(vendor=scene.vendor, label=scene.label, job_id=job_id)
        if not job_id:
            row.problems = ["was never submitted"]
            return row
        job = _answer(self._api.get(f"/v1/jobs/{job_id}"))
        timeline = _answer(self._api.get(f"/v1/jobs/{job_id}/timeline"))["data"]
        row.status, row.archive = job["status"], job["archive"]
        row.verdict_by = next(
            (e["source"] for e in timeline if e["status"] == job["status"] and e["applied"]), "nobody"
        )
        row.seconds = _seconds(job)
        served = (ledger.get(job["vendor_job_id"]) or {}).get("outputs", [])
        for number, output in enumerate(job["outputs"] if job["archive"] == "stored" else []):
            row.bytes += output["stored"]["bytes"]
            row.sha256 = output["stored"]["sha256"]
            row.verified = self._sha256(job_id, number) == row.sha256 == served[number]["sha256"]
        row.problems = [*_differences(scene, row), *self._echoes(job_id, timeline)]
        return row

    def _sha256(self, job_id: str, number: int) -> str:
        """Of the bytes that a user gets from the API, wherever they are kept."""
        answer = self._api.get(f"/v1/jobs/{job_id}/outputs/{number}")
        if answer.is_redirect:
            answer = self._http.get(answer.headers["location"])
        return hashlib.sha256(answer.content).hexdigest()

    def _echoes(self, job_id: str, timeline: list[dict[str, Any]]) -> list[str]:
        """Each event type once, on the stream; no callback token in the timeline."""
        with connect_sync(self._settings) as redis:
            entries: Any = redis.xrange(f"{self._settings.key_prefix}:stream")
        types = [
            event["type"] for _, entry in entries if (event := json.loads(entry[b"event"]))["data"]["id"] == job_id
        ]
        twice = sorted({type_ for type_ in types if types.count(type_) > 1})
        problems = [f"{type_} was announced twice" for type_ in twice]
        url = self._api.get(f"/v1/jobs/{job_id}").text + json.dumps(timeline)
        return [*problems, "a callback token got out"] if f"{job_id}." in url.replace(f"{job_id}.***", "") else problems


def _differences(scene: Scene, row: Row) -> list[str]:
    problems = []
    for name, wanted, found in (("status", scene.status, row.status), ("archive", scene.archive, row.archive)):
        if wanted != found:
            problems.append(f"{name} is {found}, not {wanted}")
    if scene.verdict_by not in ("either", row.verdict_by):
        problems.append(f"the verdict came by {row.verdict_by}, not by {scene.verdict_by}")
    if scene.archive == "stored" and not row.verified:
        problems.append("the stored file is not what the vendor served")
    return problems


def _seconds(job: dict[str, Any]) -> float:
    """From the registration to the stored file, or to the verdict where there is no file."""
    end = job["stored_at"] or job["completed_at"]
    if not end:
        return 0.0
    return (datetime.fromisoformat(end) - datetime.fromisoformat(job["created_at"])).total_seconds()


def _answer(response: httpx.Response) -> Any:
    if not response.is_success:
        path = response.request.url.path
        raise click.ClickException(f"{response.request.method} {path}: {response.status_code} {response.text[:300]}")
    return response.json()


def _tidy(local: Local) -> None:
    """Take the demo's keys out of a Redis that is not its own."""
    settings = load(VENDORS.values(), local.environ)
    with connect_sync(settings) as redis:
        queues = [settings.queue(task) for task in tasks.PATHS]
        for pattern in (f"{settings.key_prefix}:*", *(f"rq:*:{queue}*" for queue in queues)):
            for key in redis.scan_iter(pattern, count=1000):
                redis.unlink(key)
        redis.srem("rq:queues", *(f"rq:queue:{queue}" for queue in queues))


def _show(rows: list[Row]) -> None:
    columns = ("vendor", "job", "verdict", "status", "archive", "bytes", "SHA-256", "seconds")
    table(columns, [_cells(row) for row in rows])
    wrong = [row for row in rows if row.problems]
    for row in wrong:
        console.print(f"{row.vendor}, {row.label}: {'; '.join(row.problems)}", style="red")
    files = sum(row.verified for row in rows)
    console.print(
        f"{len(rows) - len(wrong)} of {len(rows)} jobs ended as they should; {files} files stored and verified.",
        style="bold green" if not wrong else "bold red",
    )


def _cells(row: Row) -> list[object]:
    digest = f"{'✓' if row.verified else '✗'} {row.sha256[:6]}…" if row.sha256 else None
    seconds = f"{row.seconds:.1f}"
    return [row.vendor, row.label, row.verdict_by, row.status, row.archive, row.bytes or None, digest, seconds]
