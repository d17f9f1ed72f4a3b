"""Sending a job to its vendor: once, in whatever way that ends, and never again unless somebody knows that it may be.

One run of the task at a time, as a worker makes it. The vendors are the sandbox's, whose callbacks a real web process
receives; where it is about the wire, a server that misbehaves on it plays the vendor.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp
import pytest
from msgspec.structs import replace

from service.jobs import tasks
from service.jobs.store import Store
from service.jobs.tokens import Tokens
from service.model import Job, JobError, Limit, Observation, Source, Status
from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.files import Answer, Files, Wire, cut, drip, hang, large, raw, status, whole
from tests.support.processes import eventually_async, free_port
from tests.support.sandbox import Desk, Sandbox, desk_of
from tests.support.submissions import FACE, PLAIN, VOICE, Crew, crew_of, order, web_of
from tests.support.web import Web
from workers import vendor_client
from workers.submit import SKEW
from workers.vendor_client import CALL_SECONDS, VendorClient

LISTED: Final = ("chanjing", "kitta")  # the vendors with a list call
CALLING: Final = ("apimodels", "chanjing", "lipsync_studio")  # those with callbacks

#: Faces are found in a video first.
KLING: Final[dict[str, Any]] = {"video_url": FACE, "audio_url": VOICE}
IDENTIFY: Final = "kling-identify-face"
LIP_SYNC: Final = "kling-advanced-lip-sync"


@pytest.fixture(scope="module")
def callsheet(one_sandbox: Sandbox, valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_of(tmp_path_factory.mktemp("web"), valkey, one_sandbox.accounts()) as web:
        yield web


@pytest.fixture
def settings(callsheet: Web, sandbox: Sandbox, redis_url: str) -> Settings:
    """As `callsheet` has them, but the vendors may be asked as often as a test wants to."""
    accounts = {
        slug: replace(account, limits=account.limits | {"read": Limit(requests=1000, seconds=1)})
        for slug, account in callsheet.settings.accounts.items()
        if slug != "chanjing"  # the sandbox counts
    }
    return replace(callsheet.settings, accounts=callsheet.settings.accounts | accounts)


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with desk_of(settings) as made:
        yield made


@pytest.fixture
async def crew(desk: Desk) -> AsyncIterator[Crew]:
    async with crew_of(desk) as made:
        yield made


def bought(sandbox: Sandbox, vendor: str) -> list[dict[str, Any]]:
    """What the vendor has taken, the oldest first."""
    return sandbox.jobs(vendor)[::-1]


def sent_to(sandbox: Sandbox, vendor: str) -> int:
    """How often the vendor was asked for a job, and had no reason to refuse."""
    found: dict[str, dict[str, int]] = sandbox.http.get("/_sandbox/calls").json()["data"]
    return found.get(vendor, {}).get("submit", 0)


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


# -- taken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_job_is_taken_at_once(
    desk: Desk, crew: Crew, sandbox: Sandbox, settings: Settings, vendor: str
) -> None:
    sandbox.order(vendor, "job_stuck")
    job_id = order(desk, vendor)
    assert (desk.job(job_id).status, desk.job(job_id).submitted_at) == (Status.PENDING, None)
    assert desk.announced(job_id) == []
    assert await crew.send(job_id) == "apply"
    job, (taken,) = desk.job(job_id), bought(sandbox, vendor)
    processing = vendor == "lipsync_studio"  # says so at once; the others' word is for a queue
    assert job.status is (Status.PROCESSING if processing else Status.QUEUED)
    assert (job.vendor_job_id, job.scheduled_at) == (taken["id"], None)
    assert job.submitted_at is not None
    assert desk.announced(job_id) == ["job.submitted", "job.processing"][: 1 + processing]
    assert [seen["status"] for seen in desk.timeline(job_id)] == [None, "unconfirmed", job.status]
    assert desk.timeline(job_id)[-1]["raw"]
    rhythm = VENDORS[vendor].RHYTHM
    first_look = rhythm.every if rhythm.grace is None else rhythm.grace
    assert desk.due_in(job_id, "polls", vendor) == pytest.approx(first_look, abs=1)
    assert desk.due_in(f"submit-{job_id}", "tasks") is None
    url = Tokens(settings.secret_keys, settings.public_url).url(vendor, job_id)
    assert taken["callback_url"] == (url if vendor in CALLING else None)
    assert await crew.send(job_id) == "nothing to do"
    assert len(bought(sandbox, vendor)) == 1


@pytest.mark.parametrize("vendor", CALLING)
async def test_a_callback_that_overtakes_the_answer_finds_its_job(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str
) -> None:
    sandbox.order(vendor, "callback_early")
    job_id = order(desk, vendor)
    await crew.send(job_id)
    job, (taken,) = desk.job(job_id), bought(sandbox, vendor)
    assert (job.status, job.vendor_job_id) == (Status.SUCCEEDED, taken["id"])
    assert desk.announced(job_id) == ["job.submitted", "job.succeeded"]
    assert desk.due_in(f"submit-{job_id}", "tasks") is None
    assert len(bought(sandbox, vendor)) == 1


# -- refused ------------------------------------------------------------------------------------------------------

PATHS: Final = {
    "lipsync_studio": "/lipsync_studio/api/v1/lipsync-video",
    "kitta": "/kitta/api/v1/lip-sync/tasks",
    "chanjing": "/chanjing/open/v1/video_lip_sync/create",
    "apimodels": "/apimodels/api/v1/audio/generations",
}


def said(body: object, number: int = 200, **headers: str) -> Answer:
    return whole(json.dumps(body).encode(), status=number, media_type="application/json", **headers)


@pytest.fixture
def by_wire(settings: Settings, files: Files) -> Settings:
    """With a server for vendors that answers as a test tells it to."""
    return replace(settings, accounts=deployments.accounts(files.url))


REFUSALS: Final[dict[str, tuple[str, Answer, str, str]]] = {
    "400": ("lipsync_studio", said({"error": "bad video"}, 400), "invalid_input", "bad video"),
    "401": ("lipsync_studio", said({"error": "Invalid API key"}, 401), "unauthorized", "Invalid API key"),
    "402": (
        "lipsync_studio",
        said({"error": "Insufficient credits"}, 402),
        "insufficient_credit",
        "Insufficient credits",
    ),
    "403": ("lipsync_studio", said({"error": "not for you"}, 403), "forbidden", "not for you"),
    "404": ("lipsync_studio", status(404), "not_found", "HTTP 404"),
    "422": (
        "lipsync_studio",
        said({"message": "audio_url: unreachable"}, 422),
        "invalid_input",
        "audio_url: unreachable",
    ),
    "500 in words": ("lipsync_studio", said({"error": "Out of GPUs"}, 500), "vendor_error", "Out of GPUs"),
    "200, an error": ("lipsync_studio", said({"error": "Out of GPUs"}), "vendor_error", "Out of GPUs"),
    "kitta": (
        "kitta",
        said({"error": {"code": "invalid_request", "message": "no face"}}, 400),
        "invalid_input",
        "no face",
    ),
    "chanjing 40000": ("chanjing", said({"code": 40000, "msg": "参数错误", "data": None}), "invalid_input", "参数错误"),
    "chanjing 50000": ("chanjing", said({"code": 50000, "msg": "系统内部错误"}), "vendor_error", "系统内部错误"),
    "apimodels": ("apimodels", said({"code": 402, "msg": "credits", "data": None}), "insufficient_credit", "credits"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_fails_the_job_with_the_vendor_s_words(by_wire: Settings, files: Files, case: str) -> None:
    vendor, answer, code, words = REFUSALS[case]
    files.serve(PATHS[vendor], answer)
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, vendor)
            assert await crew.send(job_id) == "apply"
            job = desk.job(job_id)
            assert (job.status, job.vendor_job_id, job.submitted_at) == (Status.FAILED, None, None)
            assert job.error is not None
            assert (job.error.code, job.error.retryable) == (code, code == "vendor_error")
            assert job.error.message == words
            assert desk.announced(job_id) == ["job.failed"]
            await crew.settle()
            assert len(files.requests(PATHS[vendor])) == 1


@pytest.mark.parametrize("vendor", VENDORS)
async def test_an_input_that_the_vendor_refuses_costs_nothing(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str
) -> None:
    sandbox.order(vendor, "submit_refused")
    job_id = order(desk, vendor)
    await crew.send(job_id)
    job = desk.job(job_id)
    assert (job.status, bought(sandbox, vendor)) == (Status.FAILED, [])
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("invalid_input", False)
    assert "the video could not be read" in job.error.message
    assert desk.redis.keys(desk.key("costs", "*")) == []


async def test_what_an_earlier_release_accepted_and_this_one_does_not_know_fails(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    """Else it would be tried until its deadline, at the head of the line."""
    jobs = [order(desk, "chanjing") for _ in range(2)]
    kept = [{"model": "ancient"}, {"input": {"text": "你好", "voice": "v", "colour": "red"}}]
    for job_id, change in zip(jobs, kept, strict=True):
        key = desk.key("job", job_id)
        desk.redis.hset(key, "_order", json.dumps(json.loads(desk.redis.hget(key, "_order") or "") | change))
        assert await crew.send(job_id) == "apply"
        error = desk.job(job_id).error
        assert error is not None
        assert error.code == "invalid_input"
    assert desk.redis.zcard(desk.key("turns", "chanjing")) == 0
    assert crew.due() == []


# -- not taken for now --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_vendor_s_rate_limit_puts_the_job_off(desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str) -> None:
    sandbox.order(vendor, "vendor_rate_limited", count=1)
    job_id = order(desk, vendor)
    assert await crew.send(job_id) == "apply"
    job = desk.job(job_id)
    assert (job.status, job.submitted_at, job.error) == (Status.PENDING, None, None)
    assert job.scheduled_at is not None
    assert job.scheduled_at.timestamp() - desk.now_ms() / 1000 == pytest.approx(2, abs=0.5)
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(2, abs=0.5)
    assert desk.announced(job_id) == []
    assert "not taken: rate_limited" in desk.timeline(job_id)[-1]["detail"]
    assert await crew.send(job_id) == "waits"  # asked again too early
    assert sandbox.calls(vendor) == {"faulted": 1}
    await crew.settle()
    assert [taken["id"] for taken in bought(sandbox, vendor)] == [desk.job(job_id).vendor_job_id]
    assert desk.job(job_id).scheduled_at is None


async def test_the_vendor_says_how_long_to_wait(by_wire: Settings, files: Files) -> None:
    files.serve(PATHS["kitta"], said({"error": {"message": "slow down"}}, 429, retry_after="77"))
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id, other = order(desk, "kitta"), order(desk, "kitta")
            await crew.send(job_id)
            assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(77, abs=1)
            await crew.send(other)  # which is about the same vendor
            assert desk.due_in(f"submit-{other}", "tasks") == pytest.approx(77, abs=1)
            assert len(files.requests(PATHS["kitta"])) == 1


async def refused_connection(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return replace(settings, accounts=deployments.accounts(f"http://127.0.0.1:{free_port()}"))


async def unknown_name(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    async def resolve(*_: Any, **__: Any) -> list[Any]:
        raise OSError("no such name")

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    return replace(settings, accounts=deployments.accounts("http://vendor.example"))


async def forbidden_address(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    found = deployments.accounts("https://127.0.0.1")
    return replace(settings, accounts=found, allow_private_networks=False)


async def no_tls(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return replace(
        settings, accounts=deployments.accounts(settings.accounts["kitta"].base_url.replace("http:", "https:"))
    )


UNREACHABLE: Final = {each.__name__: each for each in (refused_connection, unknown_name, forbidden_address, no_tls)}


@pytest.mark.parametrize("why", UNREACHABLE)
async def test_what_never_reached_the_vendor_is_sent_again(
    settings: Settings, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    with desk_of(await UNREACHABLE[why](settings, monkeypatch)) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "kitta")
            assert await crew.send(job_id) == "apply"
            job = desk.job(job_id)
            assert (job.status, job.submitted_at) == (Status.PENDING, None)
            assert job.scheduled_at is not None
            assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(1, abs=0.5)
            assert "not taken: vendor_unreachable" in desk.timeline(job_id)[-1]["detail"]
    monkeypatch.undo()
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == bought(sandbox, "kitta")[0]["id"]


async def test_a_worker_without_credentials_sends_nothing(settings: Settings, sandbox: Sandbox) -> None:
    """Whoever has accepted the job had some: a worker that was set up otherwise must not count as having sent it."""
    with desk_of(settings) as desk:
        job_id = order(desk, "chanjing")
    with desk_of(replace(settings, accounts=sandbox.accounts(without=("chanjing",)))) as desk:
        async with crew_of(desk) as crew:
            await crew.send(job_id)
            assert desk.job(job_id).status is Status.PENDING
            assert "no credentials: set CHANJING" in desk.timeline(job_id)[-1]["detail"]
    with desk_of(settings) as desk:
        async with crew_of(desk) as crew:
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == bought(sandbox, "chanjing")[0]["id"]


async def test_503_says_that_nothing_was_taken(by_wire: Settings, files: Files) -> None:
    files.serve(PATHS["lipsync_studio"], status(503), said({"id": "42", "status": "processing"}))
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "lipsync_studio")
            await crew.send(job_id)
            assert desk.job(job_id).status is Status.PENDING
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == "42"
            assert len(files.requests(PATHS["lipsync_studio"])) == 2


# -- sent, and not answered ---------------------------------------------------------------------------------------


def gone(wire: Wire) -> None:
    """The request has been read, and the connection ends without a word."""


def torn(wire: Wire) -> None:
    wire.reset()


PAGE: Final = b"<html><body><h1>Bad gateway</h1></body></html>"

LOST: Final[dict[str, Answer]] = {
    "closed": gone,
    "reset": torn,
    "cut in the headers": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "cut in the body": cut(b'{"id":"42","status":"processing"}', 10),
    "no HTTP": raw(b"hello\r\n\r\n"),
    "silence": hang,
    "a drip": drip(b'{"id":"42","status":"processing"}', every=0.05),
    "endless": large(17 * 2**20),
    **{
        f"{number} and a page": whole(PAGE, status=number, media_type="text/html")
        for number in (200, 500, 502, 504, 524)
    },
    "302": status(302, location="https://example.com/login"),
    "500 and nothing": whole(b"", status=500),
    "no id": said({"status": "processing"}),
    "an empty object": said({}),
    "a list": said([]),
}


@pytest.mark.parametrize("case", LOST)
async def test_an_answer_that_tells_nothing_leaves_the_job_unconfirmed_and_nobody_sends_it_again(
    by_wire: Settings, callsheet: Web, files: Files, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(vendor_client, "CALL_SECONDS", 0.25)
    path = PATHS["lipsync_studio"]
    files.serve(path, LOST[case])
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "lipsync_studio")
            await crew.send(job_id)
            check_nobody_sends_it(desk, callsheet, job_id)
            for _ in range(3):
                await crew.round()
            assert await crew.send(job_id) == "note"
            check_nobody_sends_it(desk, callsheet, job_id)
            assert len(files.requests(path)) == 1
            assert (desk.job(job_id).submitted_at, desk.announced(job_id)) == (None, [])


@pytest.mark.parametrize("number", [502, 504])
async def test_a_gateway_s_words_are_not_the_vendor_s(by_wire: Settings, files: Files, number: int) -> None:
    """As API gateways say it when the vendor behind them has read the order and not answered in time."""
    path = PATHS["lipsync_studio"]
    files.serve(
        path, said({"message": "Endpoint request timed out"}, number), said({"id": "2", "status": "processing"})
    )
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "lipsync_studio")
            await crew.settle()
            assert desk.job(job_id).status is Status.UNCONFIRMED
            assert len(files.requests(path)) == 1


async def test_an_error_that_names_the_job_is_followed_up_by_asking(by_wire: Settings, files: Files) -> None:
    files.serve(PATHS["lipsync_studio"], said({"id": "42", "error": "timeout"}, 500))
    files.serve("/lipsync_studio/api/v1/jobs/42", said({"id": "42", "status": "processing"}))
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "lipsync_studio")
            await crew.send(job_id)
            assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.UNCONFIRMED, "42")
            await crew.round()
            assert desk.job(job_id).status is Status.PROCESSING
            assert len(files.requests(PATHS["lipsync_studio"])) == 1


@pytest.mark.parametrize("fault", ["submit_lost", "submit_500", "submit_hangs"])
@pytest.mark.parametrize("vendor", CALLING)
async def test_a_callback_tells_what_the_answer_did_not(
    desk: Desk, crew: Crew, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, vendor: str, fault: str
) -> None:
    monkeypatch.setattr(vendor_client, "CALL_SECONDS", 0.05)
    sandbox.order(vendor, fault, "seconds:0.1")
    job_id = order(desk, vendor)
    await crew.send(job_id)
    assert desk.timeline(job_id)[1]["status"] == "unconfirmed"

    async def heard() -> bool:
        return desk.job(job_id).status is Status.SUCCEEDED

    await eventually_async(heard, "the callback")
    assert desk.job(job_id).vendor_job_id == bought(sandbox, vendor)[0]["id"]
    assert desk.announced(job_id) == ["job.submitted", "job.succeeded"]
    assert crew.due() == []
    assert sent_to(sandbox, vendor) == 1


# -- the operator's word -------------------------------------------------------------------------------------------


class Gated:
    """A vendor that has read the order and answers when the test says so."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._gate = threading.Event()

    def __call__(self, wire: Wire) -> None:
        while not self._gate.is_set():
            if not wire.pause(0.02):
                return
        self._answer(wire)

    def open(self) -> None:
        self._gate.set()


