"""`/v1/endpoints`, `/v1/deliveries`, and the same from the terminal: who may, what is refused, what is never shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from service.jobs.endpoints import MAX_ENDPOINTS, TEST
from service.model import OUTCOMES, Attempt
from tests.support.deployment import accounts, environment
from tests.support.processes import BIN, Processes, eventually
from tests.support.terminal import run
from tests.support.web import API_KEY, CREDENTIALS, Web, web_process

URL: Final = "https://shop.example/hooks"
PRIVATE: Final = "https://10.0.0.1/hooks"  #: refused before anything leaves this machine
NOBODY: Final = f"ep_{'0' * 24}"


def made(web: Web, **fields: Any) -> dict[str, Any]:
    answer = web.api.post("/v1/endpoints", json={"url": URL, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_an_endpoint_is_made_read_changed_and_deleted(web: Web) -> None:
    endpoint = made(web, types=["job.stored"], metadata={"shop": 7})
    secret = endpoint.pop("secret")
    assert secret.startswith("whsec_")
    assert (
        endpoint | {"vendors": [], "enabled": True, "disabled_reason": None, "waiting": 0, "failing_since": None}
        == endpoint
    )
    at = f"/v1/endpoints/{endpoint['id']}"
    assert web.api.get(at).json() == endpoint
    assert web.api.get("/v1/endpoints").json() == {"data": [endpoint]}
    changed = web.api.patch(at, json={"vendors": ["kitta"], "types": [], "enabled": False}).json()
    assert changed == endpoint | {"vendors": ["kitta"], "types": [], "enabled": False, "disabled_reason": "by hand"}
    assert web.api.patch(at, json={"enabled": True}).json()["disabled_reason"] is None
    other = web.api.post(f"{at}/secret").json()["secret"]
    assert other != secret
    for path in (at, "/v1/endpoints", f"{at}/deliveries"):
        assert "whsec" not in web.api.get(path).text
    assert web.api.delete(at).status_code == 204
    assert web.api.get(at).status_code == 404
    assert list(web.redis.scan_iter(f"*{endpoint['id']}*")) == []
    assert secret not in web.process.output()


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, ["url"]),
        ({"url": "http://shop.example/"}, ["url"]),
        ({"url": "https://me:pw@shop.example/"}, ["url"]),
        ({"url": "https://[half.example/"}, ["url"]),
        ({"url": "ftp://shop.example/", "colour": 1}, ["colour", "url"]),
        ({"url": URL, "types": ["job.done"], "vendors": ["nobody"]}, ["types", "vendors"]),
        ({"url": URL, "types": "job.stored", "metadata": []}, ["metadata", "types"]),
    ],
)
def test_every_bad_field_is_named(web: Web, fields: dict[str, Any], wrong: list[str]) -> None:
    answer = web.api.post("/v1/endpoints", json=fields)
    assert answer.status_code == 422
    assert sorted({error["field"] for error in answer.json()["errors"]}) == wrong
    assert web.redis.hlen(web.key("endpoints")) == 0


def test_there_are_only_so_many(web: Web) -> None:
    for _ in range(MAX_ENDPOINTS):
        made(web)
    assert web.api.post("/v1/endpoints", json={"url": URL}).status_code == 409


CHANGES: Final = [
    ("POST", "/v1/endpoints"),
    *(("POST", f"/v1/endpoints/{{id}}/{word}") for word in ("secret", "test", "replay")),
    ("PATCH", "/v1/endpoints/{id}"),
    ("DELETE", "/v1/endpoints/{id}"),
    ("POST", "/v1/deliveries/x/replay"),
]
READS: Final = ["/v1/endpoints", "/v1/endpoints/{id}", "/v1/endpoints/{id}/deliveries"]


@pytest.fixture
def scoped(redis_url: str, tmp_path: Path) -> Iterator[Web]:
    keys = f"a:{API_KEY},r:{'r' * 20}:read,s:{'s' * 20}:submit"
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS, "API_KEYS": keys}) as web:
        yield web


def test_readers_read_and_only_admins_change(scoped: Web) -> None:
    endpoint_id = made(scoped)["id"]

    def status(key: str, method: str, path: str) -> int:
        headers, body = {"Authorization": f"Bearer {key * 20}"}, {"url": URL, "since": "2026-07-01T08:00:00Z"}
        given = None if method == "GET" else body
        return scoped.http.request(method, path.format(id=endpoint_id), headers=headers, json=given).status_code

    assert {status(key, *change) for key in "rs" for change in CHANGES} == {403}
    assert {status("r", "GET", path) for path in READS} == {200}
    assert {status("s", "GET", path) for path in [*READS, "/v1/events"]} == {403}
    assert scoped.api.get(f"/v1/endpoints/{endpoint_id}").json()["enabled"]


@pytest.mark.parametrize(("method", "path"), [change for change in CHANGES if "{id}" in change[1]])
def test_what_is_not_there_is_not_found(web: Web, method: str, path: str) -> None:
    answer = web.api.request(method, path.format(id=NOBODY), json={"since": "2026-07-01T08:00:00Z"})
    assert answer.status_code == 404


def test_replays_name_what_they_cannot_do(web: Web) -> None:
    endpoint, [job_id] = made(web), web.ended()
    at = f"/v1/endpoints/{endpoint['id']}"
    assert web.api.post(f"{at}/replay", json={"since": "2026-07-01T08:00:00"}).status_code == 422
    assert web.api.post(f"{at}/replay", json={"since": "2026-07-01T08:00:00Z"}).json() == {
        "events": 2,
        "complete": True,
    }
    web.redis.xtrim(web.key("stream"), maxlen=1, approximate=False)
    assert web.api.post(f"{at}/replay", json={"since": "2026-07-01T08:00:00Z"}).json() == {
        "events": 1,
        "complete": False,
    }
    assert web.api.get(at).json()["waiting"] == 2
    part = endpoint["id"].removeprefix("ep_")
    for wrong in ("x", f"dlv_{part}_{job_id}_1700000000000-000000000_job.stored", f"dlv_{'0' * 24}_{job_id}_0-0_x"):
        assert web.api.post(f"/v1/deliveries/{wrong}/replay").status_code == 404, wrong
        assert web.api.get(f"/v1/deliveries/{wrong}").status_code == 404, wrong
    web.api.patch(at, json={"enabled": False})
    for path in ("test", "replay"):
        assert web.api.post(f"{at}/{path}", json={"since": "2026-07-01T08:00:00Z"}).status_code == 409
    assert web.api.get(at).json()["waiting"] == 0


def test_tries_are_read_in_pages(web: Web) -> None:
    endpoint = made(web)
    [job_id] = web.ended()
    for number in range(25):
        outcome = OUTCOMES[number % 3]
        attempt = Attempt(
            delivery_id=f"dlv_{number}", event_id="evt_1", type="job.failed" if number < 20 else TEST, job_id=job_id,
            at=datetime.now(UTC), number=number, status=200, ms=1, outcome=outcome, answer='"outcome":"again"',
        )  # fmt: skip
        web.redis.xadd(web.key("attempts", endpoint["id"]), {"attempt": msgspec.json.encode(attempt)})

    def pages(**wanted: str) -> list[int]:
        seen: list[int] = []
        cursor: str | None = ""
        while cursor is not None:
            params = {"limit": "10", **wanted} | ({"cursor": cursor} if cursor else {})
            page = web.api.get(f"/v1/endpoints/{endpoint['id']}/deliveries", params=params).json()
            seen += [row["number"] for row in page["data"]]
            cursor = page["next_cursor"]
        return seen

    every = list(range(24, -1, -1))
    assert pages() == pages(job_id=job_id) == every
    for rest, outcome in enumerate(OUTCOMES):
        assert pages(outcome=outcome) == [number for number in every if number % 3 == rest]
    assert pages(type=TEST, outcome="delivered") == [24, 21]
    assert pages(job_id=f"job_{'0' * 24}") == []
    nowhere = web.api.get(f"/v1/endpoints/{endpoint['id']}/deliveries", params={"cursor": "0000000000000-0"})
    assert nowhere.status_code == 422


# -- the terminal ------------------------------------------------------------------------------------------------------


def test_the_terminal_does_it_all(web: Web, processes: Processes, tmp_path: Path) -> None:
    env = {"CALLSHEET_URL": web.url, "CALLSHEET_API_KEY": API_KEY}

    def callsheet(*words: str, code: int = 0) -> str:
        found = run(*words, env=env)
        assert found.returncode == code, found.stderr
        return found.stdout + found.stderr

    silent = environment(replace(web.settings, accounts=accounts(without=tuple(web.settings.accounts))))
    processes.start("worker", [BIN / "python", "-m", "workers.main"], env=silent)
    endpoint = json.loads(callsheet("endpoints", "add", PRIVATE, "--type", "job.failed", "--metadata", "{}", "--json"))
    id_ = endpoint["id"]
    assert endpoint["types"] == ["job.failed"]
    assert PRIVATE in callsheet("endpoints", "list")
    assert json.loads(callsheet("endpoints", "list", "--json"))["data"][0]["id"] == id_
    callsheet("endpoints", "change", id_, "--everything", "--vendor", "kitta")
    shown = json.loads(callsheet("endpoints", "show", id_, "--json"))
    assert (shown["types"], shown["vendors"], "secret" in shown) == ([], ["kitta"], False)
    sent = json.loads(callsheet("endpoints", "test", id_, "--json"))["delivery_id"]

    def tries() -> list[Any]:
        return list(json.loads(callsheet("deliveries", "list", id_, "--json"))["data"])

    [attempt] = eventually(tries, "the try", timeout=15)
    assert set(attempt) == set(Attempt.__struct_fields__)
    assert (attempt["delivery_id"], attempt["status"], attempt["outcome"]) == (sent, None, "again")
    assert attempt["answer"] == "ClientConnectorError: its address is not allowed"
    assert "ClientConnectorError" in callsheet("deliveries", "list", id_)
    shown = json.loads(callsheet("deliveries", "show", sent, "--json"))
    assert (shown["id"], shown["waiting"], shown["event"]["type"]) == (sent, True, "endpoint.test")
    assert shown["attempts"] == [attempt]
    assert shown["due_at"] > attempt["at"]
    assert len(json.loads(callsheet("deliveries", "list", id_, "--outcome", "again", "--json"))["data"]) == 1
    assert '"waiting"' not in callsheet("deliveries", "show", sent)
    callsheet("deliveries", "replay", sent)
    eventually(lambda: len(tries()) == 2, "the next one", timeout=15)
    assert "whsec_" in callsheet("endpoints", "rotate", id_)
    assert "0 events" in callsheet("endpoints", "replay", id_, "--since", "2026-07-01T08:00:00Z")
    callsheet("endpoints", "change", id_, "--disable")
    assert "by hand" in callsheet("endpoints", "test", id_, code=1)
    callsheet("endpoints", "remove", id_)
    assert "there is no endpoint" in callsheet("endpoints", "show", id_, code=1)

    tail = processes.start("tail", [BIN / "callsheet", "events", "tail", "--after", "0", "--json"], env=env)
    web.ended(2)
    tail.wait_until(lambda: tail.output().count("\n") == 4, "the events")
    assert [json.loads(line) for line in tail.output().splitlines()] == web.events()
    web.redis.xtrim(web.key("stream"), maxlen=1, approximate=False)
    assert "no longer goes back so far" in callsheet("events", "tail", "--after", "0", code=1)
