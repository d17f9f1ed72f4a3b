"""What is put into a worker to watch it: names are answered as written down, one host redirects to wherever it is told,
and every address that a socket is to be connected to is said. Nothing outside of this machine is ever reached.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

import httpx

from workers.outbound import GuardedTransport

from .targets import NAMES

#: The host whose paths redirect; the file of this environment variable says where to.
FIRST_HOP: Final = "https://first-hop.example"
REDIRECTS: Final = "HOSTILE_REDIRECTS"
TOLD: Final = "tries to connect to"

_locations: list[str] = []
_asked: dict[str, int] = {}
_look_up = socket.getaddrinfo
_send = GuardedTransport.handle_async_request


def install() -> None:
    """From now on, for as long as the process lives."""
    _locations.extend(json.loads(Path(os.environ[REDIRECTS]).read_text()))
    sys.addaudithook(_watch)
    socket.getaddrinfo = _answer
    GuardedTransport.handle_async_request = _redirect  # type: ignore[method-assign, assignment]


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto") or not isinstance(args[-1], tuple):
        return
    host, port = args[-1][:2]
    print(f"{TOLD} {host} port {port}", file=sys.stderr, flush=True)
    if not ipaddress.ip_address(str(host).partition("%")[0]).is_loopback:
        raise ConnectionRefusedError("the watch lets nobody out")


def _answer(host: str | bytes | None, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
    name = (host.decode() if isinstance(host, bytes) else host or "").lower().removesuffix(".")
    if name not in NAMES:
        # Nobody is asked; but what is an address in disguise is read as one.
        local = name.startswith(("localhost", "ip6-"))
        return _look_up(host, port, family, type, proto, flags if local else flags | socket.AI_NUMERICHOST)
    answers = NAMES[name]
    number = _asked[name] = _asked.get(name, 0) + 1
    return [_address(address, port) for address in answers[min(number, len(answers)) - 1]]


def _address(address: str, port: int) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = (address, port, 0, 0) if ":" in address else (address, port)
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where


async def _redirect(transport: GuardedTransport, request: httpx.Request) -> httpx.Response:
    url = str(request.url)
    if not url.startswith(FIRST_HOP) or not url.rpartition("/")[2].isdecimal():
        return await _send(transport, request)
    location = _locations[int(url.rpartition("/")[2])].encode()
    return httpx.Response(302, headers=[(b"location", location)], request=request)