LATE: Final[dict[str, Answer]] = {
    "refused for now": said({"error": "slow down"}, 429),
    "refused": said({"error": "bad video"}, 400),
    "lost": whole(PAGE, status=502),
}


@pytest.fixture
async def late(by_wire: Settings, files: Files, request: pytest.FixtureRequest) -> AsyncIterator[Late]:
    async with AsyncExitStack() as stack:
        desk = stack.enter_context(desk_of(by_wire))
        crews = [await stack.enter_async_context(crew_of(desk)) for _ in range(2)]
        yield Late(desk, crews, files)


class Late:
    """A job whose first sending hangs while the operator sends it on its way again."""

    def __init__(self, desk: Desk, crews: list[Crew], files: Files) -> None:
        self.desk = desk
        self.files = files
        self.first, self.second = crews
        self.job_id = ""

    async def begin(self, web: Web, gated: Gated, *later: Answer) -> asyncio.Task[str]:
        path = PATHS["lipsync_studio"]
        self.files.serve(path, gated, *later)
        self.job_id = order(self.desk, "lipsync_studio")
        self.first.queued()
        sending = asyncio.create_task(self.first.send(self.job_id))

        async def read() -> bool:
            return bool(self.files.requests(path))

        await eventually_async(read, "the first sending")
        resolve(web, self.job_id, action="resend")
        return sending

    @property
    def job(self) -> Job:
        return self.desk.job(self.job_id)


