"""Hundreds of connections that never get on, and bodies of a gigabyte: honest callbacks come through all the same.

What is measured under attack stands beside the same without it, before and in between: a machine may have other things
to do meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping
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
#: 18 in all; crumbs are chunks of one byte.
GIGABYTES: Final = {
    "gigabyte good length": 3,
    "gigabyte good chunked": 3,
    "gigabyte forged length": 3,
    "gigabyte forged chunked": 3,
    "gigabyte good crumbs": 3,
    "gigabyte forged crumbs": 3,
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
#: How many times as long as without an attack, and how many seconds are nothing to worry about in any case; and in the
#: short form, which shares its machine with other tests, and whose crowds are cut off and back ten times as often.
LIMITS: Final = {"p50": (0.5, 3.0, 0.005, 0.1), "p99": (0.99, 8.0, 0.020, 1.0)}
MEMORY: Final = 256 * 2**20
STOPS: Final = 25.0  #: platforms kill after 30
_FILE: Final = 12 * 2**20


def run(stage: Stage) -> Result:
    result = Result()
    with valkey_server(stage.folder) as valkey:
        slow, large = (
            {kind: number // stage.of(1, 3) for kind, number in crowd.items()} for crowd in (CROWD, GIGABYTES)
        )
        for name, crowd, seconds in (
            ("nobody", {}, 0.0),
            (f"{sum(slow.values())} that do not get on", slow, stage.of(35.0, 1.5)),  # longer than any deadline
            (f"{sum(large.values())} bodies of 1 GB", large, stage.of(12.0, 1.5)),
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
    pid, quiet, orders = web.process.pid, stage.of(3.0, 0.5), _orders(web, crowd)
    _honest(web, quiet)
    before, during, memory = _honest(web, quiet), list[float](), resident(pid)
    if crowd:
        with _attack(web, orders) as attacker:
            during += _honest(web, seconds)
        _note_what_they_met(web, attacker, result)
        before += _honest(web, quiet)
    with _attack(web, orders) if crowd else contextlib.nullcontext():
        if crowd:
            during += _honest(web, seconds / 4)
            _compare(stage, name, before, during, result)
            most = peak(pid)
            result.note(f"memory {megabytes(memory)} → {megabytes(most)} at most", fine=most - memory < MEMORY)
        began = time.monotonic()
        web.process.send(signal.SIGTERM)
        web.process.wait(timeout=60)
        took = time.monotonic() - began
        result.note(f"beside {name}, SIGTERM is obeyed in {took:.1f} s", fine=took < STOPS)


def _compare(stage: Stage, name: str, before: list[float], during: list[float], result: Result) -> None:
    told, fine = list[str](), True
    for times in (before, during):
        figures = (f"{kind} {milliseconds(quantile(times, share))}" for kind, (share, *_) in LIMITS.items())
        told.append(f"{', '.join(figures)} of {len(times):,}")
    for share, ratio, *patience in LIMITS.values():
        fine &= quantile(during, share) <= max(ratio * quantile(before, share), stage.of(*patience))
    result.note(f"honest callbacks beside nobody: {told[0]}; beside {name}: {told[1]}", fine=fine)


def _note_what_they_met(web: Web, attacker: Process, result: Result) -> None:
    told = json.loads(attacker.output().splitlines()[-1])
    cut = sum(told["cut"].values())
    result.note(f"cut off meanwhile: {cut}", fine=cut > 0)
    if told["most"]:
        words = ", ".join(f"{kind.split(' ', 1)[1]} {megabytes(size)}" for kind, size in told["most"].items())
        limit = web.settings.max_callback_bytes + 32 * 2**20  # the buffers on the way take some
        result.note(f"taken of a gigabyte: {words}", fine=max(told["most"].values()) < limit)


def _orders(web: Web, crowd: Mapping[str, int]) -> str:
    good = urlsplit(web.track("kitta", vendor_job_id="victim")["callback_url"]).path
    orders = {
        "crowd": crowd,
        "port": web.port,
        "good": good,
        "forged": f"{good}x",
        "answer": _large_answer(web),
        "key": API_KEY,
    }
    return json.dumps(orders)


@contextlib.contextmanager
def _attack(web: Web, orders: str) -> Iterator[Process]:
    """The crowd, all there, in a process of its own."""
    log = Path(web.process.log).with_name("attacker.log")
    log.unlink(missing_ok=True)
    with Process([BIN / "python", "-m", "tests.hostile.attacker", orders], log=log) as attacker:
        attacker.wait_until(lambda: "all there" in attacker.output(), "all connections", timeout=60)
        yield attacker
        attacker.send(signal.SIGTERM)
        attacker.wait(timeout=30)


def _honest(web: Web, seconds: float) -> list[float]:
    """Callbacks one after the other, each on a connection of its own, as vendors send them; how long each took."""
    job = web.track("kitta")
    body = json.dumps({"taskId": job["id"], "status": "processing"}).encode()
    raw, port = request("POST", urlsplit(job["callback_url"]).path, body=body), web.port
    times, until = list[float](), time.monotonic() + seconds
    while time.monotonic() < until or len(times) < 10:
        began = time.monotonic()
        answer = ask(port, raw, timeout=30)
        times.append(time.monotonic() - began)
        if answer is None or answer.status != 200:
            raise AssertionError(f"an honest callback was answered with {answer}")
    return times


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
