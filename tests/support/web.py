"""The web process as a platform starts it: the Procfile's own line, with settings of its own, on a loopback port."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Unpack, cast
from urllib.parse import urlsplit

import httpx

from service.deployment import rhythms
from service.jobs.connection import connect, connect_sync
from service.jobs.tokens import SHARED, Tokens
from service.jobs.tracker import How, Recorded, Tracker
from service.model import Observation, Source, Status
from service.settings import load
from service.vendors import VENDORS

from .processes import ROOT, Process, free_port

API_KEY: Final = "key-of-the-studio"
OTHER_API_KEY: Final = "key-of-the-shop"

#: The first signs, both verify.
SECRET_KEYS: Final = ("signs-and-verifies-0123456789abcdef", "only-verifies-0123456789abcdef")

#: An account at every vendor. The web process calls none of them.
CREDENTIALS: Final[Mapping[str, str]] = {
    name: "made-up" for vendor in VENDORS.values() for name in vendor.CREDENTIALS[0]
}

_ATTEMPTS: Final = 5  #: to start on a port that nobody takes in between


class Web:
    """A running web process, what its users do with it, and a look behind it."""

    def __init__(self, process: Process, env: Mapping[str, str]) -> None:
        self.process = process
        self.settings = load(VENDORS.values(), env)
        self.url = self.settings.public_url
        self.port = urlsplit(self.url).port or 0
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)  #: without an API key
        self.api = httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=_bearer(API_KEY))
        self.redis = connect_sync(self.settings)
        self._tracker = Tracker(connect(self.settings), self.settings, rhythms(self.settings))
        self._tokens = Tokens(self.settings.secret_keys, self.url)

    def close(self) -> None:
        for client in (self.http, self.api, self.redis):
            client.close()

    # -- what users do -----------------------------------------------------------------------------

    def track(self, vendor: str, **fields: object) -> dict[str, Any]:
        """Track a job; the answer, its `callback_url` included."""
        answer = self.api.post("/v1/jobs", json={"vendor": vendor, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.api.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def timeline(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.api.get(f"/v1/jobs/{job_id}/timeline")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def letters(self) -> list[dict[str, Any]]:
        """What is in quarantine, newest first."""
        answer = self.api.get("/v1/quarantine", params={"limit": 100})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def shared_url(self, vendor: str) -> str:
        return self._tokens.url(vendor, SHARED)

    def callback(self, url: str, body: object) -> httpx.Response:
        """Deliver a callback as its vendor would; bytes go out as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(url, content=content, headers={"Content-Type": "application/json"})

    # -- what other processes do, and see ------------------------------------------------------------

    def record(self, observation: Observation, **how: Unpack[How]) -> Recorded:
        """Commit a fact as another process of the deployment would."""
        return self._tracker.record_now(self.redis, observation, **how)

    def ended(self, count: int = 1, vendor: str = "kitta") -> list[str]:
        """Jobs of which two events are published. Returns their ids."""
        ids = [self.track(vendor, vendor_job_id=f"v{self.redis.incr('vendor job')}")["id"] for _ in range(count)]
        for job_id in ids:
            self.record(Observation(source=Source.CALLBACK, status=Status.FAILED), vendor=vendor, job_id=job_id)
        return ids

    def key(self, *parts: str) -> str:
        return ":".join((self.settings.key_prefix, *parts))

    def is_due(self, job: Mapping[str, Any]) -> bool:
        """Whether the poller would ask the job's vendor about it now."""
        due_at = self.redis.zscore(self.key("polls", job["vendor"]), job["id"])
        seconds, micros = self.redis.time()
        return due_at is not None and due_at <= seconds * 1000 + micros / 1000

    def events(self) -> list[dict[str, Any]]:
        """The stream, oldest first."""
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", self.redis.xrange(self.key("stream")))
        return [json.loads(fields[b"event"]) for _, fields in entries]

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines that it has logged under this name so far."""
        return self.process.lines(event)


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def environment_of(port: int, folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The settings of a web process on `port` that keeps its files in `folder`; `env` has `REDIS_URL` and the rest."""
    return {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "STORAGE_URL": f"file://{folder / 'outputs'}",
        "SECRET_KEYS": ",".join(SECRET_KEYS),
        "API_KEYS": f"studio:{API_KEY},shop:{OTHER_API_KEY}",
        **env,
    }


def start_web(folder: Path, env: Mapping[str, str]) -> Process:
    """Start the web process with exactly these settings, whatever becomes of it."""
    lines = (line.partition(":") for line in (ROOT / "Procfile").read_text().splitlines())
    commands = {name: command.strip() for name, _, command in lines}
    return Process(["/bin/sh", "-c", f"exec {commands['web']}"], log=folder / "web.log", env=env)


@contextlib.contextmanager
def web_process(
    folder: Path, env: Mapping[str, str], start: Callable[[Path, Mapping[str, str]], Process] = start_web
) -> Iterator[Web]:
    """Run the web process; see `environment_of` for its settings."""
    for attempt in range(1, _ATTEMPTS + 1):
        settings = environment_of(free_port(), folder, env)
        with start(folder, settings) as process:
            web = Web(process, settings)
            try:
                process.wait_until(lambda web=web: _answers(web), "an answer of the web process")  # type: ignore[misc]
            except AssertionError:
                web.close()
                if attempt == _ATTEMPTS or "address already in use" not in process.output():
                    raise
            else:
                with contextlib.closing(web):
                    yield web
                return


def _answers(web: Web) -> bool:
    try:
        return web.http.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False
