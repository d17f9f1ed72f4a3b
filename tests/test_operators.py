"""Who did what: every action of an operator is noted before it is answered, whoever it came through."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from service.jobs.audit import KEPT
from service.model import Observation, Source, Status
from tests.support.processes import BIN, environment
from tests.support.web import API_KEY, Web, environment_of, web_process

GONE: Final = "job_000000000000000000000000"


def noted(web: Web, **query: Any) -> list[dict[str, Any]]:
    """The entries, newest first, without their times."""
    answer = web.api.get("/v1/audit", params=query)
    assert answer.status_code == 200, answer.text
    return [{name: value for name, value in row.items() if name != "at"} for row in answer.json()["data"]]


def test_what_operators_do_is_noted_with_who_what_and_what_came_of_it(web: Web) -> None:
    job = web.track("kitta", vendor_job_id="v1")["id"]
    lost = web.track("chanjing")["id"]
    web.record(Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED), vendor="chanjing", job_id=lost)
    web.callback(web.shared_url("kitta"), b"{")
    [letter] = web.letters()
    endpoint = web.api.post("/v1/endpoints", json={"url": "https://example.com/"}).json()["id"]
    delivery = web.api.post(f"/v1/endpoints/{endpoint}/test").json()["delivery_id"]
    at = f"/v1/endpoints/{endpoint}"
    done: list[tuple[str, str, dict[str, Any] | None, str, str]] = [
        ("POST", f"/v1/jobs/{job}/refresh", None, "jobs.refresh", job),
        ("POST", f"/v1/jobs/{lost}/resolve", {"action": "fail"}, "jobs.resolve", lost),
        ("POST", f"/v1/jobs/{GONE}/refresh", None, "jobs.refresh", GONE),
        ("POST", f"/v1/quarantine/{letter['id']}/replay", None, "quarantine.replay", letter["id"]),
        ("PATCH", at, {"types": ["job.failed"]}, "endpoints.change", endpoint),
        ("POST", f"{at}/secret", None, "endpoints.secret", endpoint),
        ("POST", f"{at}/replay", {"since": "2026-01-01T00:00:00Z"}, "endpoints.replay", endpoint),
        ("POST", f"/v1/deliveries/{delivery}/replay", None, "deliveries.replay", delivery),
        ("DELETE", at, None, "endpoints.delete", endpoint),
    ]
    wanted = [
        {"who": "studio", "action": "endpoints.create", "subject": endpoint, "result": "201"},
        {"who": "studio", "action": "endpoints.test", "subject": endpoint, "result": "202"},
    ]
    for method, path, body, action, subject in done:
        answer = web.api.request(method, path, json=body)
        wanted.append({"who": "studio", "action": action, "subject": subject, "result": str(answer.status_code)})
        assert noted(web, limit=1) == wanted[-1:]
    assert noted(web) == wanted[::-1]
    results = [entry["result"] for entry in wanted]
    assert results == ["201", "202", "202", "200", "404", "422", "200", "201", "202", "202", "204"]
    lines = [{name: line[name] for name in wanted[0]} for line in web.lines("audit")]
    assert lines[-len(wanted) :] == wanted
    first = web.api.get("/v1/audit", params={"limit": 6}).json()
    rest = noted(web, cursor=first["next_cursor"])
    assert [entry["action"] for entry in [*first["data"], *rest]] == [entry["action"] for entry in wanted[::-1]]


def test_what_services_do_all_day_and_what_only_reads_is_not(web: Web) -> None:
    job = web.track("kitta")["id"]
    web.api.patch(f"/v1/jobs/{job}", json={"vendor_job_id": "v1"}).raise_for_status()
    web.job(job)
    for method, path in (("POST", "/v1/nothing"), ("DELETE", "/v1/jobs"), ("GET", "/v1/endpoints")):
        web.api.request(method, path)
    web.http.post(f"/v1/jobs/{job}/refresh")
    assert noted(web) == []


def test_refusals_are_noted_and_only_an_admin_reads(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    keys = "boss:a-key-that-may-do-it-all,shop:a-key-that-only-submits-jobs:submit+read"
    with web_process(tmp_path_factory.mktemp("web"), {"REDIS_URL": redis_url, "API_KEYS": keys}) as web:
        shop, boss = ({"Authorization": f"Bearer {key.split(':')[1]}"} for key in reversed(keys.split(",")))
        assert web.http.post("/v1/endpoints", json={"url": "https://example.com/"}, headers=shop).status_code == 403
        assert web.http.get("/v1/audit", headers=shop).status_code == 403
        [entry] = web.http.get("/v1/audit", headers=boss).json()["data"]
        assert (entry["who"], entry["action"], entry["result"]) == ("shop", "endpoints.create", "403")


def test_whoever_is_shown_a_shared_url_is_noted(web: Web) -> None:
    with httpx.Client(base_url=web.url, trust_env=False, headers={"Origin": web.url}) as browser:
        assert browser.post("/sign-in", data={"key": API_KEY}).status_code == 303
        csrf = re.search(r'name="csrf" value="([^"]+)"', browser.get("/vendors").text)
        assert csrf
        shown = browser.post("/vendors/kitta/callback-url", data={"csrf": csrf[1]})
        assert web.shared_url("kitta") in shown.text.replace("&amp;", "&")
        pressed = browser.post(f"/jobs/{GONE}/refresh", data={"csrf": csrf[1]})
        assert pressed.status_code == 404
    folder = web.process.log.parent
    env = environment(environment_of(web.port, folder, {"REDIS_URL": web.settings.redis_url}))
    command: list[str | Path] = [BIN / "callsheet", "callback-url", "kitta"]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == web.shared_url("kitta")
    terminal, refused, dashboard = noted(web)
    assert terminal["who"].startswith("terminal:")
    assert (terminal["action"], terminal["subject"]) == ("vendors.reveal", "kitta")
    assert refused == {"who": "studio", "action": "jobs.refresh", "subject": GONE, "result": "404"}
    assert dashboard == {"who": "studio", "action": "vendors.reveal", "subject": "kitta", "result": "200"}
    assert all(web.shared_url("kitta").rpartition(".")[2] not in str(entry) for entry in noted(web))


def test_the_latest_are_kept(web: Web) -> None:
    pipeline = web.redis.pipeline()
    for _ in range(KEPT + 500):
        pipeline.xadd(web.key("audit"), {"who": "x", "action": "x", "subject": "x", "result": "200"})
    pipeline.execute()
    web.api.post(f"/v1/jobs/{GONE}/refresh")
    assert KEPT <= web.redis.xlen(web.key("audit")) < KEPT + 500
    assert noted(web, limit=1)[0]["action"] == "jobs.refresh"
