"""The Procfile under a runner that knows nothing of this project, with a platform's Redis and the documented settings.

The main job is done as under `callsheet up`; what SIGTERM interrupts is taken up by those who come after.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest
import redis

from service.cli.demo_plan import SCENES
from service.jobs.connection import connect_sync
from service.settings import Settings, load
from service.vendors import VENDORS
from tests.support.processes import ROOT, Process, Processes, eventually, free_port
from tests.support.sandbox import Sandbox, sandbox_process
from tests.support.servers import tls_redis

SCENES_BY_LABEL: Final = {
    "callback": next(scene for scene in SCENES if scene.vendor == "lipsync_studio" and scene.verdict_by == "callback"),
    "poll": next(scene for scene in SCENES if scene.vendor == "kitta"),
    "envelope": next(scene for scene in SCENES if scene.vendor == "chanjing" and scene.verdict_by == "callback"),
}
KEY: Final = "ab" * 32  #: as a platform generates one
#: What the platform itself says, and what makes the sandbox stand in for the vendors, quickly.
BESIDE: Final = {
    "HOST",
    "PORT",
    "REDIS_URL",
    "ALLOW_PRIVATE_NETWORKS",
    "POLL_GRACE_SECONDS",
    *(f"{slug.upper()}_BASE_URL" for slug in VENDORS),
}
EVENTS: Final = ("job.submitted", "job.succeeded", "job.stored")


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox_process(tmp_path) as running:
        yield running


@pytest.fixture
def environ(tmp_path: Path, sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """A dyno's, by what app.json declares."""
    port = free_port()
    declared = json.loads((ROOT / "app.json").read_text())["env"]
    with tls_redis(tmp_path, "a-password") as url:
        settings = {
            **{name: entry["value"] for name, entry in declared.items() if "value" in entry},
            **{name: KEY for name, entry in declared.items() if entry.get("generator") == "secret"},
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "REDIS_URL": url,
            "STORAGE_URL": (tmp_path / "outputs").as_uri(),
            "ALLOW_PRIVATE_NETWORKS": "1",
            **{f"{slug.upper()}_BASE_URL": f"{sandbox.url}/{slug}" for slug in VENDORS},
            "POLL_GRACE_SECONDS": "2",  # callbacks that come while nobody is there are not waited for so long
            "LIPSYNC_STUDIO_API_KEY": "sk_a_b",
            "KITTA_API_TOKEN": "token",
            "CHANJING_APP_ID": "app",
            "CHANJING_SECRET_KEY": "secret",
            "APIMODELS_API_KEY": "key",
        }
        assert settings.keys() - declared.keys() == BESIDE
        yield settings


def started(processes: Processes, name: str, environ: dict[str, str]) -> Process:
    runner = processes.start(name, [sys.executable, "-m", "honcho", "start", "--no-colour"], env=environ)

    def ready() -> bool:
        try:
            return httpx.get(f"{environ['PUBLIC_URL']}/readyz").is_success
        except httpx.HTTPError:
            return False

    runner.wait_until(ready, "an answer from /readyz", timeout=30)
    return runner


def stopped(runner: Process) -> None:
    began = time.monotonic()
    runner.send(signal.SIGTERM)
    runner.wait(timeout=30)
    assert time.monotonic() - began < 30
    assert "SIGKILL" not in runner.output()
    assert "Traceback" not in runner.output()


def told(settings: Settings) -> Counter[tuple[str, str]]:
    """How often each type was told of each job."""
    with closing(connect_sync(settings)) as client:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(f"{settings.key_prefix}:stream"))
    events = (json.loads(fields[b"event"]) for _, fields in entries)
    return Counter((event["data"]["id"], event["type"]) for event in events if event["type"] in EVENTS)


def test_a_dyno_does_the_main_job_and_loses_nothing_when_it_is_stopped(
    environ: dict[str, str], processes: Processes, sandbox: Sandbox
) -> None:
    runner = started(processes, "first", environ)
    settings = load(VENDORS.values(), environ)
    media = f"{sandbox.url}/media/input/"
    with httpx.Client(base_url=environ["PUBLIC_URL"], headers={"Authorization": f"Bearer {KEY}"}) as api:

        def submit(label: str) -> str:
            answer = api.post("/v1/jobs", json=SCENES_BY_LABEL[label].request(media))
            return str(answer.raise_for_status().json()["id"])

        def all_stored(ids: list[str]) -> bool:
            return all(cast("dict[str, Any]", api.get(f"/v1/jobs/{one}").json())["archive"] == "stored" for one in ids)

        first = {label: submit(label) for label in SCENES_BY_LABEL}
        eventually(lambda: all_stored(list(first.values())), "every file at home", timeout=30)
        for label, job_id in first.items():
            timeline = api.get(f"/v1/jobs/{job_id}/timeline").json()["data"]
            by = next(entry["source"] for entry in timeline if entry["status"] == "succeeded" and entry["applied"])
            assert by == SCENES_BY_LABEL[label].verdict_by

        interrupted = [submit(label) for _ in range(15) for label in ("callback", "poll")]
        stopped(runner)
        again = started(processes, "second", environ)
        eventually(lambda: all_stored(interrupted), "what was interrupted", timeout=60)
    stopped(again)
    jobs = [*first.values(), *interrupted]
    assert told(settings) == dict.fromkeys(((job_id, type_) for job_id in jobs for type_ in EVENTS), 1)
    assert sum(len(sandbox.jobs(vendor)) for vendor in VENDORS) == len(jobs)


def test_a_certificate_that_nobody_vouches_for_is_taken_only_when_told(environ: dict[str, str]) -> None:
    wary, trusting = (
        connect_sync(load(VENDORS.values(), environ | {"REDIS_TLS_VERIFY": verify})) for verify in ("1", "0")
    )
    with closing(wary), pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        wary.ping()
    with closing(trusting):
        assert trusting.ping()
