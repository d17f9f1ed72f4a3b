"""Jobs in the terminal: submitted, watched, resolved, looked after."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import pytest

from service.vendors import VENDORS
from tests.support.processes import Processes, eventually
from tests.support.terminal import CALLSHEET, Up


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
    fields = [*shared.media("faces:2"), "input.duration_seconds:=7", "vendor_input.face:=1"]
    job = shared.json("submit", "apimodels", *fields, "--metadata", '{"order": 42}')

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


def test_export_writes_jobs_with_their_timelines(up: Up) -> None:
    jobs = [up.track() for _ in range(3)]
    answer = up.run("export")
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [line["job"]["id"] for line in lines][:3] == [job["id"] for job in reversed(jobs)]
    assert lines[0]["timeline"] == up.json("jobs", "show", jobs[-1]["id"])["timeline"]
    assert f"{len(lines)} jobs written" in answer.stderr
    assert up.run("export", "--until", "2026-01-01").stdout == ""
    assert up.run("export", "--since", "2999-01-01").stdout == ""


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
    assert [words for words in ("lipsync_studio", "well", "queue_depth", "verdicts in 1 h") if words not in said] == []


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