@pytest.mark.parametrize("answer", LATE)
async def test_a_late_answer_does_not_undo_what_was_sent_after_it(late: Late, callsheet: Web, answer: str) -> None:
    """The first run's lease has run out, as it would after a minute in which its process stood still."""
    gated = Gated(LATE[answer])
    sending = await late.begin(callsheet, gated, said({"id": "second", "status": "processing"}))
    late.desk.end_leases()
    assert await late.second.send(late.job_id) == "apply"
    assert late.job.vendor_job_id == "second"
    known = late.job
    gated.open()
    assert await sending == "changed"
    assert late.job == known


@pytest.mark.parametrize("answer", LATE)
async def test_a_late_answer_does_not_take_away_the_second_sending(late: Late, callsheet: Web, answer: str) -> None:
    """While the first run is still at it, no second one gets in; the job has to be looked at again after it."""
    gated = Gated(LATE[answer])
    sending = await late.begin(callsheet, gated, said({"id": "second", "status": "processing"}))
    assert late.second.queued() == [late.job_id]
    assert await late.second.send(late.job_id) == "held by another run"
    gated.open()
    await sending
    if answer == "refused":
        assert late.job.status is Status.FAILED
        return
    assert late.job.status is Status.PENDING
    assert late.desk.due_in(f"submit-{late.job_id}", "tasks") is not None
    await late.second.settle()
    assert late.job.vendor_job_id == "second"
    assert len(late.files.requests(PATHS["lipsync_studio"])) == 2


