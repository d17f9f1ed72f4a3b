"""Jobs that are to be submitted: put down as the API does, and moved as a worker and a poller would, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

from service.api.submissions import SubmitRequest, accepted, place_in_line
from service.deployment import opened
from service.jobs import tasks
from service.model import Status, new_id
from service.settings import Account, Settings
from service.vendors import VENDORS, catalogue
from service.vendors.catalogue import Order
from workers import outbound
from workers.poller import Poller
from workers.submit import Submitter
from workers.vendor_client import VendorClient

from .deployment import environment, settings
from .processes import BIN, Process, Processes
from .sandbox import Desk, Sandbox
from .web import Web, web_process

FACE: Final = "https://example.com/face.mp4"
VOICE: Final = "https://example.com/voice.mp3"

#: What is asked of each vendor where it does not matter what: `input` and `vendor_input`. One call each, no uploads.
PLAIN: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "lipsync_studio": ({"video_url": FACE, "audio_url": VOICE}, {}),
    "kitta": ({"video_url": FACE, "audio_url": VOICE}, {}),
    "chanjing": ({"text": "你好", "voice": "a-voice"}, {"video_file_id": "sandbox-video"}),
    "apimodels": ({"audio_url": VOICE}, {"session_id": "sandbox-session", "face_id": "sandbox-face"}),
}

#: Faces are found in a video first.
KLING: Final[dict[str, Any]] = {"video_url": FACE, "audio_url": VOICE}
IDENTIFY: Final = "kling-identify-face"
LIP_SYNC: Final = "kling-advanced-lip-sync"

LISTED: Final = ("chanjing", "kitta")  # the vendors with a list call
CALLING: Final = ("apimodels", "chanjing", "lipsync_studio")  # those with callbacks


def faulty(url: str, *words: str) -> str:
    """A URL that asks the sandbox for faults."""
    return f"{url}?sandbox={','.join(words)}"


def order(
    desk: Desk, vendor: str, input: dict[str, Any] | None = None, vendor_input: dict[str, Any] | None = None
) -> str:
    """Put down a job that is to be submitted, `PLAIN` unless its input is given. Returns our id."""
    if input is None:
        input, vendor_input = PLAIN[vendor]
    found = catalogue.choose(vendor, None, input, vendor_input or {})
    assert isinstance(found, Order), found
    seen, submission = accepted(SubmitRequest(vendor=vendor, input=input), found)
    job_id = new_id("job", desk.now_ms())
    line = place_in_line(desk.settings.accounts[vendor], found)
    recorded = desk.record(seen, vendor=vendor, job_id=job_id, create=True, order=submission, line=line)
    assert recorded.job_id == job_id
    return job_id


class Crew:
    """The parts of a worker and of a poller, which do what is due when a test says so."""

    def __init__(self, desk: Desk, submitter: Submitter, poller: Poller) -> None:
        self.submitter = submitter
        self.poller = poller
        self._desk = desk

    def queued(self) -> list[str]:
        """Take all that waits in the queue of submissions, as a worker does. Returns our ids."""
        queue = f"rq:queue:{self._desk.settings.queue(tasks.SUBMIT)}"
        found: list[str] = []
        while task := cast("bytes | None", self._desk.redis.lpop(queue)):
            found.append(task.decode().removeprefix(f"{tasks.SUBMIT}-"))
        return found

    async def send(self, job_id: str) -> str:
        """One run of the job's task, whether it is due or not."""
        return await self.submitter.send(job_id)

    async def round(self) -> list[str]:
        """As if time had passed for all that waits: leases end, vendors may be tried, tasks and polls are due, once."""
        self._desk.end_leases()
        self._desk.make_due("tasks")
        self.let_try_again()
        while await self.poller.sweep():
            pass
        outcomes = [await self.submitter.send(job_id) for job_id in self.queued()]
        for vendor in VENDORS:
            self._desk.make_due("polls", vendor)
            await self.poller.look_after(vendor)
        return outcomes

    def let_try_again(self) -> None:
        """As if the time had passed for which vendors are left alone."""
        for vendor in VENDORS:
            for key in (self._desk.key("vendor", vendor), self._desk.key("vendor", vendor, "submit")):
                if self._desk.redis.exists(key):
                    self._desk.redis.hset(key, "retry_at", 0)

    async def settle(self, rounds: int = 60) -> None:
        """Rounds until no submission is due any more."""
        for _ in range(rounds):
            if not self.due():
                return
            await self.round()
        raise AssertionError(f"still due after {rounds} rounds: {self.due()}")

    def due(self) -> list[str]:
        """The jobs on their way to their vendors: their task is due some time, or the vendor's job before theirs is."""
        desk = self._desk
        members = cast("list[bytes]", desk.redis.zrange(desk.key("tasks"), 0, -1))
        found = [task.decode().removeprefix("submit-") for task in members if task.startswith(b"submit-")]
        for vendor in VENDORS:
            polled = cast("list[bytes]", desk.redis.zrange(desk.key("polls", vendor), 0, -1))
            found += [id_.decode() for id_ in polled if desk.job(id_.decode()).status is Status.PENDING]
        return found


