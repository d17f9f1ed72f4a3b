"""The only caller of vendors: whatever a vendor's server does, the answer is an observation, a page or a refusal.

A server that misbehaves on the wire plays the vendor here; its manners as a vendor are the sandbox's.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from msgspec.structs import replace

from service.deployment import opened
from service.jobs.store import Store
from service.model import Observation, Problem, Status
from service.settings import Settings
from service.vendors import VENDORS
from service.vendors.base import ListPage, Refusal
from tests.support import deployment as deployments
from tests.support.files import (
    Answer,
    Files,
    Request,
    chunked,
    cut,
    drip,
    drip_head,
    endless,
    hang,
    large,
    raw,
    redirect,
    run_fast,
    status,
    whole,
)
from tests.support.sandbox import Sandbox
from workers import outbound, vendor_client
from workers.vendor_client import VendorClient

#: The one that is asked by a plain GET.
SLUG = "lipsync_studio"
PATH = f"/{SLUG}/api/v1/jobs/42"
PROCESSING = json.dumps({"id": "42", "status": "processing"}).encode()


@asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[VendorClient]:
    """What one process has: a deployment and HTTP of its own."""
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        yield VendorClient(deployment, http)


@pytest.fixture
def settings(redis_url: str, files: Files) -> Settings:
    return deployments.settings(redis_url, accounts=deployments.accounts(files.url))


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[VendorClient]:
    async with process(settings) as made:
        yield made


def refusal(answer: vendor_client.Answer[Observation]) -> Refusal:
    assert isinstance(answer.reading, Refusal)
    return answer.reading


def answered(body: bytes, number: int = 200, **headers: str) -> Answer:
    return whole(body, status=number, media_type="application/json", **headers)


# -- what goes out ------------------------------------------------------------------------------------------

CREDENTIAL = {
    "apimodels": ("authorization", "Bearer secret of apimodels"),
    "chanjing": ("access_token", "secret of chanjing"),
    "kitta": ("authorization", "Bearer secret of kitta"),
    "lipsync_studio": ("authorization", "Bearer secret of lipsync_studio"),
}


@pytest.mark.parametrize("slug", VENDORS)
async def test_each_vendor_gets_its_own_credential_and_no_other(client: VendorClient, files: Files, slug: str) -> None:
    path = f"/{slug}{VENDORS[slug].status_request('42').path}"
    files.serve(path, answered(b"{}"))
    await client.status(slug, "42")
    (request,) = files.requests(path)
    header, value = CREDENTIAL[slug]
    assert request.headers[header] == value
    assert [text for text in request.headers.values() if "secret of" in text] == [value]
    assert request.headers["user-agent"] == outbound.USER_AGENT
    assert request.headers["accept-encoding"] == "identity"


async def test_a_list_call_has_its_page(client: VendorClient, files: Files) -> None:
    files.serve("/kitta/api/v1/lip-sync/tasks", answered(b'{"data":[],"pagination":{"hasMore":true}}'))
    page = (await client.list_page("kitta", 2)).reading
    assert page == ListPage(observations=(), more=True)
    assert files.requests("/kitta/api/v1/lip-sync/tasks")[0].target.endswith("?limit=100&offset=200")
    files.serve("/chanjing/open/v1/video_lip_sync/list", answered(b'{"code":0,"data":{"list":[]}}'))
    page = (await client.list_page("chanjing", 2)).reading
    assert page == ListPage(observations=(), more=False)
    (request,) = files.requests("/chanjing/open/v1/video_lip_sync/list")
    assert (request.method, request.json) == ("POST", {"page": 3, "page_size": 100})


@pytest.mark.parametrize("vendor_job_id", ["../../secrets", "a/b?c=d#e", "42\r\nX: y", "ü 三", "%2e%2e"])
async def test_a_hostile_id_stays_inside_its_place(client: VendorClient, files: Files, vendor_job_id: str) -> None:
    answer = await client.status(SLUG, vendor_job_id)
    assert isinstance(answer.reading, Refusal)
    assert files.connections == 1
    answer = await client.status("chanjing", vendor_job_id)
    (request,) = files.requests("/chanjing/open/v1/video_lip_sync/detail")
    assert dict(httpx.QueryParams(request.target.partition("?")[2])) == {"id": vendor_job_id}
    assert "x" not in request.headers


async def test_cookies_of_a_vendor_are_not_sent_back(client: VendorClient, files: Files) -> None:
    files.serve(PATH, answered(PROCESSING, set_cookie="who=you; Path=/"))
    for _ in range(2):
        await client.status(SLUG, "42")
    assert [request.headers.get("cookie") for request in files.requests(PATH)] == [None, None]


async def test_a_redirect_takes_the_credential_nowhere(client: VendorClient, files: Files) -> None:
    files.serve("/elsewhere", answered(PROCESSING))
    files.serve(PATH, redirect(f"{files.url}/elsewhere"))
    answer = await client.status(SLUG, "42")
    assert refusal(answer).code == "vendor_error"
    assert files.requests("/elsewhere") == []


async def test_a_vendor_on_a_private_address_is_not_called_unless_that_is_allowed(
    settings: Settings, files: Files
) -> None:
    async with process(replace(settings, allow_private_networks=False)) as guarded:
        answer = await guarded.status(SLUG, "42")
    assert refusal(answer).code == "vendor_unreachable"
    assert files.connections == 0


# -- what comes back ----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Answer, str]] = {
    "closed at once": (raw(b""), "vendor_unreachable"),
    "not HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "vendor_unreachable"),
    "half a status line": (raw(b"HTTP/1.1 2"), "vendor_unreachable"),
    "half the headers": (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "vendor_unreachable"),
    "a header without end": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**20), "vendor_unreachable"),
    "headers without end": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2**18), "vendor_unreachable"),
    "a length that is none": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), "vendor_unreachable"),
    "two lengths": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), "vendor_unreachable"),
    "a chunk without a size": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nlots\r\n"),
        "vendor_unreachable",
    ),
    "cut body": (cut(PROCESSING, 10), "vendor_unreachable"),
    "reset body": (cut(PROCESSING, 10, by_reset=True), "vendor_unreachable"),
    "cut chunks": (chunked(PROCESSING, ended=False), "vendor_unreachable"),
    "more than fits": (large(vendor_client.MAX_ANSWER + 1), "vendor_error"),
    "more than fits in chunks": (endless(), "vendor_error"),
    "400": (status(400), "invalid_input"),
    "401": (status(401), "unauthorized"),
    "402": (status(402), "insufficient_credit"),
    "403": (status(403), "forbidden"),
    "404": (status(404), "not_found"),
    "418": (status(418), "vendor_error"),
    "429": (status(429), "rate_limited"),
    "500": (status(500), "vendor_error"),
    "503": (status(503), "vendor_unreachable"),
    "302": (redirect("/"), "vendor_error"),
}


@pytest.mark.parametrize(("answer", "code"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_answer_is_a_refusal(client: VendorClient, files: Files, answer: Answer, code: str) -> None:
    files.serve(PATH, answer)
    answer_ = await client.status(SLUG, "42")
    assert refusal(answer_).code == code
    assert refusal(answer_).message
    assert "secret of" not in refusal(answer_).message


async def test_nobody_there_is_a_refusal(redis_url: str) -> None:
    async with process(deployments.settings(redis_url)) as client:
        for slug in VENDORS:
            answer = await client.status(slug, "42")
            assert refusal(answer).code == "vendor_unreachable"
        page = (await client.list_page("kitta", 0)).reading
        assert isinstance(page, Refusal)


NOT_UNDERSTOOD: dict[str, tuple[bytes, Problem]] = {
    "nothing": (b"", Problem.BAD_JSON),
    "HTML": (b"<html><body>Welcome to nginx!</body></html>", Problem.BAD_JSON),
    "half": (PROCESSING[:10], Problem.BAD_JSON),
    "deep": (b"[" * 100_000 + b"]" * 100_000, Problem.BAD_JSON),
    "not UTF-8": (b'{"id":"\xff"}', Problem.BAD_JSON),
    "a list": (b"[]", Problem.BAD_SHAPE),
    "null": (b"null", Problem.BAD_SHAPE),
    "another word": (b'{"id":"42","status":"reviewing"}', Problem.UNKNOWN_STATUS),
    "no output": (b'{"id":"42","status":"completed"}', Problem.NO_OUTPUT),
}


@pytest.mark.parametrize(("body", "problem"), NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
async def test_what_cannot_be_understood_is_an_observation_that_says_so(
    client: VendorClient, files: Files, body: bytes, problem: Problem
) -> None:
    files.serve(PATH, answered(body))
    answer = await client.status(SLUG, "42")
    assert isinstance(answer.reading, Observation)
    assert (answer.reading.problem, answer.reading.status) == (problem, None)
    assert answer.raw == body


async def test_an_answer_is_read_with_and_without_its_length(client: VendorClient, files: Files) -> None:
    files.serve(PATH, answered(PROCESSING), chunked(PROCESSING), raw(b"HTTP/1.0 200 OK\r\n\r\n" + PROCESSING))
    for _ in range(3):
        answer = await client.status(SLUG, "42")
        assert isinstance(answer.reading, Observation)
        assert answer.reading.status is Status.PROCESSING


async def test_a_bomb_is_not_unpacked(client: VendorClient, files: Files) -> None:
    bomb = gzip.compress(b" " * 2**26)
    files.serve(PATH, answered(bomb, content_encoding="gzip"))
    answer = await client.status(SLUG, "42")
    assert isinstance(answer.reading, Observation)
    assert answer.reading.problem is Problem.BAD_JSON
    assert answer.raw == bomb


SOON = format_datetime(datetime.now(UTC) + timedelta(seconds=3500), usegmt=True)  # the whole suite is over by then
RETRY_AFTER = {
    "seconds": ("2", 2, 2),
    "seconds with spaces": (" 7 ", 7, 7),
    "zero": ("0", 0, 0),
    "too many": ("86400", 3600, 3600),
    "far too many": ("9" * 400, 3600, 3600),
    "a date": (SOON, 1, 3500),
    "a date in the past": ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    "a date far ahead": ("Wed, 21 Oct 9999 07:28:00 GMT", 3600, 3600),
    "negative": ("-5", 0, 0),
    "a fraction": ("1.5", 0, 2),
    "words": ("in a moment", 0, 0),
    "no digit of ours": ("²", 0, 0),
    "a date without a zone": ("Wed, 21 Oct 2015 07:28:00", 0, 0),
    "a date before time": ("Mon, 01 Jan 0001 00:00:00 -0000", 0, 0),
    "an impossible date": ("Wed, 99 Oct 2015 99:99:99 GMT", 0, 0),
    "an impossible zone": ("Wed, 21 Oct 2015 07:28:00 +99999999999999", 0, 0),
    "empty": ("", 0, 0),
}


@pytest.mark.parametrize(("value", "least", "most"), RETRY_AFTER.values(), ids=RETRY_AFTER)
async def test_retry_after_is_read_in_every_form_and_trusted_for_an_hour(
    client: VendorClient, files: Files, value: str, least: int, most: int
) -> None:
    files.serve(PATH, status(429, retry_after=value))
    answer = await client.status(SLUG, "42")
    assert refusal(answer).code == "rate_limited"
    assert least <= answer.retry_after <= most


# -- in bounded time ----------------------------------------------------------------------------------------

#: Clocks run so much faster here: 75 s of the client's patience pass in 1.5.
TIMES = 50
PATIENCE = 75

SLOW: dict[str, Answer] = {
    "no answer": hang,
    "headers drip": drip_head(),
    "body drips": drip(b" " * 2**20, media_type="application/json"),
}


@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_a_slow_answer_ends_in_time(settings: Settings, files: Files, answer: Answer) -> None:
    files.serve(PATH, answer)

    async def ask() -> None:
        async with process(settings) as client:
            async with asyncio.timeout(PATIENCE):
                answer_ = await client.status(SLUG, "42")
            assert refusal(answer_).code == "vendor_unreachable"

    run_fast(ask(), times=TIMES)


# -- rates --------------------------------------------------------------------------------------------------


def most_in_a_second(requests: list[Request]) -> int:
    times = sorted(request.at for request in requests)
    return max(sum(start <= at < start + 1 for at in times) for start in times)


async def test_rates_are_shared_by_all_processes(settings: Settings, files: Files) -> None:
    files.serve(PATH, answered(PROCESSING))
    allowed, wanted = VENDORS[SLUG].LIMITS["read"].requests, 25
    began = time.monotonic()
    async with process(settings) as one, process(settings) as other:
        await asyncio.gather(*((one, other)[number % 2].status(SLUG, "42") for number in range(wanted)))
    requests = files.requests(PATH)
    assert len(requests) == wanted
    assert time.monotonic() - began >= (wanted - 1) // allowed * 1.0
    assert most_in_a_second(requests) <= allowed + 2  # what was sent in time may arrive late


async def test_one_vendor_s_rate_holds_up_no_other(settings: Settings, files: Files) -> None:
    files.serve(PATH, answered(PROCESSING))
    files.serve("/kitta/api/v1/lip-sync/tasks/42", answered(b'{"taskId":"42","status":"pending"}'))
    async with process(settings) as client:
        for _ in range(VENDORS[SLUG].LIMITS["read"].requests):
            await client.status(SLUG, "42")
        waiting = asyncio.create_task(client.status(SLUG, "42"))
        answer = await client.status("kitta", "42")
        assert isinstance(answer.reading, Observation)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)  # or it outlives the connections that it uses


# -- tokens -------------------------------------------------------------------------------------------------

TOKEN = "/chanjing/open/v1/access_token"
DETAIL = "/chanjing/open/v1/video_lip_sync/detail"


def token_accounts(settings: Settings) -> Settings:
    """The settings where Chanjing's token has to be asked for."""
    credentials = {"CHANJING_APP_ID": "app", "CHANJING_SECRET_KEY": "secret"}
    account = replace(settings.accounts["chanjing"], credentials=credentials)
    return replace(settings, accounts=settings.accounts | {"chanjing": account})