async def test_a_late_answer_that_names_the_job_spares_the_second_sending(late: Late, callsheet: Web) -> None:
    gated = Gated(said({"id": "first", "status": "processing"}))
    sending = await late.begin(callsheet, gated, said({"id": "second", "status": "processing"}))
    gated.open()
    assert await sending == "apply"
    await late.second.settle()
    assert late.job.vendor_job_id == "first"
    assert len(late.files.requests(PATHS["lipsync_studio"])) == 1


@pytest.mark.parametrize("vendor", ["lipsync_studio", "kitta"])
async def test_the_operator_resolves_what_nobody_else_can(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox, vendor: str
) -> None:
    adopted, failed = (lost_at(desk, order(desk, vendor)) for _ in range(2))
    taken = sandbox.submit(vendor, "job_stuck")
    resolve(callsheet, adopted, action="adopt", vendor_job_id=taken)
    resolve(callsheet, failed, action="fail")
    await crew.settle()
    assert (desk.job(adopted).status, desk.job(adopted).vendor_job_id) == (Status.QUEUED, taken)
    assert desk.due_in(adopted, "polls", vendor) is not None
    assert desk.job(failed).status is Status.FAILED
    assert len(bought(sandbox, vendor)) == 1


def lost_at(desk: Desk, job_id: str, ago: float = 0.0) -> str:
    """As if the job had been sent so many seconds ago, by a process that did not live to hear the answer."""
    seen = Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED)
    vendor = desk.job(job_id).vendor
    assert desk.record(seen, vendor=vendor, job_id=job_id, sending="a sending").outcome == "apply"
    desk.redis.hset(desk.key("job", job_id), "_sent_at", desk.now_ms() - int(ago * 1000))
    return job_id


