"""Errors as Sentry hears of them, on loopback: each of them, and no secret in any."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis

from service.jobs import tasks
from service.jobs.tokens import Tokens
from tests.support.deployment import SECRET, environment, settings
from tests.support.processes import BIN, Processes
from tests.test_tracing import Listener, listening

JOB: Final = "job_06gvj2l7l7t0778rbv7klnh2"
URL: Final = Tokens((SECRET,), "https://callsheet.example").url("kitta", JOB)
MAC: Final = URL.rpartition(".")[2]


def told(listener: Listener) -> list[dict[str, Any]]:
    """The events in the envelopes so far; an envelope is a line of JSON, then for each item two."""
    lines = [line for body in listener.bodies for line in body.splitlines()[1:] if line]
    items = zip(lines[::2], lines[1::2], strict=True)
    return [json.loads(event) for head, event in items if json.loads(head)["type"] == "event"]


def dsn(listener: Listener) -> dict[str, str]:
    return {"SENTRY_DSN": listener.url.replace("//", "//public@") + "/1"}


def test_a_task_that_fails_in_a_worker_is_reported_without_the_token_in_it(
    processes: Processes, redis_url: str
) -> None:
    made = settings(redis_url)
    with listening() as sentry, Redis.from_url(redis_url) as redis:
        worker = processes.start("worker", [BIN / "python", "-m", "workers.main"], env=environment(made) | dsn(sentry))
        data = json.dumps([f"no.such.task {URL} {SECRET}", None, [], {}])
        redis.hset("rq:job:odd", mapping={"data": data, "status": "queued", "origin": made.queue(tasks.SUBMIT)})
        redis.rpush(f"rq:queue:{made.queue(tasks.SUBMIT)}", "odd")
        worker.wait_until(lambda: told(sentry), "a report", timeout=40)
        [event] = told(sentry)
        assert event["message"] == "a task failed"
        assert (event["level"], event["tags"]["part"]) == ("error", "worker")
        assert "is not a task of this worker" in event["contexts"]["line"]["trouble"]
        assert f"{JOB}.***" in event["contexts"]["line"]["trouble"]
        assert event["release"].startswith("callsheet@")
        heard = b"".join(sentry.bodies)
        assert MAC.encode() not in heard
        assert SECRET.encode() not in heard
        assert worker.stop() == 0


PROGRAM: Final = f"""
import logging
from service import logs
from service.deployment import configured
made = configured()
def handle(callback_url, body):
    secret = [callback_url, body]
    raise ValueError(f"cannot deliver to {{callback_url}}")
for log in (logs.get("poller"), logging.getLogger("uvicorn.error")):
    try:
        handle({URL!r}, {{"local": "of-a-body-that-is-nobodys-business"}})
    except ValueError:
        log.exception("a turn failed")
log.warning("that is no error")
"""


@pytest.mark.parametrize("ours", [True, False])
def test_an_exception_is_reported_with_its_traceback_and_no_variable(
    redis_url: str, tmp_path: Path, ours: bool
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM if ours else PROGRAM + f"raise KeyError({URL!r})")
    with listening() as sentry:
        env = environment(settings(redis_url)) | dsn(sentry) | {"PATH": str(BIN)}
        ran = subprocess.run([BIN / "python", program], env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == (0 if ours else 1), ran.stderr
        events, heard = told(sentry), b"".join(sentry.bodies)
    assert [event["exception"]["values"][-1]["type"] for event in events] == ["ValueError"] * 2 + ["KeyError"] * (
        not ours
    )
    frames = events[0]["exception"]["values"][-1]["stacktrace"]["frames"]
    assert [frame["function"] for frame in frames] == ["<module>", "handle"]
    assert not any("vars" in frame for frame in frames)
    assert MAC.encode() not in heard
    assert SECRET.encode() not in heard


def test_without_the_extra_a_process_says_so_and_goes_on(redis_url: str, tmp_path: Path) -> None:
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "sentry_sdk" else find(name, *rest)
from service.deployment import configured
configured()
print("imported:", "sentry_sdk" in sys.modules)
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    env = environment(settings(redis_url)) | {"SENTRY_DSN": "http://public@127.0.0.1:9/1", "PATH": str(BIN)}
    ran = subprocess.run([BIN / "python", program], env=env, capture_output=True, text=True, check=True)
    assert "SENTRY_DSN wants callsheet[sentry] installed" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "imported: False"


def test_an_address_that_is_none_is_said_by_name_when_a_process_starts(redis_url: str) -> None:
    env = environment(settings(redis_url)) | {"SENTRY_DSN": "http://secret@/nowhere", "PATH": str(BIN)}
    ran = subprocess.run([BIN / "python", "-m", "workers.poller"], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "callsheet: SENTRY_DSN is not usable: take it from the project's settings in Sentry"
