"""The dashboard below what is seen: sessions, forms, headers, outputs, and what each page costs."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import obstore
import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.dashboard import session as sessions
from service.dashboard.drawing import lanes
from service.dashboard.session import Sessions
from service.jobs.scripts import pack_body
from service.model import Archive, Observation, Output, Source, Status, Stored
from service.settings import ApiKey, Settings
from tests.bench import pages
from tests.support.deployment import settings
from tests.support.servers import S3
from tests.support.web import API_KEY, CREDENTIALS, Web, web_process

READABLE: Final = b'{"code": 200, "data": {"taskId": "task-1", "state": "processing"}}'
READER: Final = "a-key-that-may-only-read-01234567"


@pytest.fixture(scope="module")
def running(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    keys = f"studio:{API_KEY},reader:{READER}:read,sender:a-key-that-may-only-send-01234567:submit"
    with web_process(tmp_path_factory.mktemp("web"), {"REDIS_URL": valkey, "API_KEYS": keys, **CREDENTIALS}) as web:
        yield web


def sign_in(web: Web, key: str = API_KEY, next_: str = "/jobs", **headers: str) -> httpx.Response:
    given = {"Origin": web.url, **headers}
    return httpx.post(f"{web.url}/sign-in", data={"key": key, "next": next_}, headers=given, trust_env=False)


@pytest.fixture
def visitor(web: Web) -> Iterator[httpx.Client]:
    """Somebody who is signed in."""
    with visiting(web) as client:
        yield client


def visiting(web: Web, key: str = API_KEY) -> httpx.Client:
    cookies = sign_in(web, key).cookies
    assert cookies
    return httpx.Client(base_url=web.url, cookies=cookies, headers={"Origin": web.url}, trust_env=False)


def csrf(client: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([\w-]{43})"', client.get("/jobs").text)
    assert found
    return found[1]


# -- signing in ----------------------------------------------------------------------------------------------


def test_pages_lead_to_the_door_and_back(web: Web) -> None:
    for path in ("/", "/jobs?status=failed", "/jobs/job_0", "/quarantine", "/endpoints", "/vendors"):
        answer = web.http.get(path)
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/sign-in")
    assert web.http.get("/jobs?status=failed").headers["location"] == "/sign-in?next=/jobs%3Fstatus%3Dfailed"
    assert web.http.get("/", headers={"HX-Request": "true"}).headers["hx-redirect"] == "/sign-in"
    assert web.http.get("/nothing").headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("next_", "leads_to"),
    [
        ("/jobs?status=failed", "/jobs?status=failed"),
        *(
            (elsewhere, "/")
            for elsewhere in ("https://evil.example", "//evil.example", "/\\evil.example", "x", "/a\nb")
        ),
    ],
)
def test_the_door_leads_nowhere_else(web: Web, next_: str, leads_to: str) -> None:
    assert sign_in(web, next_=next_).headers["location"] == leads_to


@pytest.mark.parametrize(
    ("key", "headers", "status", "says"),
    [
        ("no key of ours", {}, 401, "not a key of this deployment"),
        ("", {}, 401, "not a key of this deployment"),
        ("a-key-that-may-only-send-01234567", {}, 403, "has not the scope"),
        (API_KEY, {"Origin": "https://evil.example"}, 403, "not sent by a page of this service"),
        (API_KEY, {"Origin": "null"}, 403, "not sent by a page of this service"),
    ],
)
def test_who_does_not_get_in_is_told_why(web: Web, key: str, headers: dict[str, str], status: int, says: str) -> None:
    answer = sign_in(web, key, **headers)
    assert (answer.status_code, says in answer.text, answer.cookies) == (status, True, httpx.Cookies())


def test_wrong_keys_are_counted_with_those_of_the_api(web: Web, tmp_path: Path) -> None:
    with web_process(tmp_path, {"REDIS_URL": web.settings.redis_url, **CREDENTIALS}) as other:
        answers = [sign_in(other, f"wrong-{number}").status_code for number in range(101)]
        assert answers == [401] * 100 + [429]
        assert sign_in(other).status_code == 303, "a right one gets in all the same"


# -- sessions ------------------------------------------------------------------------------------------------


def session_of(made: Settings, cookie: str) -> sessions.Session | None:
    name = "__Host-callsheet" if made.public_url.startswith("https") else "callsheet"
    return Sessions(made).read(Request({"type": "http", "headers": [(b"cookie", f"{name}={cookie}".encode())]}))


def cookie_of(made: Settings, key_name: str = "tests") -> tuple[str, str]:
    """The cookie's value, and all that is said about it."""
    response = Response()
    Sessions(made).begin(response, key_name)
    said = response.headers["set-cookie"]
    return said.partition("=")[2].partition(";")[0], said


