"""The terminal as its users have it: commands in a bare environment, and a running `callsheet up`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import BIN, Process, Processes, environment, free_port

CALLSHEET = BIN / "callsheet"


def run(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """One command in a bare environment, to its end."""
    how: dict[str, Any] = {"cwd": cwd, "input": stdin, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run([str(CALLSHEET), *arguments], env=environment(env), check=False, **how)


def left_running(marker: str) -> list[str]:
    """Command lines of processes that still mention `marker`, or work there: Valkey writes over what it was told."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes() + bytes((path.parent / "cwd").readlink()):
                lines.append((path.parent / "cmdline").read_text())
        except OSError:
            continue  # ended meanwhile, or not ours
    return lines


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
        answer = httpx.get(f"{self.sandbox}/_sandbox/jobs", params={"vendor": vendor})
        return list(answer.json()["data"])


def start_up(processes: Processes, folder: Path) -> Up:
    options = ["--port", str(free_port()), "--seconds", "0.2"]
    env = {"CHANJING_SUBMIT_LIMIT": "1/60"}
    process = processes.start("up", [CALLSHEET, "--data", folder / "data", "up", *options], env=env)
    process.wait_until(lambda: "Up since" in process.output(), "the welcome", timeout=30)
    return Up(process, folder / "data")
