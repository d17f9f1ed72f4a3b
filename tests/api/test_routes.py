"""Every route: who may use it, what it takes, what it never shows; and the start of the web process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.support import state
from tests.support.api import NO_SUCH_JOB, letter_for, problem, stored_job
from tests.support.callbacks import mac_of
from tests.support.processes import free_port
from tests.support.servers import valkey_server
from tests.support.web import API_KEY, OTHER_API_KEY, Web, environment_of, start_web, web_process

# -- who may use it -------------------------------------------------------------------------------------

ROUTES: Final = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", f"/v1/jobs/{NO_SUCH_JOB}"),
    ("PATCH", f"/v1/jobs/{NO_SUCH_JOB}"),
    ("GET", f"/v1/jobs/{NO_SUCH_JOB}/timeline"),
    ("GET", f"/v1/jobs/{NO_SUCH_JOB}/outputs/0"),
    ("POST", f"/v1/jobs/{NO_SUCH_JOB}/refresh"),
    ("POST", f"/v1/jobs/{NO_SUCH_JOB}/resolve"),
    ("GET", "/v1/quarantine"),
    ("GET", f"/v1/quarantine/qua_{'0' * 24}"),
    ("POST", f"/v1/quarantine/qua_{'0' * 24}/replay"),
    ("GET", "/v1/vendors"),
    ("GET", "/v1/no-such-thing"),
    ("DELETE", "/v1/jobs"),
]

REFUSED: Final = [
    None,
    "",
    "Bearer",
    "Bearer wrong",
    f"Bearer {API_KEY}x",
    f"Bearer {API_KEY[:-1]}",
    f"Bearer studio:{API_KEY}",
    f"Bearer {API_KEY} {API_KEY}",
    f"Basic {API_KEY}",
    f"Token {API_KEY}",
    API_KEY,
]


def test_without_a_key_every_route_gives_the_same_refusal(web: Web) -> None:
    answers = set()
    asked = [(route, given) for route in ROUTES for given in REFUSED[:3]] + [(ROUTES[0], given) for given in REFUSED]
    for (method, path), given in asked:
        answer = web.http.request(method, path, headers={} if given is None else {"Authorization": given})
        problem(answer, 401)
        answers.add((answer.content, answer.headers["www-authenticate"], answer.headers["content-length"]))
    [(_, challenge, _)] = answers
    assert challenge.startswith("Bearer")
    assert web.redis.keys("callsheet:job*") == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", [API_KEY, OTHER_API_KEY])
def test_every_key_opens_the_api(web: Web, scheme: str, key: str) -> None:
    answer = web.http.get("/v1/jobs", headers={"Authorization": f"{scheme} {key}"})
    assert (answer.status_code, answer.json()) == (200, {"data": [], "next_cursor": None})


def test_nothing_but_the_answer_to_its_making_holds_a_jobs_token(web: Web) -> None:
    with web.redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.psubscribe("*")
        job = stored_job(web)
        secret, path = mac_of(job["callback_url"]), f"/v1/jobs/{job['id']}"
        url = job["callback_url"]
        echo = {"code": 200, "data": {"taskId": "task-1", "state": "failed", "param": json.dumps({"callback": url})}}
        for body in (url.encode(), json.dumps(echo).encode(), json.dumps({"data": {"taskId": url}}).encode()):
            web.callback(url, body)
        letters = [web.api.get(f"/v1/quarantine/{letter['id']}") for letter in web.letters()]
        assert len(letters) == 2
        answers = [
            web.api.get(path),
            web.api.get("/v1/jobs"),
            web.api.get("/v1/jobs", params={"vendor_job_id": "task-1"}),
            web.api.get(f"{path}/timeline"),
            web.api.get(f"{path}/outputs/1"),
            web.api.get(f"{path}/outputs/7"),
            web.api.patch(path, json={"metadata": {"a": 1}}),
            web.api.post(f"{path}/refresh"),
            web.api.get("/v1/quarantine"),
            *letters,
            *[web.api.post(f"/v1/quarantine/{letter.json()['id']}/replay") for letter in letters],
        ]
        heard = []
        while message := listener.get_message():
            heard.append(str(message["data"]))
    assert any("job.stored" in message for message in heard)
    assert secret in url
    assert [answer.url for answer in answers if secret in answer.text + str(answer.headers)] == []
    assert [message for message in heard if secret in message] == []
    assert [event for event in web.events() if secret in str(event)] == []
    assert state.holding(web.redis, secret) == set()


# -- every route ----------------------------------------------------------------------------------------


def test_a_route_that_is_not_there_is_not_found(web: Web) -> None:
    for path in ("/nope", "/v1/nope", "/v1/jobs/a/b/c", "/v1/", "/callbacks", "/callbacks/", "/%ff", "/%00", "/.env"):
        problem(web.api.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
        ("DELETE", "/v1/jobs", "POST"),
        ("PUT", f"/v1/jobs/{NO_SUCH_JOB}", "GET"),
        ("POST", f"/v1/jobs/{NO_SUCH_JOB}/timeline", "GET"),
        ("POST", f"/v1/jobs/{NO_SUCH_JOB}/outputs/0", "GET"),
        ("GET", f"/v1/jobs/{NO_SUCH_JOB}/refresh", "POST"),
        ("POST", "/v1/quarantine", "GET"),
        ("DELETE", f"/v1/quarantine/qua_{'0' * 24}", "GET"),
        ("GET", f"/v1/quarantine/qua_{'0' * 24}/replay", "POST"),
    ],
)
def test_a_method_that_a_route_does_not_take_is_refused_with_those_that_it_takes(
    web: Web, method: str, path: str, allowed: str
) -> None:
    answer = web.api.request(method, path)
    problem(answer, 405)
    assert allowed in answer.headers["allow"]


def test_head_answers_as_get_does_without_the_body(web: Web) -> None:
    job = stored_job(web)
    path = f"/v1/jobs/{job['id']}"
    letter = letter_for(web, job)
    for target in (
        "/healthz",
        "/readyz",
        "/v1/jobs",
        path,
        f"{path}/timeline",
        f"{path}/outputs/0",
        "/v1/quarantine",
        f"/v1/quarantine/{letter['id']}",
        f"/v1/jobs/{NO_SUCH_JOB}",
    ):
        get, head = web.api.get(target), web.api.head(target)
        assert (head.status_code, head.content) == (get.status_code, b""), target
        for name in ("content-type", "content-length"):
            assert head.headers[name] == get.headers[name], target


# -- health, and the start ------------------------------------------------------------------------------


def test_health_and_readiness_need_no_key(web: Web) -> None:
    assert web.http.get("/healthz").json() == {"status": "ok"}
    assert web.http.get("/readyz").json() == {"status": "ready"}


def test_it_starts_without_redis_and_is_ready_when_redis_comes(tmp_path: Path) -> None:
    port = free_port()
    with web_process(tmp_path, {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}) as web:
        assert web.http.get("/readyz").status_code == 503
        with valkey_server(tmp_path, port=port):
            web.process.wait_until(lambda: web.http.get("/readyz").status_code == 200, "readiness")


def refusal_to_start(folder: Path, env: dict[str, str]) -> str:
    """What the web process says when it cannot start with these settings."""
    with start_web(folder, env) as process:
        assert process.wait() not in (0, None)
        return process.output()


def test_without_settings_it_names_all_that_are_missing_and_does_not_start(tmp_path: Path) -> None:
    said = refusal_to_start(tmp_path, {})
    required = ["REDIS_URL", "STORAGE_URL", "PUBLIC_URL", "SECRET_KEYS", "API_KEYS"]
    assert [name for name in required if f"{name} is missing" not in said] == []
    assert "Traceback" not in said


def test_it_names_every_setting_that_cannot_be_used_and_shows_no_secret(tmp_path: Path) -> None:
    wrong = {
        "REDIS_URL": "http://user:pass-word@localhost",
        "STORAGE_URL": "ftp://pass-word@localhost",
        "PUBLIC_URL": "localhost:8000",
        "API_KEYS": "pass-word,studio:a,studio:b",
        "KEY_PREFIX": "a:b",
        "REDIS_TLS_VERIFY": "perhaps",
        "MAX_CALLBACK_BYTES": "16 MB",
        "JOB_DEADLINE_SECONDS": "-1",
        "POLL_GRACE_SECONDS": "nan",
        "LOG_FORMAT": "xml",
        "CHANJING_APP_ID": "half-a-pair",
        "KITTA_BASE_URL": "kitta.example",
    }
    said = refusal_to_start(tmp_path, environment_of(free_port(), tmp_path, wrong))
    named = {*wrong, "CHANJING_SECRET_KEY"} - {"CHANJING_APP_ID"}
    assert [name for name in named if name not in said] == []
    assert "pass-word" not in said
    assert "half-a-pair" not in said
    assert "Traceback" not in said
