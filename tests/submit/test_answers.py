"""What a vendor may answer to an order, or not, on the wire; and answers that come late."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Final

import pytest
from msgspec.structs import replace

from service.model import Job, Status
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support.files import Answer, Files, Wire, cut, drip, hang, large, raw, status, whole
from tests.support.processes import eventually
from tests.support.sandbox import Desk
from tests.support.submissions import (
    IDENTIFY,
    KLING,
    LIP_SYNC,
    Crew,
    check_nobody_sends_it,
    crew_of,
    expire,
    order,
    resolve,
)
from tests.support.web import Web
from workers import vendor_client

PATHS: Final = {
    "lipsync_studio": "/lipsync_studio/api/v1/lipsync-video",
    "kitta": "/kitta/api/v1/lip-sync/tasks",
    "chanjing": "/chanjing/open/v1/video_lip_sync/create",
    "apimodels": "/apimodels/api/v1/audio/generations",
}


def said(body: object, number: int = 200, **headers: str) -> Answer:
    return whole(json.dumps(body).encode(), status=number, media_type="application/json", **headers)


@pytest.fixture
def settings(callsheet: Web, files: Files, redis_url: str) -> Settings:
    """With a server for vendors that answers as a test tells it to."""
    return replace(callsheet.settings, accounts=deployments.accounts(files.url))


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
async def test_a_refusal_fails_the_job_with_the_vendor_s_words(desk: Desk, crew: Crew, files: Files, case: str) -> None:
    vendor, answer, code, words = REFUSALS[case]
    files.serve(PATHS[vendor], answer)
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


# -- not taken for now ----------------------------------------------------------------------------------


async def test_the_vendor_says_how_long_to_wait(desk: Desk, crew: Crew, files: Files) -> None:
    files.serve(PATHS["kitta"], said({"error": {"message": "slow down"}}, 429, retry_after="77"))
    job_id, other = order(desk, "kitta"), order(desk, "kitta")
    await crew.send(job_id)
    assert desk.due_in(f"submit-{job_id}", "tasks") == pytest.approx(77, abs=1)
    await crew.send(other)  # which is about the same vendor
    assert desk.due_in(f"submit-{other}", "tasks") == pytest.approx(77, abs=1)
    assert len(files.requests(PATHS["kitta"])) == 1


async def test_503_says_that_nothing_was_taken(desk: Desk, crew: Crew, files: Files) -> None:
    files.serve(PATHS["lipsync_studio"], status(503), said({"id": "42", "status": "processing"}))
    job_id = order(desk, "lipsync_studio")
    await crew.send(job_id)
    assert desk.job(job_id).status is Status.PENDING
    await crew.settle()
    assert desk.job(job_id).vendor_job_id == "42"
    assert len(files.requests(PATHS["lipsync_studio"])) == 2


# -- sent, and not answered -----------------------------------------------------------------------------


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
    # As API gateways say it when the vendor behind them has read the order and not answered in time.
    **{f"{number} in words": said({"message": "Endpoint request timed out"}, number) for number in (502, 504)},
    "302": status(302, location="https://example.com/login"),
    "500 and nothing": whole(b"", status=500),
    "no id": said({"status": "processing"}),
    "an empty object": said({}),
    "a list": said([]),
}


@pytest.mark.parametrize("case", LOST)
async def test_an_answer_that_tells_nothing_leaves_the_job_unconfirmed_and_nobody_sends_it_again(
    desk: Desk, crew: Crew, callsheet: Web, files: Files, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(vendor_client, "CALL_SECONDS", 0.25)
    path = PATHS["lipsync_studio"]
    files.serve(path, LOST[case])
    job_id = order(desk, "lipsync_studio")
    await crew.send(job_id)
    check_nobody_sends_it(desk, callsheet, job_id)
    for _ in range(3):
        await crew.round()
    assert await crew.send(job_id) == "note"
    check_nobody_sends_it(desk, callsheet, job_id)
    assert len(files.requests(path)) == 1
    assert (desk.job(job_id).submitted_at, desk.announced(job_id)) == (None, [])


async def test_an_error_that_names_the_job_is_followed_up_by_asking(desk: Desk, crew: Crew, files: Files) -> None:
    files.serve(PATHS["lipsync_studio"], said({"id": "42", "error": "timeout"}, 500))
    files.serve("/lipsync_studio/api/v1/jobs/42", said({"id": "42", "status": "processing"}))
    job_id = order(desk, "lipsync_studio")
    await crew.send(job_id)
    assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.UNCONFIRMED, "42")
    await crew.round()
    assert desk.job(job_id).status is Status.PROCESSING
    assert len(files.requests(PATHS["lipsync_studio"])) == 1


# -- the operator's word --------------------------------------------------------------------------------


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
async def late(desk: Desk, crew: Crew, files: Files) -> AsyncIterator[Late]:
    async with crew_of(desk) as second:
        yield Late(desk, crew, second, files)


class Late:
    """A job whose first sending hangs, while the operator sends it on its way again, say."""

    def __init__(self, desk: Desk, first: Crew, second: Crew, files: Files) -> None:
        self.desk = desk
        self.files = files
        self.first, self.second = first, second
        self.job_id = ""

    async def begin(self, gated: Gated, *later: Answer) -> asyncio.Task[str]:
        path = PATHS["lipsync_studio"]
        self.files.serve(path, gated, *later)
        self.job_id = order(self.desk, "lipsync_studio")
        self.first.queued()
        sending = asyncio.create_task(self.first.send(self.job_id))
        await asyncio.to_thread(eventually, lambda: self.files.requests(path), "the first sending")
        return sending

    async def resent(self, web: Web, gated: Gated, *later: Answer) -> asyncio.Task[str]:
        sending = await self.begin(gated, *later)
        resolve(web, self.job_id, action="resend")
        return sending

    @property
    def job(self) -> Job:
        return self.desk.job(self.job_id)


@pytest.mark.parametrize("answer", LATE)
async def test_a_late_answer_does_not_undo_what_was_sent_after_it(late: Late, callsheet: Web, answer: str) -> None:
    """The first run's lease has run out, as it would after a minute in which its process stood still."""
    gated = Gated(LATE[answer])
    sending = await late.resent(callsheet, gated, said({"id": "second", "status": "processing"}))
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
    sending = await late.resent(callsheet, gated, said({"id": "second", "status": "processing"}))
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
    sending = await late.resent(callsheet, gated, said({"id": "second", "status": "processing"}))
    gated.open()
    assert await sending == "apply"
    await late.second.settle()
    assert late.job.vendor_job_id == "first"
    assert len(late.files.requests(PATHS["lipsync_studio"])) == 1


