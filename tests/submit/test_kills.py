"""A worker that dies: at every point of the way from the row to the recorded answer, no job is paid twice or forgotten.

Each point is taken by itself: a process runs the task and kills itself there. Time passes then, the others do what is
due, and in the end the job has to be where it would be had nothing happened, or in the hands of the operator.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from service.jobs import tasks
from service.jobs.tokens import Tokens
from service.model import VERDICTS, Job, Limit, Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support.deployment import environment
from tests.support.files import Files, status
from tests.support.kills import Death, Kills, Run, kills_in
from tests.support.processes import BIN, Processes, eventually, eventually_async
from tests.support.sandbox import Desk, Sandbox
from tests.support.submissions import (
    FACE,
    VOICE,
    Crew,
    crew_of,
    faulty,
    order,
    resolve,
    start_worker,
    worker_process,
)
from tests.support.web import Web

#: More points than any way to a vendor has.
MANY: Final = 80

AT_ONCE: Final = "seconds:0"


@pytest.fixture
def settings(callsheet: Web, sandbox: Sandbox, files: Files, redis_url: str) -> Settings:
    """As `callsheet` has them, but callbacks go to `files`: they arrive when the test delivers them."""
    accounts = {
        slug: replace(account, limits=account.limits | {"read": Limit(requests=1000, seconds=1)})
        for slug, account in sandbox.accounts(minting=True).items()
    }
    return replace(callsheet.settings, accounts=accounts, public_url=files.url)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.upload.READY_EVERY", 0.01)


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    with kills_in(tmp_path_factory.mktemp("kills")) as made:
        yield made


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a job comes to the run that is killed, and what the vendor has been paid for in the end."""

    vendor: str
    models: frozenset[str]
    step_done: bool = False  #: the vendor's job before it has succeeded
    lost: bool = False  #: it was sent, and the process that sent it did not live to hear the answer
    refused: bool = False  #: the vendor does not take it for now
    requests: int = 1  #: HTTP requests of a run that is not killed


KLING: Final = frozenset({"kling-identify-face", "kling-advanced-lip-sync"})

WAYS: Final = {
    "lipsync_studio": Way(vendor="lipsync_studio", models=frozenset({"lipsync-video"})),
    "kitta": Way(vendor="kitta", models=frozenset({"kitta-lip-sync-v1"})),
    "chanjing, with uploads and a token": Way(vendor="chanjing", models=frozenset({"0"}), requests=1 + 5 + 5 + 1),
    "apimodels, the first of two": Way(vendor="apimodels", models=KLING),
    "apimodels, the second of two": Way(vendor="apimodels", models=KLING, step_done=True),
    "not taken for now": Way(vendor="kitta", models=frozenset({"kitta-lip-sync-v1"}), refused=True),
    "looked for": Way(vendor="kitta", models=frozenset({"kitta-lip-sync-v1"}), lost=True, requests=2),
    "handed over": Way(vendor="lipsync_studio", models=frozenset({"lipsync-video"}), lost=True, requests=0),
}