def test_a_session_is_as_long_lived_as_its_key_and_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings("redis://127.0.0.1:1")
    cookie, said = cookie_of(made)
    assert "HttpOnly" in said
    assert "SameSite=lax" in said
    assert "Max-Age=43200" in said
    assert ApiKey.of("x").digest not in cookie

    def after(**changes: Any) -> bool:
        return session_of(msgspec.structs.replace(made, **changes), cookie) is not None

    old, new = made.secret_keys[0], "another secret key that signs from now on"
    assert after()
    assert after(secret_keys=(new, old))
    assert not after(secret_keys=(new,))
    assert not after(api_keys={"other": made.api_keys["tests"]})
    assert not after(api_keys={"tests": ApiKey.of("another key of this name")})
    monkeypatch.setattr(sessions, "SECONDS", -1)
    assert session_of(made, cookie_of(made)[0]) is None, "it is over"


def test_a_session_follows_the_scopes_of_its_key() -> None:
    made = settings("redis://127.0.0.1:1")
    reads = msgspec.structs.replace(made.api_keys["tests"], scopes=frozenset({"read"}))
    found = session_of(msgspec.structs.replace(made, api_keys={"tests": reads}), cookie_of(made)[0])
    assert found
    assert [found.may(scope) for scope in ("read", "submit", "admin")] == [True, False, False]


def test_https_makes_the_cookie_the_host_s_alone() -> None:
    made = settings("redis://127.0.0.1:1", public_url="https://callsheet.example")
    cookie, said = cookie_of(made)
    assert said.startswith("__Host-callsheet=")
    assert "Secure" in said
    assert "Path=/" in said
    assert session_of(made, cookie)