# -- looked for in the vendor's list -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["submit_lost", "submit_500"])
@pytest.mark.parametrize("vendor", LISTED)
async def test_a_job_that_the_vendor_has_is_found_in_its_list(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str, fault: str
) -> None:
    known = [order(desk, vendor) for _ in range(3)]
    sandbox.order(vendor, "job_stuck", "callback_lost")
    for job_id in known[:2]:
        await crew.send(job_id)
    sandbox.order(vendor, fault, count=1)
    job_id = order(desk, vendor)
    await crew.send(job_id)
    await crew.send(known[2])
    assert desk.job(job_id).status is Status.UNCONFIRMED
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(tasks.LOOKS[0], abs=1)
    assert await crew.send(job_id) == "apply"
    job = desk.job(job_id)
    assert job.status in (Status.QUEUED, Status.PROCESSING)
    assert job.vendor_job_id == bought(sandbox, vendor)[2]["id"]
    assert job.submitted_at is not None
    assert desk.due_in(job_id, "polls", vendor) is not None
    assert crew.due() == []
    assert len(bought(sandbox, vendor)) == 4
    # The rows of one vendor are sparse: when a job was made is asked for, of those that nobody knows.
    assert sandbox.calls(vendor) == {"list": 1} | ({"status": 1} if vendor == "kitta" else {})