class Case:
    """One job, one kill, and what others can do about it."""

    def __init__(self, way: Way, desk: Desk, sandbox: Sandbox, files: Files, web: Web, crew: Crew) -> None:
        self.vendor = way.vendor
        self.desk = desk
        self.sandbox = sandbox
        self.files = files
        self.web = web
        self.crew = crew
        self.job_id = ""
        self._way = way

    async def begin(self, kills: Kills) -> None:
        """A new job in an empty world, its task in a worker's hands."""
        self.desk.redis.flushall()
        self.sandbox.reset()
        self.job_id = order(self.desk, self.vendor, *self._asked())
        self.files.serve(self._callback_path(), status(200))
        assert self.crew.queued() == [self.job_id]
        if self._way.step_done:
            assert await self.crew.send(self.job_id) == "apply"
            self.desk.make_due("polls", self.vendor)
            await self.crew.poller.look_after(self.vendor)
            assert self.crew.queued() == [self.job_id]
        if self._way.lost:
            await self.run(kills, Death("POST", "after"))
            assert self.job().status is Status.UNCONFIRMED
            self.desk.end_leases()
            self.desk.make_due("tasks")
            await self.crew.poller.sweep()
            assert self.crew.queued() == [self.job_id]
        if self._way.refused:
            self.sandbox.order(self.vendor, "vendor_rate_limited", count=1)

    async def run(self, kills: Kills, death: Death) -> Run:
        return await asyncio.to_thread(kills.run, self.job_id, self.desk.settings, death)

    def _asked(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.vendor == "chanjing":
            media = f"{self.sandbox.url}/media/input"
            return {"video_url": faulty(f"{media}/face.mp4", AT_ONCE), "audio_url": f"{media}/voice.mp3"}, {}
        return {"video_url": faulty(FACE, AT_ONCE), "audio_url": faulty(VOICE, AT_ONCE)}, {}

    def job(self) -> Job:
        return self.desk.job(self.job_id)

    def bought(self) -> Counter[str]:
        """What the vendor has been paid for, by model."""
        return Counter(job["model"] for job in self.sandbox.jobs(self.vendor))

    def deliver(self) -> None:
        """Let the vendor's last callback arrive."""
        path = self._callback_path()
        sent = eventually(lambda: self.files.requests(path), "the vendor's callback")[-1]
        assert self.web.http.post(path, content=sent.body).status_code == 200

    def _callback_path(self) -> str:
        settings = self.desk.settings
        return urlsplit(Tokens(settings.secret_keys, settings.public_url).url(self.vendor, self.job_id)).path

    def resend(self) -> None:
        """The operator has found that the vendor has not taken it."""
        resolve(self.web, self.job_id, action="resend")

    def check_it_is_not_forgotten(self) -> None:
        """Somebody will look at it again, by himself or because he was asked to."""
        job, desk = self.job(), self.desk
        if job.status in VERDICTS:
            return
        assert desk.due_in(self.job_id, "deadlines") is not None
        due = desk.due_in(f"submit-{self.job_id}", "tasks"), desk.due_in(self.job_id, "polls", self.vendor)
        match job.status:
            case Status.QUEUED | Status.PROCESSING:
                assert job.vendor_job_id
                assert due[1] is not None
            case Status.PENDING:
                assert any(known is not None for known in due)
            case _:
                assert job.status is Status.UNCONFIRMED
                listed = self.web.api.get("/v1/jobs", params={"status": "unconfirmed"}).json()["data"]
                assert [row["id"] for row in listed] == [self.job_id]
                assert due[0] is not None or "jobs resolve" in desk.timeline(self.job_id)[-1]["detail"]


async def see_it_through(case: Case, models: frozenset[str]) -> None:
    """Whatever the kill has left, the job is bought once in the end, and nobody has guessed on the way there."""
    case.check_it_is_not_forgotten()
    for _ in range(3):
        await case.crew.settle()
        case.check_it_is_not_forgotten()
        assert set(case.bought().values()) <= {1}
        if case.job().status is not Status.UNCONFIRMED:
            break
        known = {seen["vendor_job_id"] for seen in case.desk.timeline(case.job_id) if "vendor_job_id" in seen}
        if {job["id"] for job in case.sandbox.jobs(case.vendor)} == known:
            case.resend()  # the vendor never got it
        else:
            assert not VENDORS[case.vendor].LIST_PAGE, "it is in the vendor's list"
            case.deliver()
    job = case.job()
    assert job.status in (Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED), case.desk.timeline(case.job_id)
    assert case.bought() == dict.fromkeys(models, 1)
    assert job.vendor_job_id == case.sandbox.jobs(case.vendor)[0]["id"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_kill_at_any_point_neither_buys_twice_nor_forgets(
    way: str, kills: Kills, desk: Desk, sandbox: Sandbox, files: Files, callsheet: Web, crew: Crew
) -> None:
    """Before every point, and after those that change something: in between, nobody else can tell the difference."""
    case = Case(WAYS[way], desk, sandbox, files, callsheet, crew)

    async def killed(death: Death) -> Run:
        await case.begin(kills)
        run = await case.run(kills, death)
        assert run.killed or run.exit_code == 0
        try:
            await see_it_through(case, WAYS[way].models)
        except AssertionError as failure:
            failure.add_note(f"killed {death.when} point {death.at}, having done {run.points}")
            raise
        return run

    number, run = 1, await killed(Death(1, "before"))
    while run.killed and number < MANY:
        number += 1
        run = await killed(Death(number, "before"))
    assert not run.killed
    assert sum("/" in point for point in run.points) == WAYS[way].requests
    for number, point in enumerate(run.points, 1):
        if point == "commit" or point.startswith(("POST", "PUT")):
            assert (await killed(Death(number, "after"))).killed


# -- by the dozen -----------------------------------------------------------------------------------------------


async def test_what_dies_with_a_worker_before_its_task_has_begun_is_sent_once(
    desk: Desk, sandbox: Sandbox, crew: Crew, processes: Processes, settings: Settings
) -> None:
    """A worker has taken the task from its queue, and nothing else has happened."""
    job_id = order(desk, "lipsync_studio")
    queue = f"rq:queue:{settings.queue('submit')}"
    assert desk.redis.lmove(queue, f"{queue}:intermediate", "LEFT", "RIGHT")
    await crew.poller.sweep()
    assert desk.redis.llen(queue) == 0  # somebody may still be at it
    worker = start_worker(processes, settings)
    desk.make_due("tasks")
    await crew.poller.sweep()
    worker.wait_until(lambda: desk.job(job_id).vendor_job_id, "the vendor's id")
    assert len(sandbox.jobs("lipsync_studio")) == 1
    assert desk.redis.llen(f"{queue}:intermediate") == 0


async def test_a_storm_of_kills_neither_buys_twice_nor_forgets(
    desk: Desk, callsheet: Web, sandbox: Sandbox, processes: Processes
) -> None:
    """Two workers at a time that die in the middle of their work, and a web process that receives the callbacks."""
    chance, count = random.Random(11), 240
    settings = replace(callsheet.settings, worker_concurrency=4)
    sandbox.order("lipsync_studio", AT_ONCE)
    async with crew_of(desk) as crew:
        jobs = [order(desk, "lipsync_studio") for _ in range(count)]
        for _ in range(3):
            enough = len(sandbox.jobs("lipsync_studio")) + chance.randrange(1, 20)
            running = [worker_process(processes, settings) for _ in range(2)]
            eventually(lambda: len(sandbox.jobs("lipsync_studio")) >= enough, "some work")  # noqa: B023
            for worker in running:
                worker.kill()
        assert 0 < len(sandbox.jobs("lipsync_studio")) < count, "the storm was over before its end; make it harder"

        async def heard_of() -> bool:
            """The callbacks of all that the vendor has taken have come."""
            return all(job["callbacks"] for job in sandbox.jobs("lipsync_studio"))

        await crew.settle()
        await eventually_async(heard_of, "the callbacks")
        bought = Counter(job["callback_url"].partition("/job_")[2][:24] for job in sandbox.jobs("lipsync_studio"))
        lost = [job_id for job_id in jobs if desk.job(job_id).status is Status.UNCONFIRMED]
        assert set(bought.values()) == {1}
        assert {job_id for job_id in jobs if job_id[4:] not in bought} == set(lost)
        assert all("jobs resolve" in desk.timeline(job_id)[-1]["detail"] for job_id in lost)
        assert all(desk.job(job_id).vendor_job_id for job_id in jobs if job_id not in lost)


#: The worker, with less time to stop in than a platform gives it.
HASTY: Final = "import asyncio, workers.main as m; m.GRACE, m.PUT_BACK = 0.2, 0.2; asyncio.run(m.main())"


async def test_a_worker_that_has_to_stop_in_the_middle_of_a_sending_leaves_the_job_to_be_looked_for(
    settings: Settings, desk: Desk, sandbox: Sandbox, crew: Crew, processes: Processes
) -> None:
    sandbox.order("kitta", "submit_hangs", "job_stuck")
    job_id = order(desk, "kitta")
    env = environment(settings)
    worker = processes.start("hasty", [BIN / "python", "-c", HASTY], env=env)
    worker.wait_until(lambda: sandbox.jobs("kitta"), "the sending")
    worker.send(signal.SIGTERM)
    assert worker.wait(timeout=15) == 0
    assert "Traceback" not in worker.output()
    assert desk.job(job_id).status is Status.UNCONFIRMED
    assert 0 < (desk.due_in(f"submit-{job_id}", "tasks") or 0) <= tasks.PATIENCE
    await crew.settle()
    assert [job["id"] for job in sandbox.jobs("kitta")] == [desk.job(job_id).vendor_job_id]