def _flipped(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


def test_a_cookie_that_was_meddled_with_is_none() -> None:
    made = settings("redis://127.0.0.1:1")
    cookie, _ = cookie_of(made)
    spoiled = {
        "mac": _flipped(cookie, len(cookie) - 2),
        "nonce": _flipped(cookie, cookie.rindex(".") - 2),
        "name": cookie.replace(b"tests".hex(), b"other".hex()),
        "end": re.sub(r"\.\d{10}\.", ".9999999999.", cookie),
        "longer": cookie + "A",
        "unsigned": cookie.rpartition(".")[0],
        "no text": "fffe" + cookie[10:],
        "nothing": "",
    }
    assert session_of(made, cookie)
    assert {what for what, value in spoiled.items() if value == cookie or session_of(made, value)} == set()


# -- forms ---------------------------------------------------------------------------------------------------


def test_a_form_counts_only_from_our_own_page(web: Web, visitor: httpx.Client) -> None:
    job = web.track("kitta", vendor_job_id="a")
    path, token = f"/jobs/{job['id']}/refresh", csrf(visitor)
    with visiting(web, READER) as other:
        tries: list[tuple[dict[str, str], dict[str, str]]] = [
            ({}, {}),
            ({"csrf": ""}, {}),
            ({"csrf": token[:-1] + "_"}, {}),
            ({"csrf": csrf(other)}, {}),
            ({"csrf": token}, {"Origin": "https://evil.example"}),
            ({"csrf": token}, {"Origin": "null"}),
            ({"csrf": token}, {"Origin": ""}),
        ]
    before = web.timeline(job["id"])
    assert {visitor.post(path, data=data, headers=headers).status_code for data, headers in tries} == {403}
    assert web.timeline(job["id"]) == before
    assert visitor.get(path).status_code == 405
    good = visitor.post(path, data={"csrf": token, "back": "//evil.example"})
    assert (good.status_code, good.headers["location"]) == (303, "/?done=jobs-refresh")
    assert len(web.timeline(job["id"])) == len(before) + 1
    assert (web.lines("audit")[-1]["who"], web.lines("audit")[-1]["action"]) == ("studio", "jobs.refresh")


def test_what_a_key_may_not_do_is_refused(web: Web) -> None:
    job = web.track("kitta", vendor_job_id="a")
    with visiting(web, READER) as reader:
        token = csrf(reader)
        for path in (
            *(f"/jobs/{job['id']}/{button}" for button in ("refresh", "resolve")),
            *("/quarantine/qua_0/replay", "/deliveries/dlv_0/replay", "/vendors/kitta/callback-url"),
            *(f"/endpoints/ep_0/{button}" for button in ("test", "replay", "enable", "disable")),
        ):
            answer = reader.post(path, data={"csrf": token})
            assert (answer.status_code, "scope" in answer.text, "shared." in answer.text) == (403, True, False), path


def test_a_letter_is_read_again_from_its_page(web: Web, visitor: httpx.Client) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    web.callback(job["callback_url"], b"{")
    letter = web.letters()[0]["id"]
    form = {"csrf": csrf(visitor), "back": f"/jobs/{job['id']}"}
    refused = visitor.post(f"/quarantine/{letter}/replay", data=form)
    assert (refused.status_code, "still not understood" in refused.text, form["back"] in refused.text) == (
        422,
        True,
        True,
    )
    web.redis.hset(web.key("quarantine", letter), "body", pack_body(READABLE))
    assert "It is understood now" in visitor.get(f"/quarantine/{letter}").text
    assert (
        visitor.post(f"/quarantine/{letter}/replay", data=form).headers["location"]
        == f"{form['back']}?done=quarantine-replay"
    )
    assert web.letters() == []


# -- answers -------------------------------------------------------------------------------------------------


def test_pages_run_and_load_nothing_but_our_own(web: Web, visitor: httpx.Client) -> None:
    for path in ("/sign-in", "/", "/jobs", "/jobs/job_0", "/quarantine", "/endpoints", "/vendors"):
        answer = visitor.get(path)
        policy = dict(rule.partition(" ")[::2] for rule in answer.headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
        assert set(policy.values()) == {"'self'"}
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! src=\"/static/)|javascript:", answer.text)
    styles = re.findall(r'(?:href|src)="(/static/[^"]+)"', visitor.get("/").text)
    for path in styles:
        answer = web.http.get(path)
        assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
    other = web.http.get(re.sub(r"\w{12}", "0" * 12, styles[0], count=1))
    assert (other.status_code, other.headers["cache-control"]) == (200, "no-store"), "of the release before"
    assert web.http.get("/static/x/nothing.css").status_code == 404


class _Partial(BaseHTTPRequestHandler):
    """In front of rclone, which answers 200 where S3 answers 206: a part of an object."""

    server: _PartialServer

    def do_GET(self) -> None:
        answer = httpx.get(self.server.behind + self.path, headers=dict(self.headers.items()), trust_env=False)
        self.send_response(206 if "content-range" in answer.headers else answer.status_code)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _PartialServer(ThreadingHTTPServer):
    behind: str


@contextlib.contextmanager
def answering_parts(s3: S3) -> Iterator[str]:
    """The address of an S3 server that answers as S3 does."""
    with _PartialServer(("127.0.0.1", 0), _Partial) as server:
        server.behind = s3.endpoint
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_long_payload_is_shown_whole_to_who_asks(web: Web, visitor: httpx.Client) -> None:
    job = web.track("kitta", vendor_job_id="a")["id"]
    said = Observation(source=Source.CALLBACK, status=Status.PROCESSING)
    web.record(said, vendor="kitta", job_id=job, raw=b'{"echo": "%s-end"}' % (b"x" * 20_000))
    short = visitor.get(f"/jobs/{job}").text
    assert ("Show all 20,0" in short, "x-end" in short, len(short) < 20_000) == (True, False, True)
    [link] = re.findall(r'href="(/jobs/[^"]+)">Show all', short)
    assert "x-end" in visitor.get(link).text


def test_a_page_asks_for_news_as_long_as_there_may_be_some(web: Web, visitor: httpx.Client) -> None:
    job, [ended] = web.track("kitta", vendor_job_id="a")["id"], web.ended()
    asked = {f"/jobs/{job}": 200, f"/jobs/{ended}": 286, f"/jobs/{ended}?done=jobs-refresh": 200, "/jobs": 200}
    live = {path: visitor.get(path, headers={"HX-Request": "true"}).status_code for path in asked}
    assert live == asked
    assert {path: ("hx-get" in visitor.get(path).text) for path in asked} == {
        path: status == 200 for path, status in asked.items()
    }


def test_a_query_that_means_nothing_is_refused_on_a_page(visitor: httpx.Client) -> None:
    for query in ("session=a&path=b&query=c", "status=lost", "cursor=x", "id=%00"):
        answer = visitor.get(f"/jobs?{query}")
        assert (answer.status_code, "<h1>Not understood</h1>" in answer.text) == (422, True)
    assert visitor.get("/jobs/job_%3F%7Bid%7D").status_code == 404


def test_an_output_in_a_bucket_is_streamed_from_our_own_address(
    s3: S3, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    film, key = b"\0\0\0\x18ftypisom" + bytes(range(256)) * 4000, "kitta/film/0.mp4"
    url = s3.storage_url("dashboard")
    obstore.put(obstore.store.from_url(url), key, film)
    env = {"REDIS_URL": redis_url, "STORAGE_URL": url, **CREDENTIALS, **s3.environment}
    with (
        answering_parts(s3) as endpoint,
        web_process(tmp_path, {**env, "AWS_ENDPOINT_URL": endpoint}) as web,
        visiting(web) as visitor,
    ):
        job = web.track("kitta", vendor_job_id="a")["id"]
        stored = Stored(url="", key=key, bytes=len(film), sha256="", content_type="video/mp4")
        outputs = (Output(url="https://vendor.example", stored=stored),)
        done = Observation(
            source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=(Output(url="https://vendor.example"),)
        )
        web.record(done, vendor="kitta", job_id=job)
        kept = Observation(source=Source.ARCHIVE, archive=Archive.STORED, outputs=outputs)
        web.record(kept, vendor="kitta", job_id=job)
        for asked, status, first, end in (
            (None, 200, 0, len(film)),
            ("bytes=0-", 206, 0, len(film)),
            ("bytes=4-11", 206, 4, 12),
            ("bytes=-10", 206, len(film) - 10, len(film)),
            ("bytes=300000-99999999", 206, 300000, len(film)),
        ):
            headers = {} if asked is None else {"Range": asked}
            answer = visitor.get(f"/jobs/{job}/outputs/0", headers=headers)
            assert (answer.status_code, answer.content) == (status, film[first:end])
            assert answer.headers.get("content-range", "") == (f"bytes {first}-{end - 1}/{len(film)}" if asked else "")
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.headers["content-disposition"].startswith("attachment")
        for beyond in ("bytes=99999999-", "bytes=-0", "bytes=9-3"):
            assert visitor.get(f"/jobs/{job}/outputs/0", headers={"Range": beyond}).status_code == 416
        for nothing in (f"/jobs/{job}/outputs/1", "/jobs/job_0/outputs/0"):
            assert visitor.get(nothing).status_code == 404
        assert web.http.get(f"/jobs/{job}/outputs/0").status_code == 303
        obstore.delete(obstore.store.from_url(url), key)
        assert visitor.get(f"/jobs/{job}/outputs/0").status_code == 404


def test_a_page_costs_the_same_however_many_jobs_there_are(web: Web) -> None:
    """By the commands that Redis runs for it: time is for the bench."""
    counted = []
    for jobs in (50, 500):
        pages.seed(web.settings, jobs)
        with visiting(web) as visitor:
            for path in pages.PATHS:
                visitor.get(path)
            before = web.redis.info("commandstats")
            for path in pages.PATHS:
                assert visitor.get(path).status_code == 200
            after = web.redis.info("commandstats")
        counted.append(sum(stats["calls"] - before.get(name, {"calls": 0})["calls"] for name, stats in after.items()))
    assert counted[1] <= counted[0] * 1.2 + 50


def test_a_timeline_is_drawn_from_its_beginning_to_its_end() -> None:
    def at(seconds: float) -> str:
        return (begun + timedelta(seconds=seconds)).isoformat()

    begun = datetime(2026, 7, 1, tzinfo=UTC)
    entries: list[dict[str, Any]] = [
        {"at": at(0), "source": "submit", "status": None, "applied": True},
        {"at": at(1), "source": "callback", "status": "succeeded", "applied": True},
        {"at": at(3600), "source": "callback", "status": "failed", "applied": False},
    ]
    drawn = lanes({"created_at": at(0), "status": "succeeded"}, entries, begun + timedelta(days=1))
    assert {source: [dot.number for dot in dots] for source, dots in drawn.lanes.items()} == {
        "submit": [1],
        "callback": [2, 3],
    }
    [first], [second, third] = drawn.lanes.values()
    assert 0 < first.x < second.x < third.x < 100
    assert (second.applied, third.applied, third.bad) == (True, False, True)
    assert (drawn.marks[0], drawn.marks[-1]) == ("0 ms", "1 h")
    living = lanes({"created_at": at(0), "status": "queued"}, entries[:1], begun + timedelta(days=1))
    assert living.marks[-1] == "1 d", "until now"