async def test_a_job_that_failed_meanwhile_is_found_with_its_reason(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    sandbox.order("kitta", "submit_lost", "job_failed", "seconds:0")
    job_id = order(desk, "kitta")
    await crew.send(job_id)
    assert await crew.send(job_id) == "apply"
    job = desk.job(job_id)
    assert (job.status, job.vendor_job_id) == (Status.FAILED, bought(sandbox, "kitta")[0]["id"])
    assert job.error is not None
    assert job.error.code == "generation_failed"


@pytest.mark.parametrize("vendor", LISTED)
async def test_two_that_were_lost_at_about_the_same_time_are_not_guessed_at(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox, vendor: str
) -> None:
    sandbox.order(vendor, "submit_lost", "job_stuck", "callback_lost")
    first, second = (order(desk, vendor) for _ in range(2))
    for job_id in (first, second):
        await crew.send(job_id)
    for job_id in (first, second) * 2:
        await crew.send(job_id)
        assert desk.job(job_id).vendor_job_id is None
        assert "other jobs" in desk.timeline(job_id)[-1]["detail"]
    # Once one of them is known, there is nothing left to guess.
    resolve(callsheet, first, action="adopt", vendor_job_id=bought(sandbox, vendor)[0]["id"])
    await crew.settle()
    assert desk.job(second).vendor_job_id == bought(sandbox, vendor)[1]["id"]
    assert len(bought(sandbox, vendor)) == 2


#: How long ago our job was sent, with a stranger's job made just now, and whether that can be ours.
STRANGERS: Final = {
    "made long before": (-SKEW.seconds - 5, False),
    "made just before": (-SKEW.seconds + 2, True),
    "made just after": (CALL_SECONDS + SKEW.seconds - 3, True),
    "made long after": (CALL_SECONDS + SKEW.seconds + 5, False),
}


@pytest.mark.parametrize("when", STRANGERS)
@pytest.mark.parametrize("vendor", LISTED)
async def test_a_stranger_s_job_made_at_another_time_is_not_taken_for_ours(
    desk: Desk, crew: Crew, sandbox: Sandbox, vendor: str, when: str
) -> None:
    ago, fits = STRANGERS[when]
    job_id = lost_at(desk, order(desk, vendor), ago)
    stranger = sandbox.submit(vendor, "job_stuck")
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id == (stranger if fits else None)
    if not fits:
        assert "none of the vendor's jobs" in desk.timeline(job_id)[-1]["detail"]


async def test_a_stranger_s_job_that_was_asked_something_else_is_not_taken_for_ours(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    image = {"image_url": "https://example.com/face.png", "audio_url": "https://example.com/voice.mp3"}
    job_id = lost_at(desk, order(desk, "kitta", image))
    sandbox.submit("kitta", "job_stuck")  # in video mode
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id is None
    assert "none of the vendor's jobs" in desk.timeline(job_id)[-1]["detail"]


async def test_beside_a_job_that_failed_for_an_error_of_the_vendor_s_none_is_taken(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    """The vendor may have made that one all the same, and then it is the stranger."""
    failed, job_id = (lost_at(desk, order(desk, "kitta")) for _ in range(2))
    error = JobError(code="vendor_error", message="database error", retryable=True)
    desk.record(Observation(source=Source.SUBMIT, status=Status.FAILED, error=error), vendor="kitta", job_id=failed)
    sandbox.submit("kitta", "job_stuck")
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id is None
    assert "other jobs" in desk.timeline(job_id)[-1]["detail"]


async def test_of_two_strangers_that_fit_none_is_taken(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    job_id = lost_at(desk, order(desk, "kitta"))
    for _ in range(2):
        sandbox.submit("kitta", "job_stuck")
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id is None
    assert "2 of the vendor's jobs could be this one" in desk.timeline(job_id)[-1]["detail"]


async def test_a_job_that_is_being_sent_while_the_list_is_read_is_not_taken_for_the_lost_one(
    desk: Desk, crew: Crew, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = lost_at(desk, order(desk, "kitta")), order(desk, "kitta")
    sandbox.order("kitta", "submit_hangs", "job_stuck", count=1)
    list_page, sending = VendorClient.list_page, list[asyncio.Task[str]]()

    async def listed(client: VendorClient, slug: str, page: int) -> Any:
        sending.append(asyncio.create_task(crew.send(other)))

        async def taken() -> bool:
            return len(bought(sandbox, "kitta")) == 1

        await eventually_async(taken, "the other job at the vendor")
        return await list_page(client, slug, page)

    monkeypatch.setattr(VendorClient, "list_page", listed)
    await crew.send(lost)
    assert desk.job(lost).vendor_job_id is None
    assert "other jobs" in desk.timeline(lost)[-1]["detail"]
    sending[0].cancel()
    await asyncio.gather(*sending, return_exceptions=True)


async def test_a_list_that_cannot_be_read_is_read_later_and_then_it_is_the_operator_s(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox
) -> None:
    sandbox.order("kitta", "submit_lost", "job_stuck", count=2)
    job_id = order(desk, "kitta")
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    sandbox.order("kitta", "vendor_500")
    for wait in tasks.LOOKS[1:]:
        await crew.send(job_id)
        assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(wait, abs=1)
    await crew.send(job_id)
    check_nobody_sends_it(desk, callsheet, job_id)
    assert "cannot be read" in desk.timeline(job_id)[-1]["detail"]
    sandbox.clear()
    assert callsheet.api.post(f"/v1/jobs/{job_id}/refresh").status_code == 202
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    assert desk.job(job_id).vendor_job_id == bought(sandbox, "kitta")[0]["id"]


async def test_a_second_search_has_all_its_looks_before_it(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox
) -> None:
    job_id = lost_at(desk, order(desk, "kitta"))
    await crew.settle()
    check_nobody_sends_it(desk, callsheet, job_id)
    assert callsheet.api.post(f"/v1/jobs/{job_id}/refresh").status_code == 202
    await crew.send(job_id)
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(tasks.LOOKS[0], abs=1)


# -- tokens --------------------------------------------------------------------------------------------------------


async def test_a_token_that_has_died_is_renewed_once_and_the_job_sent_once_more(
    settings: Settings, sandbox: Sandbox
) -> None:
    with desk_of(replace(settings, accounts=sandbox.accounts(minting=True))) as desk:
        async with crew_of(desk) as crew:
            job_ids = [order(desk, "chanjing") for _ in range(2)]
            await crew.send(job_ids[0])
            assert sandbox.calls("chanjing") == {"token": 1}
            sandbox.new_token()
            assert await crew.send(job_ids[1]) == "apply"
            assert sandbox.calls("chanjing") == {"token": 1 + 1 + 1, "refused": 1}
            assert [desk.job(job_id).vendor_job_id for job_id in job_ids] == [
                taken["id"] for taken in bought(sandbox, "chanjing")
            ]


@pytest.mark.parametrize(
    "credentials",
    [{"CHANJING_ACCESS_TOKEN": "invalid"}, {"CHANJING_APP_ID": "invalid", "CHANJING_SECRET_KEY": "x"}],
    ids=["a token", "an app"],
)
async def test_credentials_that_the_vendor_does_not_know_fail_the_job(
    settings: Settings, sandbox: Sandbox, credentials: dict[str, str]
) -> None:
    account = replace(sandbox.accounts()["chanjing"], credentials=credentials)
    with desk_of(replace(settings, accounts=settings.accounts | {"chanjing": account})) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "chanjing")
            await crew.send(job_id)
            job = desk.job(job_id)
            assert (job.status, job.error and job.error.code) == (Status.FAILED, "unauthorized")
            assert sandbox.calls("chanjing") == {"refused": 1}


async def test_a_token_that_cannot_be_had_for_now_puts_the_job_off(settings: Settings, sandbox: Sandbox) -> None:
    with desk_of(replace(settings, accounts=sandbox.accounts(minting=True))) as desk:
        async with crew_of(desk) as crew:
            job_id = order(desk, "chanjing")
            sandbox.order("chanjing", "vendor_down", count=2)
            for wait in tasks.PREPARE_RETRIES[:2]:
                await crew.send(job_id)
                job = desk.job(job_id)
                assert (job.status, job.submitted_at) == (Status.PENDING, None)
                assert job.scheduled_at is not None
                assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(wait, abs=1)
                assert desk.timeline(job_id)[-1]["problem"] == "not_sent"
            await crew.settle()
            assert desk.job(job_id).vendor_job_id == bought(sandbox, "chanjing")[0]["id"]


# -- runs that meet ------------------------------------------------------------------------------------------------


async def test_of_runs_at_the_same_time_one_sends(desk: Desk, sandbox: Sandbox) -> None:
    job_id = order(desk, "kitta")
    async with AsyncExitStack() as stack:
        crews = [await stack.enter_async_context(crew_of(desk)) for _ in range(6)]
        outcomes = await asyncio.gather(*(crew.send(job_id) for crew in crews))
    assert Counter(outcomes)["apply"] == 1
    assert set(outcomes) <= {"apply", "held by another run", "nothing to do"}
    assert len(bought(sandbox, "kitta")) == 1


Turn = Callable[..., Awaitable[float]]


def before_the_mark(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Awaitable[object]]) -> None:
    """Let something happen, once, between a job's turn and the mark that it is sent."""
    turn: Turn = Store.submit_turn
    todo = [do]

    async def submit_turn(store: Store, *args: Any) -> float:
        wait = await turn(store, *args)
        if todo:
            await todo.pop()()
        return wait

    monkeypatch.setattr(Store, "submit_turn", submit_turn)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_run_that_slept_through_its_lease_does_not_send_what_another_has_sent(
    desk: Desk, crew: Crew, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, vendor: str
) -> None:
    given = (KLING, {}) if vendor == "apimodels" else PLAIN[vendor]
    job_id = order(desk, vendor, *given)
    async with crew_of(desk) as other:

        async def sent_by_another() -> None:
            desk.end_leases()
            assert await other.send(job_id) == "apply"

        before_the_mark(monkeypatch, sent_by_another)
        assert await crew.send(job_id) == "changed"
    assert len(bought(sandbox, vendor)) == 1


async def test_a_job_that_was_adopted_while_it_was_pending_is_not_sent(
    desk: Desk, crew: Crew, callsheet: Web, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def adopt(job_id: str, vendor_job_id: str) -> None:
        answer = callsheet.api.patch(f"/v1/jobs/{job_id}", json={"vendor_job_id": vendor_job_id})
        assert answer.status_code == 200, answer.text

    first, second = order(desk, "lipsync_studio"), order(desk, "lipsync_studio")
    await adopt(first, "one")
    assert await crew.send(first) == "nothing to do"
    before_the_mark(monkeypatch, lambda: adopt(second, "two"))
    assert await crew.send(second) == "changed"
    assert {desk.job(job_id).status for job_id in (first, second)} == {Status.QUEUED}
    assert bought(sandbox, "lipsync_studio") == []
    assert crew.due() == []


# -- deadlines -----------------------------------------------------------------------------------------------------


async def expire(desk: Desk, crew: Crew) -> None:
    desk.make_due("deadlines")
    await crew.poller.expire()


async def test_a_job_that_nobody_could_send_in_time_expires(desk: Desk, crew: Crew, sandbox: Sandbox) -> None:
    job_id = order(desk, "chanjing")
    sandbox.order("chanjing", "vendor_down")
    await crew.send(job_id)
    await expire(desk, crew)
    job = desk.job(job_id)
    assert (job.status, job.scheduled_at) == (Status.EXPIRED, None)
    assert desk.announced(job_id) == ["job.expired"]
    sandbox.clear()
    assert await crew.send(job_id) == "nothing to do"
    assert (crew.due(), bought(sandbox, "chanjing")) == ([], [])
    assert desk.redis.zcard(desk.key("turns", "chanjing")) == 0


async def test_a_job_that_nobody_heard_of_in_time_expires_and_its_verdict_lands(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    sandbox.order("lipsync_studio", "submit_lost", "callback_late:0.3")
    job_id = order(desk, "lipsync_studio")
    await crew.send(job_id)
    await expire(desk, crew)
    assert desk.job(job_id).status is Status.EXPIRED
    assert desk.announced(job_id) == ["job.expired"]

    async def heard() -> bool:
        return desk.job(job_id).status is Status.SUCCEEDED

    await eventually_async(heard, "the callback")
    assert desk.announced(job_id) == ["job.expired", "job.succeeded"]
    assert crew.due() == []


async def test_an_answer_after_the_deadline_has_the_vendor_asked_for_its_verdict(
    late: Late, callsheet: Web, settings: Settings
) -> None:
    gated = Gated(said({"id": "42", "status": "processing"}))
    late.files.serve("/lipsync_studio/api/v1/jobs/42", said({"id": "42", "status": "failed", "error": "no face"}))
    late.files.serve(PATHS["lipsync_studio"], gated)
    late.job_id = order(late.desk, "lipsync_studio")
    sending = asyncio.create_task(late.first.send(late.job_id))

    async def read() -> bool:
        return bool(late.files.requests(PATHS["lipsync_studio"]))

    await eventually_async(read, "the sending")
    await expire(late.desk, late.second)
    gated.open()
    await sending
    assert (late.job.status, late.job.vendor_job_id) == (Status.EXPIRED, "42")
    await late.second.round()
    assert late.job.status is Status.FAILED


# -- two of the vendor's jobs --------------------------------------------------------------------------------------


def models(sandbox: Sandbox) -> list[str]:
    return [str(taken["model"]) for taken in bought(sandbox, "apimodels")]


async def settled(desk: Desk, crew: Crew, job_id: str) -> Job:
    """The job once it is over, whoever tells so first."""

    async def over() -> bool:
        await crew.round()
        return desk.job(job_id).status in (Status.SUCCEEDED, Status.FAILED)

    await eventually_async(over, "its end")
    return desk.job(job_id)


@pytest.fixture
def quick(sandbox: Sandbox) -> None:
    """Both steps take no time, unless a test says otherwise."""
    sandbox.order("apimodels", "seconds:0")


async def step_sent(desk: Desk, crew: Crew, vendor_input: dict[str, Any] | None = None) -> str:
    """A job whose first step the vendor has taken."""
    job_id = order(desk, "apimodels", KLING, vendor_input)
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    return job_id


async def test_faces_are_found_first_and_both_jobs_of_the_vendor_are_told(
    desk: Desk, crew: Crew, sandbox: Sandbox, settings: Settings
) -> None:
    job_id = await step_sent(desk, crew)
    job = desk.job(job_id)
    assert (job.status, job.vendor_job_id, job.submitted_at) == (Status.PENDING, None, None)
    assert desk.announced(job_id) == []
    assert desk.due_in(job_id, "polls", "apimodels") is not None
    job = await settled(desk, crew, job_id)
    identify, lip_sync = bought(sandbox, "apimodels")
    assert [identify["model"], lip_sync["model"]] == [IDENTIFY, LIP_SYNC]
    assert (job.status, job.model, job.vendor_job_id) == (Status.SUCCEEDED, LIP_SYNC, lip_sync["id"])
    told = [seen["vendor_job_id"] for seen in desk.timeline(job_id) if "vendor_job_id" in seen]
    assert told == [identify["id"], lip_sync["id"]]
    assert "1 face: face_001 (the first)" in [seen.get("detail") for seen in desk.timeline(job_id)]
    assert lip_sync["request"]["session_id"] == f"session_{identify['id']}"
    url = Tokens(settings.secret_keys, settings.public_url).url("apimodels", job_id)
    assert {identify["callback_url"], lip_sync["callback_url"]} == {url}
    assert [type_ for type_ in desk.announced(job_id) if type_ != "job.processing"] == [
        "job.submitted",
        "job.succeeded",
    ]
    assert [output.url for output in job.outputs] == [lip_sync["outputs"][0]["url"]]


FACES: Final = [
    (None, "face_001"),
    ("first", "face_001"),
    (0, "face_001"),
    (2, "face_003"),
    ("face_002", "face_002"),
    ("largest", "face_001"),  # the sandbox tells no sizes, like the vendor
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("face", "face_id"), FACES)
async def test_the_face_that_is_meant_is_synced(
    desk: Desk, crew: Crew, sandbox: Sandbox, face: str | int | None, face_id: str
) -> None:
    sandbox.order("apimodels", "faces:3")
    await step_sent(desk, crew, {} if face is None else {"face": face})
    await crew.settle()
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]
    assert bought(sandbox, "apimodels")[1]["request"]["face_id"] == face_id


#: What the first job suffers from, the face that is meant, and the error's code and words.
NO_FACE: Final = {
    "no list": ("faces:0", None, "no_face", "no face was found in the video"),
    "not so many": ("faces:2", 2, "no_face", "the video has 2 faces"),
    "no such id": ("faces:2", "face_009", "no_face", "there is no face face_009"),
    "identify fails": ("no_face", None, "", "Face detection failed: no faces found"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", NO_FACE)
async def test_without_the_face_nothing_is_synced(desk: Desk, crew: Crew, sandbox: Sandbox, case: str) -> None:
    fault, face, code, words = NO_FACE[case]
    sandbox.order("apimodels", fault, count=1)
    job_id = await step_sent(desk, crew, {} if face is None else {"face": face})
    job = await settled(desk, crew, job_id)
    assert (job.status, job.vendor_job_id) == (Status.FAILED, None)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (code or job.error.code, False)
    assert words in job.error.message
    assert models(sandbox) == [IDENTIFY]
    assert crew.due() == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "faults",
    [
        ("callback_doubled",),
        ("callback_reordered",),
        ("callback_garbled",),
        ("callback_forged",),
        ("callback_early",),
        ("callback_lost",),
        ("callback_late:0.2",),
        ("unknown_status:0.1",),
        ("callback_early", "unknown_status:0.1"),
        ("callback_doubled", "callback_reordered", "callback_early"),
    ],
    ids="+".join,
)
async def test_whatever_becomes_of_the_first_callback_each_step_is_bought_once(
    desk: Desk, crew: Crew, sandbox: Sandbox, faults: tuple[str, ...]
) -> None:
    sandbox.order("apimodels", *faults, count=1)
    job_id = await step_sent(desk, crew)
    job = await settled(desk, crew, job_id)
    assert (job.status, job.vendor_job_id) == (Status.SUCCEEDED, bought(sandbox, "apimodels")[1]["id"])
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]


async def test_a_callback_about_the_first_step_that_comes_after_the_second_was_sent_changes_nothing(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    sandbox.order("apimodels", "callback_late:0.6", "callback_reordered", "seconds:0", count=1)
    job_id = await step_sent(desk, crew)
    sandbox.order("apimodels", "job_stuck", count=1)
    desk.make_due("polls", "apimodels")
    await crew.poller.look_after("apimodels")
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    known = desk.job(job_id)
    assert known.vendor_job_id == bought(sandbox, "apimodels")[1]["id"]
    assert bought(sandbox, "apimodels")[0]["callbacks"] == []

    async def both_came() -> bool:
        return len(bought(sandbox, "apimodels")[0]["callbacks"]) == 2

    await eventually_async(both_came, "the late callbacks")
    assert {call["http_status"] for call in bought(sandbox, "apimodels")[0]["callbacks"]} == {200}
    assert desk.job(job_id) == known
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]


async def test_a_task_that_is_run_again_while_faces_are_looked_for_buys_nothing(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    sandbox.order("apimodels", "job_stuck")
    job_id = await step_sent(desk, crew)
    for _ in range(2):
        await crew.send(job_id)
    assert models(sandbox) == [IDENTIFY]
    assert desk.job(job_id).status is Status.PENDING


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("fault", ["submit_lost", "submit_500"])
async def test_a_step_that_was_not_answered_is_told_by_its_callback(
    desk: Desk, crew: Crew, sandbox: Sandbox, step: int, fault: str
) -> None:
    if step == 1:
        sandbox.order("apimodels", fault, count=1)
    job_id = order(desk, "apimodels", KLING)
    await crew.send(job_id)
    if step == 2:
        sandbox.order("apimodels", fault, count=1)
    job = await settled(desk, crew, job_id)
    assert job.status is Status.SUCCEEDED
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]


async def test_an_error_that_names_the_first_step_is_followed_up_by_asking(by_wire: Settings, files: Files) -> None:
    found = {"session_id": "s", "face_list": [{"face_id": "f"}]}
    first = {"taskId": "first", "state": "completed", "model": IDENTIFY, "faceData": found}
    files.serve(
        PATHS["apimodels"],
        said({"code": 500, "msg": "timeout", "data": {"taskId": "first"}}, 500),
        said({"code": 200, "data": first}),
        said({"code": 200, "data": {"taskId": "second", "state": "pending", "model": LIP_SYNC}}),
    )
    with desk_of(by_wire) as desk:
        async with crew_of(desk) as crew:
            job_id = await step_sent(desk, crew)
            assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.UNCONFIRMED, None)
            await crew.round()
            assert crew.queued() == [job_id]
            await crew.send(job_id)
            assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.QUEUED, "second")
            asked = [json.loads(sent.body)["model"] for sent in files.requests(PATHS["apimodels"]) if sent.body]
            assert asked == [IDENTIFY, LIP_SYNC]
