"""Hundreds of connections that never get on, and bodies of a gigabyte: honest callbacks come through all the same.

What is measured under attack stands beside the same without it. The limits are ratios, and far: what they tell is that
nothing breaks, not how fast this machine is.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from service.model import Archive, Observation, Output, Source, Status, Stored
from tests.support.processes import BIN, Process
from tests.support.servers import valkey_server
from tests.support.web import API_KEY, CREDENTIALS, Web, start_web, web_process

from .launcher import command
from .measure import megabytes, milliseconds, peak, quantile, resident
from .stage import Result, Stage
from .wire import ask, request

#: 900 in all.
CROWD: Final = {
    "silent": 150,
    "half head": 150,
    "half body": 150,
    "drip head": 150,
    "drip body": 150,
    "slow reader": 150,
}
GIGABYTES: Final = {
    "gigabyte good length": 1,
    "gigabyte good chunked": 1,
    "gigabyte forged length": 1,
    "gigabyte forged chunked": 1,
}

#: For the short form; the whole one waits as long as the product does.
HASTE: Final = {
    "service.server.HEAD_SECONDS": 0.6,
    "service.server.BODY_SECONDS": 3.0,
    "service.server.MIN_RATE_AFTER": 0.6,
    "service.server.STALLED_SECONDS": 0.6,
    "service.server.STOP_SECONDS": 0.3,
    "service.server.LOOK_EVERY": 0.2,
}
LIMITS: Final = {"p50": 30.0, "p99": 60.0}  #: how many times as long as without
PATIENCE: Final = 2.0  #: seconds that are nothing to worry about in any case
MEMORY: Final = 256 * 2**20
STOPS: Final = 25.0  #: platforms kill after 30
_FILE: Final = 12 * 2**20


@dataclass(frozen=True)
class Measured:
    p50: float
    p99: float
    refused: int
    number: int

    def __str__(self) -> str:
        return f"p50 {milliseconds(self.p50)}, p99 {milliseconds(self.p99)} of {self.number:,}"


def run(stage: Stage) -> Result:
    result = Result()
    with valkey_server(stage.folder) as valkey:
        slow = {kind: number // stage.of(1, 3) for kind, number in CROWD.items()}
        for name, crowd, seconds in (
            ("nobody", {}, 0.0),
            (f"{sum(slow.values())} that do not get on", slow, stage.of(35.0, 1.5)),  # longer than any deadline
            ("bodies of 1 GB", GIGABYTES, stage.of(12.0, 1.5)),
        ):
            folder = stage.folder / name.replace(" ", "-")
            folder.mkdir()
            env = {"REDIS_URL": valkey.url, "KEY_PREFIX": folder.name, **CREDENTIALS}
            with web_process(folder, env, _hasty if stage.short else start_web) as web:
                stage.say(f"honest callbacks beside {name}")
                _measure(stage, web, name, crowd, seconds, result)
    return result


def _hasty(folder: Path, env: Mapping[str, str]) -> Process:
    options = ("--host", "127.0.0.1", "--port", env["PORT"])
    return Process(command("service.server", HASTE, *options), log=folder / "web.log", env=env)


def _measure(stage: Stage, web: Web, name: str, crowd: Mapping[str, int], seconds: float, result: Result) -> None:
    pid, quiet = web.process.pid, stage.of(3.0, 0.3)
    if crowd:
        _honest(web, quiet)
    before, memory = _honest(web, quiet), resident(pid)
    with _attack(web, crowd) as attacker:
        if crowd:
            during = _honest(web, seconds)
            slow = [
                kind for kind in LIMITS if getattr(during, kind) > max(LIMITS[kind] * getattr(before, kind), PATIENCE)
            ]
            result.note(f"honest callbacks beside nobody: {before}; beside {name}: {during}", fine=not slow)
            result.note(f"of those {during.refused} refused", fine=during.refused == 0)
            most = peak(pid)
            result.note(f"memory {megabytes(memory)} → {megabytes(most)} at most", fine=most - memory < MEMORY)
        began = time.monotonic()
        web.process.send(signal.SIGTERM)
        web.process.wait(timeout=60)
        took = time.monotonic() - began
        result.note(f"beside {name}, SIGTERM is obeyed in {took:.1f} s", fine=took < STOPS)
    if attacker:
        told = json.loads(attacker.output().splitlines()[-1])
        cut = sum(told["cut"].values())
        result.note(f"cut off meanwhile: {cut}", fine=cut > 0)
        if told["most"]:
            words = ", ".join(f"{kind.split(' ', 1)[1]} {megabytes(size)}" for kind, size in told["most"].items())
            limit = web.settings.max_callback_bytes + 32 * 2**20  # the buffers on the way take some
            result.note(f"taken of a gigabyte: {words}", fine=max(told["most"].values()) < limit)


@contextlib.contextmanager
def _attack(web: Web, crowd: Mapping[str, int]) -> Iterator[Process | None]:
    """The crowd, all there, in a process of its own."""
    if not crowd:
        yield None
        return
    victim = web.track("kitta", vendor_job_id="victim")
    good = urlsplit(victim["callback_url"]).path
    orders = {
        "crowd": crowd,
        "port": urlsplit(web.url).port,
        "good": good,
        "forged": f"{good}x",
        "answer": _large_answer(web),
        "key": API_KEY,
    }
    log = Path(web.process.log).with_name("attacker.log")
    with Process([BIN / "python", "-m", "tests.hostile.attacker", json.dumps(orders)], log=log) as attacker:
        attacker.wait_until(lambda: "all there" in attacker.output(), "all connections", timeout=60)
        yield attacker
        attacker.send(signal.SIGTERM)
        attacker.wait(timeout=30)


def _honest(web: Web, seconds: float) -> Measured:
    """Callbacks one after the other, each on a connection of its own, as vendors send them."""
    job = web.track("kitta")
    body = json.dumps({"taskId": job["id"], "status": "processing"}).encode()
    raw, port = request("POST", urlsplit(job["callback_url"]).path, body=body), urlsplit(web.url).port or 0
    times, refused, until = list[float](), 0, time.monotonic() + seconds
    while time.monotonic() < until or len(times) < 50:
        began = time.monotonic()
        answer = ask(port, raw, timeout=30)
        times.append(time.monotonic() - began)
        refused += answer is None or answer.status != 200
    return Measured(quantile(times, 0.5), quantile(times, 0.99), refused, len(times))


def _large_answer(web: Web) -> str:
    """The path of a stored file."""
    url, job = "https://cdn.example/film.mp4", web.track("kitta", vendor_job_id="stored")
    seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=(Output(url=url),))
    web.record(seen, vendor="kitta", job_id=job["id"])
    key = f"kitta/{job['id']}/0.mp4"
    path = Path(urlsplit(web.settings.storage_url).path) / key
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(_FILE))
    ours = Stored(url=web.url, key=key, bytes=_FILE, sha256="0" * 64, content_type="video/mp4")
    seen = Observation(source=Source.ARCHIVE, archive=Archive.STORED, outputs=(Output(url=url, stored=ours),))
    web.record(seen, vendor="kitta", job_id=job["id"])
    return f"/v1/jobs/{job['id']}/outputs/0"
