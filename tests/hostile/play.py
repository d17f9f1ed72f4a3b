"""A deployment with all its processes, and a day in its life: faults, echoes, errors, the death of its Redis."""

from __future__ import annotations

import base64
import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from typing import Any, Final
from urllib.parse import quote

import httpx
from redis import Redis, RedisError

from service.vendors import VENDORS
from tests.support import state
from tests.support.processes import ROOT, Process, eventually
from tests.support.sandbox import sandbox_process
from tests.support.servers import valkey_server
from tests.support.submissions import PLAIN
from tests.support.web import web_process

from .outputs import Outputs, Secrets
from .stage import Stage


class Play:
    """One deployment with all its processes, and what happens to it."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._stage, self._stack = stage, stack
        self.known, self.outputs, self.jobs = Secrets(), Outputs(), dict[str, str]()
        self._vendors = stack.enter_context(sandbox_process(stage.folder))
        self._valkey = stack.enter_context(valkey_server(stage.folder))
        env = self._environment()
        self.web = stack.enter_context(web_process(stage.folder, env))
        env |= {"PUBLIC_URL": self.web.url, "STORAGE_URL": self.web.settings.storage_url}
        self.processes = [self.web.process, *(self._start(name, env) for name in ("worker", "poller"))]
        self.web.api.headers["Authorization"] = f"Bearer {self.known.api_key}"
        for client in (self.web.api, self.web.http):
            client.event_hooks["response"] = [self.outputs.heard]

    def _environment(self) -> dict[str, str]:
        known = self.known
        return {
            "REDIS_URL": f"redis://default:{known.redis}@127.0.0.1:{self._valkey.port}/0",
            "SECRET_KEYS": ",".join(known.keys),
            "API_KEYS": f"studio:{known.api_key},reader:{known.reader}:read",
            "ALLOW_PRIVATE_NETWORKS": "1",
            "POLL_GRACE_SECONDS": "1",
            "LOG_FORMAT": "json",
            **{f"{slug.upper()}_BASE_URL": f"{self._vendors.url}/{slug}" for slug in VENDORS},
            **known.vendors,
        }

    def _start(self, name: str, env: Mapping[str, str]) -> Process:
        """A process by its line in the Procfile."""
        lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
        command = ["/bin/sh", "-c", f"exec {lines[name]}"]
        return self._stack.enter_context(Process(command, log=self._stage.folder / f"{name}.log", env=env))

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """Hear what is published; whoever subscribes comes back when Redis does."""
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                with (
                    suppress(RedisError),
                    Redis.from_url(self.web.settings.redis_url) as client,
                    client.pubsub() as heard,
                ):
                    heard.psubscribe("*")
                    while not over.is_set():
                        if message := heard.get_message(timeout=0.1):
                            self.outputs.add("pub/sub", repr(message).encode())

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # -- what happens ------------------------------------------------------------------------------------------

    def submissions(self, faults: Sequence[str]) -> None:
        for vendor, fault in product(VENDORS, faults):
            if vendor == "chanjing" and faults.index(fault) > 5:  # it takes ten a minute
                continue
            self._vendors.order(vendor, fault, count=1)
            given, more = PLAIN[vendor]
            body = {"vendor": vendor, "input": given, "vendor_input": more, "metadata": {"key": "value"}}
            self.jobs[self.web.api.post("/v1/jobs", json=body).json()["id"]] = vendor

    def quotations(self) -> dict[str, str]:
        """Callbacks that quote the URL that they came by, as vendors do who echo a request. The last URL by vendor."""
        urls = {}
        for number, (vendor, quoted) in enumerate(product(VENDORS, QUOTATIONS)):
            job = self.web.track(vendor)
            self.jobs[job["id"]], urls[vendor] = vendor, job["callback_url"]
            said = quoted(job["callback_url"])
            for body in (
                {"id": f"job-{number}", "taskId": f"job-{number}", "status": "failed", "error": said, "failMsg": said},
                {"code": 200, "msg": said, "data": {"id": said, "taskId": said, "state": said, "status": said}},
                {"id": f"job-{number}", "status": "completed", "output": said, "videoUrl": said, "resultJson": said},
            ):
                self.web.callback(job["callback_url"], body)
            self.web.callback(job["callback_url"], f"nonsense {said}".encode())
            self.web.callback(job["callback_url"], f'{{"a": "{said}'.encode()[:-9])
            self.web.api.patch(f"/v1/jobs/{job['id']}", json={"metadata": {"url": said, said: 1}})
            self.web.http.post(f"{job['callback_url']}x", content=said)
        return urls

    def errors(self, urls: Mapping[str, str]) -> None:
        web, shared = self.web, {vendor: self.web.shared_url(vendor) for vendor in VENDORS}
        for vendor, url in [*urls.items(), *shared.items()]:
            web.callback(url, url.encode())
            web.callback(f"{url}/more", b"{}")
            web.http.get(url, headers={"Referer": url, "Cookie": url})
            web.api.post("/v1/jobs", json={"vendor": url, "vendor_job_id": url, "metadata": url, url: 1})
            web.api.post("/v1/jobs", json={"vendor": vendor, "input": {"video_url": url, "audio_url": url, url: 1}})
            once = {"Idempotency-Key": vendor}
            made = web.api.post("/v1/jobs", json={"vendor": vendor, "metadata": {"a": url}}, headers=once)
            if made.status_code == 201:
                self.jobs[made.json()["id"]] = vendor
            web.api.get("/v1/jobs", params={"cursor": url[:100], "status": url[:100]})
        for key in (self.known.reader, f"{self.known.api_key}x", self.known.api_key.upper()):
            with httpx.Client(base_url=web.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as other:
                other.event_hooks["response"] = [self.outputs.heard]
                for path in ("/v1/jobs", "/v1/quarantine", "/v1/costs", "/v1/vendors", "/nothing"):
                    other.get(path)
                    other.post(path, json={})

    def without_redis(self, urls: Mapping[str, str]) -> None:
        self._valkey.process.kill()
        for vendor, url in urls.items():
            self.web.callback(url, {"id": "x", "status": "processing"})
            self.web.callback(url, b"nonsense " + url.encode())
            self.web.api.post("/v1/jobs", json={"vendor": vendor, "metadata": {"url": url}})
        self.read(list(self.jobs)[:2])
        self._valkey = self._stack.enter_context(valkey_server(self._stage.folder, port=self._valkey.port))
        eventually(lambda: self.web.http.get("/readyz").is_success, "readiness", timeout=30)

    def unsettled(self) -> list[str]:
        """The submitted jobs of which no end is known."""
        jobs = self.web.api.get("/v1/jobs", params={"limit": 100}).json()["data"]
        return [job["id"] for job in jobs if job["status"] in ("pending", "queued", "processing") and job["model"]]

    def read(self, job_ids: Sequence[str]) -> None:
        """Everything that the API has to tell."""
        for path in ("/healthz", "/readyz", "/openapi.json", "/v1/vendors", "/v1/costs", "/v1/jobs?limit=100"):
            self.web.api.get(path)
        letters = self.web.api.get("/v1/quarantine?limit=100").json().get("data", [])
        for letter in letters:
            self.web.api.get(f"/v1/quarantine/{letter['id']}")
            self.web.api.post(f"/v1/quarantine/{letter['id']}/replay")
        for job_id in job_ids:
            for path in ("", "/timeline", "/outputs/0"):
                self.web.api.get(f"/v1/jobs/{job_id}{path}")
            self.web.api.post(f"/v1/jobs/{job_id}/refresh")

    def stored(self) -> None:
        """Everything that Redis holds, unpacked where it is packed; a vendor's own token is held for its calls."""
        for key, value in state.snapshot(self.web.redis).items():
            if not key.startswith(self.web.key("token:")):
                self.outputs.add(f"Redis at {_kind(key)}", key.encode() + b" " + b" ".join(_unpacked(value)))


def _kind(key: str) -> str:
    return ":".join(key.split(":")[:3])


def _unpacked(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        for item in value:
            yield from _unpacked(item)
        return
    raw = value if isinstance(value, bytes) else repr(value).encode()
    yield raw
    with suppress(ValueError, zlib.error):
        yield zlib.decompress(raw)
    with suppress(ValueError, zlib.error):
        yield zlib.decompress(base64.b64decode(raw, validate=True))


#: How the vendors' echoes may spell a URL.
QUOTATIONS: Final[tuple[Callable[[str], str], ...]] = (
    lambda url: url,
    lambda url: f"could not deliver to <{url}>: 502",
    lambda url: quote(url, safe=""),
    lambda url: json.dumps({"callback_url": url}),
    lambda url: json.dumps(json.dumps({"callBackUrl": url})).replace("/", "\\/"),
    lambda url: url[:-8],
    lambda url: f"{url}&{url}",
)

FAULTS: Final = (
    *("callback_garbled", "callback_forged", "callback_doubled", "job_failed", "unknown_status", "link_dead"),
    *("submit_refused", "submit_500", "callback_lost", "no_face"),
)
