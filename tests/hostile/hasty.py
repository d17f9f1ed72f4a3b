"""The web process with deadlines that are over soon, and what is done to it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from tests.support.processes import Process
from tests.support.web import API_KEY, Web

from .launcher import command
from .wire import Wire, request

DEADLINES: Final = {
    "service.server.HEAD_SECONDS": 1.0,
    "service.server.BODY_SECONDS": 4.0,
    "service.server.MIN_RATE_AFTER": 1.0,
    "service.server.STALLED_SECONDS": 2.0,
    "service.server.STOP_SECONDS": 0.5,
    "service.server.LOOK_EVERY": 0.2,
}
#: When the last of them is over, on a machine that is busy.
LONG: Final = 20.0
AUTHORIZED: Final = f"authorization: Bearer {API_KEY}"
LIVE: Final = request("GET", "/healthz")


def start(folder: Path, env: Mapping[str, str], constants: Mapping[str, float] = MappingProxyType({})) -> Process:
    """For `web_process`; with other constants of the product changed, too."""
    options = ("--host", "127.0.0.1", "--port", env["PORT"])
    return Process(command("service.server", {**DEADLINES, **constants}, *options), log=folder / "web.log", env=env)


def callback(web: Web) -> tuple[str, bytes]:
    """The path of a job's callback URL, and a body that it takes."""
    job = web.track("apimodels", vendor_job_id="task-1")
    body = {"code": 200, "data": {"taskId": "task-1", "state": "processing"}}
    return urlsplit(job["callback_url"]).path, json.dumps(body).encode()


def head(path: str, length: int) -> bytes:
    """All of a request but its body."""
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()


def drip(wire: Wire, piece: bytes, every: float) -> float:
    """Send a piece at a time until the other side says something or hangs up; how long that took."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < LONG:
        wire.send(piece)
        if wire.listen(every):
            break
    return passed