@asynccontextmanager
async def crew_of(desk: Desk, *, interrupted: asyncio.Event | None = None) -> AsyncIterator[Crew]:
    """A `Crew` for the length of a block."""
    private = desk.settings.allow_private_networks
    async with (
        opened(desk.settings) as deployment,
        outbound.client(allow_private_networks=private, reuse=False) as http,
    ):
        submitter = Submitter(deployment, http, interrupted or asyncio.Event())
        yield Crew(desk, submitter, Poller(deployment, VendorClient(deployment, http)))


def bought(sandbox: Sandbox, vendor: str) -> list[dict[str, Any]]:
    """What the vendor has taken, the oldest first."""
    return sandbox.jobs(vendor)[::-1]


def resolve(web: Web, job_id: str, **wanted: str) -> None:
    answer = web.api.post(f"/v1/jobs/{job_id}/resolve", json=wanted)
    assert answer.status_code == 200, answer.text


def check_nobody_sends_it(desk: Desk, web: Web, job_id: str) -> None:
    """It was sent, nobody knows what became of it, and the operator has been told."""
    assert desk.job(job_id).status is Status.UNCONFIRMED
    assert desk.due_in(f"submit-{job_id}", "tasks") is None
    assert desk.due_in(job_id, "deadlines") is not None
    last = desk.timeline(job_id)[-1]
    assert (last["problem"], "callsheet jobs resolve" in last["detail"]) == ("no_answer", True)
    listed = web.api.get("/v1/jobs", params={"status": "unconfirmed"}).json()["data"]
    assert job_id in [row["id"] for row in listed]


async def expire(desk: Desk, crew: Crew) -> None:
    desk.make_due("deadlines")
    await crew.poller.expire()


@contextmanager
def web_of(folder: Path, redis_url: str, accounts: dict[str, Account]) -> Iterator[Web]:
    """The web process of a deployment with these accounts, which receives callbacks on loopback."""
    env = environment(settings(redis_url, accounts=accounts))
    its_own = ("PUBLIC_URL", "STORAGE_URL", "SECRET_KEYS", "API_KEYS")
    with web_process(folder, {name: value for name, value in env.items() if name not in its_own}) as web:
        yield web


def worker_process(processes: Processes, made: Settings) -> Process:
    """A worker that is only just being started."""
    return processes.start(f"worker-{uuid4().hex}", [BIN / "python", "-m", "workers.main"], env=environment(made))


def start_worker(processes: Processes, made: Settings) -> Process:
    """A worker that has said that it works."""
    process = worker_process(processes, made)
    process.wait_until(lambda: "worker started" in process.output(), "its start")
    return process
