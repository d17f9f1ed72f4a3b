"""The Procfile under a runner that knows nothing of this project: the same work as under `callsheet up`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import httpx

from service.cli.demo_plan import SCENES
from service.vendors import VENDORS
from tests.support.processes import Processes, eventually, free_port

SCENES_BY_LABEL = {
    "callback": next(scene for scene in SCENES if scene.vendor == "lipsync_studio" and scene.verdict_by == "callback"),
    "poll": next(scene for scene in SCENES if scene.vendor == "kitta"),
    "envelope": next(scene for scene in SCENES if scene.vendor == "chanjing" and scene.verdict_by == "callback"),
}


def test_the_procfile_does_the_main_job_under_a_procfile_runner(
    redis_url: str, tmp_path: Path, processes: Processes
) -> None:
    played = processes.start("sandbox", [sys.executable, "-m", "sandbox", "--port", "0", "--seconds", "0.3"])
    line = played.wait_until(
        lambda: [word for word in played.output().split() if word.startswith("http://")], "the address"
    )
    sandbox, port = line[0], free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "REDIS_URL": redis_url,
        "STORAGE_URL": (tmp_path / "outputs").as_uri(),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "SECRET_KEYS": "k" * 32,
        "API_KEYS": "test:" + "a" * 32,
        "ALLOW_PRIVATE_NETWORKS": "1",
        **{f"{slug.upper()}_BASE_URL": f"{sandbox}/{slug}" for slug in VENDORS},
        "LIPSYNC_STUDIO_API_KEY": "sk_a_b",
        "KITTA_API_TOKEN": "token",
        "CHANJING_ACCESS_TOKEN": "sandbox-access-token",
        "APIMODELS_API_KEY": "key",
    }
    runner = processes.start("honcho", [sys.executable, "-m", "honcho", "start", "--no-colour"], env=settings)

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
        except httpx.HTTPError:
            return False

    runner.wait_until(ready, "an answer from /readyz", timeout=30)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer " + "a" * 32}) as api:
        media = f"{sandbox}/media/input/"
        submitted = {label: api.post("/v1/jobs", json=scene.request(media)) for label, scene in SCENES_BY_LABEL.items()}
        ids = {label: answer.raise_for_status().json()["id"] for label, answer in submitted.items()}

        def jobs() -> list[dict[str, Any]]:
            return [api.get(f"/v1/jobs/{job_id}").json() for job_id in ids.values()]

        eventually(lambda: all(job["archive"] == "stored" for job in jobs()), "every file at home", timeout=30)
        for label, job_id in ids.items():
            timeline = api.get(f"/v1/jobs/{job_id}/timeline").json()["data"]
            by = next(entry["source"] for entry in timeline if entry["status"] == "succeeded" and entry["applied"])
            assert by == SCENES_BY_LABEL[label].verdict_by

    runner.send(signal.SIGTERM)
    runner.wait(timeout=30)
    assert "Traceback" not in runner.output()