def token_answer(token: str, seconds: float = 86_400) -> Answer:
    data = {"access_token": token, "expire_in": int(time.time() + seconds)}
    return answered(json.dumps({"code": 0, "data": data}).encode())


REFUSED_TOKEN = answered('{"code":10400,"msg":"AccessToken验证失败"}'.encode())
GENERATING = answered(b'{"code":0,"data":{"id":"42","status":10}}')


async def test_a_token_is_made_once_for_all_processes(redis_url: str, sandbox: Sandbox) -> None:
    settings = deployments.settings(redis_url, accounts=sandbox.accounts(minting=True))
    vendor_job_id = sandbox.submit("chanjing")
    async with process(settings) as one, process(settings) as other, process(settings) as third:
        asked = [each.status("chanjing", vendor_job_id) for each in (one, other, third) for _ in range(3)]
        answers = await asyncio.gather(*asked)
    assert all(isinstance(answer.reading, Observation) for answer in answers)
    assert sandbox.calls("chanjing") == {"status": 9, "token": 1}


async def test_a_token_that_was_made_while_another_process_was_looking_is_taken_over(
    settings: Settings, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new token kills the old one, so whoever gets the lease looks again before it asks for one."""
    settings = token_accounts(settings)
    files.serve(TOKEN, token_answer("first"), token_answer("second"))
    files.serve(DETAIL, GENERATING)
    async with process(settings) as quick, process(settings) as late:
        looked, made = asyncio.Event(), asyncio.Event()
        lease = Store.lease

        async def lease_late(store: Store, name: str, owner: str, ms: int) -> bool:
            if store is late._store and not made.is_set():
                looked.set()
                await made.wait()
            return await lease(store, name, owner, ms)

        monkeypatch.setattr(Store, "lease", lease_late)
        waiting = asyncio.create_task(late.status("chanjing", "42"))
        await looked.wait()
        await quick.status("chanjing", "42")
        made.set()
        await waiting
    assert [request.headers["access_token"] for request in files.requests(DETAIL)] == ["first", "first"]
    assert len(files.requests(TOKEN)) == 1


async def test_a_refused_token_is_replaced_once_and_the_call_repeated(redis_url: str, sandbox: Sandbox) -> None:
    settings = deployments.settings(redis_url, accounts=sandbox.accounts(minting=True))
    vendor_job_id = sandbox.submit("chanjing")
    async with process(settings) as one, process(settings) as other:
        await one.status("chanjing", vendor_job_id)
        sandbox.new_token()  # kills ours
        asked = [each.status("chanjing", vendor_job_id) for each in (one, other) for _ in range(3)]
        answers = await asyncio.gather(*asked)
    assert all(isinstance(answer.reading, Observation) for answer in answers)
    calls = sandbox.calls("chanjing")
    assert (calls["token"], calls["status"]) == (1 + 1 + 1, 1 + 6)


async def test_a_fresh_token_that_is_refused_too_is_the_vendor_s_last_word(settings: Settings, files: Files) -> None:
    files.serve(TOKEN, token_answer("first"), token_answer("second"), token_answer("third"))
    files.serve(DETAIL, REFUSED_TOKEN)
    async with process(token_accounts(settings)) as client:
        answer = await client.status("chanjing", "42")
    assert refusal(answer).code == "unauthorized"
    assert [request.headers["access_token"] for request in files.requests(DETAIL)] == ["first", "second"]


async def test_a_token_is_asked_for_without_authentication_and_kept_until_shortly_before_its_end(
    settings: Settings, files: Files
) -> None:
    settings = token_accounts(settings)
    files.serve(TOKEN, token_answer("first", seconds=1000))
    files.serve(DETAIL, GENERATING)
    async with process(settings) as client, opened(settings) as deployment:
        await client.status("chanjing", "42")
        left = await deployment.redis.ttl(deployment.store.key("token", "chanjing"))
    (request,) = files.requests(TOKEN)
    assert request.json == {"app_id": "app", "secret_key": "secret"}
    assert "access_token" not in request.headers
    assert 600 < left <= 700


NO_TOKENS: dict[str, tuple[Answer, str]] = {
    "refused": (answered('{"code":40000,"msg":"参数错误"}'.encode()), "invalid_input"),
    "HTML": (answered(b"<html>"), "vendor_error"),
    "nothing inside": (answered(b'{"code":0,"data":{}}'), "vendor_error"),
    "no end": (answered(b'{"code":0,"data":{"access_token":"first"}}'), "vendor_error"),
    "nobody": (raw(b""), "vendor_unreachable"),
    "503": (status(503), "vendor_error"),
}


@pytest.mark.parametrize(("answer", "code"), NO_TOKENS.values(), ids=NO_TOKENS)
async def test_without_a_token_nothing_is_asked_and_the_next_try_is_free(
    settings: Settings, files: Files, answer: Answer, code: str
) -> None:
    files.serve(TOKEN, answer, token_answer("first"))
    files.serve(DETAIL, GENERATING)
    async with process(token_accounts(settings)) as client:
        refused = await client.status("chanjing", "42")
        assert refusal(refused).code == code
        assert files.requests(DETAIL) == []
        fine = await client.status("chanjing", "42")  # at once: nobody holds the lease any more
        assert isinstance(fine.reading, Observation)


async def test_a_fixed_token_is_used_as_it_is(client: VendorClient, files: Files) -> None:
    files.serve(DETAIL, GENERATING)
    await client.status("chanjing", "42")
    assert files.requests(DETAIL)[0].headers["access_token"] == "secret of chanjing"
    assert files.requests(TOKEN) == []