async def test_an_answer_after_the_deadline_has_the_vendor_asked_for_its_verdict(
    late: Late,
) -> None:
    gated = Gated(said({"id": "42", "status": "processing"}))
    late.files.serve("/lipsync_studio/api/v1/jobs/42", said({"id": "42", "status": "failed", "error": "no face"}))
    sending = await late.begin(gated)
    await expire(late.desk, late.second)
    gated.open()
    await sending
    assert (late.job.status, late.job.vendor_job_id) == (Status.EXPIRED, "42")
    await late.second.round()
    assert late.job.status is Status.FAILED


async def test_an_error_that_names_the_first_step_is_followed_up_by_asking(
    desk: Desk, crew: Crew, files: Files
) -> None:
    found = {"session_id": "s", "face_list": [{"face_id": "f"}]}
    first = {"taskId": "first", "state": "completed", "model": IDENTIFY, "faceData": found}
    files.serve(
        PATHS["apimodels"],
        said({"code": 500, "msg": "timeout", "data": {"taskId": "first"}}, 500),
        said({"code": 200, "data": first}),
        said({"code": 200, "data": {"taskId": "second", "state": "pending", "model": LIP_SYNC}}),
    )
    job_id = order(desk, "apimodels", KLING)
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.UNCONFIRMED, None)
    await crew.round()
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    assert (desk.job(job_id).status, desk.job(job_id).vendor_job_id) == (Status.QUEUED, "second")
    asked = [sent.json["model"] for sent in files.requests(PATHS["apimodels"]) if sent.body]
    assert asked == [IDENTIFY, LIP_SYNC]
