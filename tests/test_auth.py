"""API keys: who gets in, for what, and what whoever does not get in is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support import state
from tests.support.web import API_KEY, CREDENTIALS, Web, web_process

KEYS: Final = {
    "everything": "a-key-for-everything-0123456789",
    "reader": "a-key-for-reading-0123456789abc",
    "submitter": "a-key-for-submitting-0123456789",
    "both": "a-key-for-both-0123456789abcdef",
    "admin": "a-key-of-an-admin-0123456789abc",
    "hashed": "a-key-of-which-only-the-hash-is-known",
    "hashed reader": "a-reader-of-whom-only-the-hash-is-known",
    "colons": "a:key:with:colons:in:it:0123456789",
}
SCOPES: Final = {
    "reader": ":read",
    "submitter": ":submit",
    "both": ":read+submit",
    "admin": ":admin",
    "hashed reader": ":read",
}
NOBODYS: Final = "a-key-that-nobody-was-ever-given"


def api_keys() -> str:
    def entry(name: str, key: str) -> str:
        known = f"sha256${hashlib.sha256(key.encode()).hexdigest()}" if name.startswith("hashed") else key
        return f"{name.replace(' ', '-')}:{known}{SCOPES.get(name, '')}"

    return ",".join([f"studio:{API_KEY}", *(entry(name, key) for name, key in KEYS.items())])


@pytest.fixture(scope="module")
def running(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    env = {"REDIS_URL": valkey, "API_KEYS": api_keys(), **CREDENTIALS}
    with web_process(tmp_path_factory.mktemp("auth"), env) as web:
        yield web


def ask(web: Web, key: str | None, method: str, path: str, **request: Any) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return web.http.request(method, path, headers=headers, **request)


def is_a_problem(answer: httpx.Response) -> bool:
    told = answer.json()
    named = {"type", "title", "status", "detail"} <= told.keys() and told["status"] == answer.status_code
    return named and answer.headers["content-type"] == "application/problem+json"


# -- scopes ---------------------------------------------------------------------------------------------


def calls(web: Web) -> dict[str, tuple[str, str, str, object]]:
    """What can be done: the scope that it takes, and a request that does it."""
    job = web.track("kitta", vendor_job_id="a")
    web.callback(job["callback_url"], b"nonsense")
    [letter] = web.letters()
    path = f"/v1/jobs/{job['id']}"
    return {
        "list": ("read", "GET", "/v1/jobs", None),
        "read": ("read", "GET", path, None),
        "timeline": ("read", "GET", f"{path}/timeline", None),
        "costs": ("read", "GET", "/v1/costs", None),
        "vendors": ("read", "GET", "/v1/vendors", None),
        "quarantine": ("read", "GET", "/v1/quarantine", None),
        "track": ("submit", "POST", "/v1/jobs", {"vendor": "kitta"}),
        "submit": ("submit", "POST", "/v1/jobs", {"vendor": "chanjing", "input": {"text": "a", "voice": "b"}}),
        "attach": ("submit", "PATCH", path, {"metadata": {"a": 1}}),
        "refresh": ("submit", "POST", f"{path}/refresh", None),
        "resolve": ("admin", "POST", f"{path}/resolve", {"action": "fail"}),
        "replay": ("admin", "POST", f"/v1/quarantine/{letter['id']}/replay", None),
    }


ALLOWED: Final = {
    "everything": {"read", "submit", "admin"},
    "reader": {"read"},
    "submitter": {"submit"},
    "both": {"read", "submit"},
    "admin": {"read", "submit", "admin"},
    "hashed": {"read", "submit", "admin"},
    "hashed reader": {"read"},
    "colons": {"read", "submit", "admin"},
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_opens_what_it_was_made_for_and_nothing_else(web: Web, name: str) -> None:
    wrong = {}
    for what, (scope, method, path, body) in calls(web).items():
        answer = ask(web, KEYS[name], method, path, json=body)
        if (answer.status_code not in (401, 403)) != (scope in ALLOWED[name]):
            wrong[what] = answer.status_code
    assert wrong == {}


def test_a_key_that_may_not_is_told_what_it_lacks_and_what_it_has(web: Web) -> None:
    for key, what, lacks, has in (
        ("reader", "track", "submit", "read"),
        ("submitter", "list", "read", "submit"),
        ("both", "resolve", "admin", "read, submit"),
        ("both", "replay", "admin", "read, submit"),
    ):
        _, method, path, body = calls(web)[what]
        web.redis.flushall()
        answer = ask(web, KEYS[key], method, path, json=body)
        assert (answer.status_code, is_a_problem(answer)) == (403, True)
        assert answer.json()["detail"] == f"this API key has not the scope {lacks!r}; it has {has}"


def test_what_a_key_may_not_do_is_not_done(web: Web) -> None:
    _, method, path, _ = calls(web)["attach"]
    before = state.keys(web.redis)
    for name in ("reader", "hashed reader"):
        for body in ({"metadata": {"a": 1}}, {"vendor_job_id": "b"}):
            ask(web, KEYS[name], method, path, json=body)
        ask(web, KEYS[name], "POST", "/v1/jobs", json={"vendor": "kitta"})
    assert state.keys(web.redis) == before
    assert web.api.get(path).json()["metadata"] == {}


# -- keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        f"Bearer {NOBODYS}",
        f"Basic {KEYS['everything']}",
        KEYS["everything"],
        f"Bearer {KEYS['everything'][:-1]}",
        f"Bearer {KEYS['everything']}x",
        f"Bearer {KEYS['everything'].upper()}",
        f"Bearer sha256${hashlib.sha256(KEYS['hashed'].encode()).hexdigest()}",
        f"Bearer {hashlib.sha256(KEYS['hashed'].encode()).hexdigest()}",
        "Bearer everything",
        f"Bearer {KEYS['reader']}:read",
        f"Bearer {KEYS['reader']} {KEYS['admin']}",
        "Bearer \xff\xfe",
    ],
)
def test_what_is_no_key_of_ours_opens_nothing(web: Web, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/nothing")):
        answer = web.http.request(method, path, headers=headers)
        assert answer.status_code in (401, 429)
        assert is_a_problem(answer)
        assert answer.status_code == 429 or answer.headers["www-authenticate"] == 'Bearer realm="callsheet"'


def test_a_key_is_read_whatever_the_case_of_its_scheme(web: Web) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = web.http.get("/v1/jobs", headers={"Authorization": f"{scheme}  {KEYS['hashed']}"})
        assert answer.status_code == 200


def test_no_key_is_ever_logged_or_kept(web: Web) -> None:
    for key in (*KEYS.values(), NOBODYS):
        ask(web, key, "POST", "/v1/jobs", json={"vendor": "kitta"})
    kept = str([web.redis.dump(key) for key in web.redis.scan_iter()])
    assert {key for key in (*KEYS.values(), NOBODYS) if key in web.process.output() or key in kept} == set()


def test_wrong_keys_are_slowed_down_and_right_ones_are_not(redis_url: str, tmp_path: Path) -> None:
    env = {"REDIS_URL": redis_url, "API_KEYS": api_keys(), **CREDENTIALS}
    with web_process(tmp_path, env) as web:
        refused = [ask(web, f"{NOBODYS}-{number}", "GET", "/v1/jobs") for number in range(120)]
        assert [answer.status_code for answer in refused] == [401] * 100 + [429] * 20
        last = refused[-1]
        assert is_a_problem(last)
        assert 0 < int(last.headers["retry-after"]) <= 61
        assert ask(web, KEYS["reader"], "GET", "/v1/jobs").status_code == 200, "behind a router all have one address"
        assert ask(web, KEYS["reader"], "POST", "/v1/jobs", json={}).status_code == 403
        assert ask(web, None, "GET", "/v1/jobs").status_code == 429
        assert web.http.get("/healthz").status_code == 200
        assert web.http.post("/callbacks/kitta/forged", content=b"{}").status_code == 404
        told = web.lines("wrong API keys")
        assert [line["keys"] for line in told] == [100], "said once"
        assert NOBODYS not in json.dumps(told)


# -- answers ----------------------------------------------------------------------------------------------

HARDENING: Final = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


def test_every_answer_of_the_api_says_what_may_be_done_with_it(web: Web) -> None:
    asked, nowhere = list(calls(web).values()), ("/v1/jobs", "/v1/nothing", "/nothing")
    answers = [
        ask(web, KEYS[name], method, path, json=body) for name in ("reader", "admin") for _, method, path, body in asked
    ]
    answers += [ask(web, key, "GET", path) for key in (None, NOBODYS) for path in nowhere]
    answers += [ask(web, None, method, "/healthz") for method in ("GET", "HEAD", "POST")]
    answers += [ask(web, KEYS["admin"], "POST", "/v1/jobs", content=body) for body in (b"", b"[]", b"x" * 2**21)]
    assert {answer.status_code for answer in answers} >= {200, 201, 400, 401, 403, 404, 405, 413}
    lacking = {
        f"{answer.request.method} {answer.request.url.path} {answer.status_code}": name
        for answer in answers
        for name, value in HARDENING.items()
        if answer.headers.get(name) != value
    }
    assert lacking == {}
    assert all("server" not in answer.headers for answer in answers)


def test_callbacks_are_answered_without_it(web: Web) -> None:
    job = web.track("kitta")
    for url in (job["callback_url"], f"{job['callback_url']}x"):
        answer = web.callback(url, b"nonsense")
        assert set(answer.headers) == {"date", "content-type", "content-length"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_no_other_site_may_read_an_answer_or_send_a_key(web: Web, origin: str) -> None:
    """No CORS: a browser that asks first is told no."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for method in ("OPTIONS", "GET"):
        answer = web.http.request(method, "/v1/jobs", headers=headers)
        assert [name for name in answer.headers if name.startswith("access-control")] == []
        assert answer.status_code in (401, 429)
