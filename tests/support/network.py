"""The guard: nothing that a test runs may look up or connect to another machine.

It is an audit hook, so it sees every Python socket, whatever library made it and whatever was patched. It cannot see
sockets made outside of Python (uvloop, obstore) or in another process: those are given loopback addresses by the
fixtures, and nothing else. A name that is given straight to socket.connect is looked up before the refusal.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any, Final

#: What was refused since the list was last cleared. Code under test may swallow the error; it cannot swallow this.
refused: Final[list[str]] = []

_CONNECTS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_LOOKUPS: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})


class NetworkRefusedError(RuntimeError):
    """A test tried to reach another machine. Not an OSError: nothing should take it for a fault worth a retry."""


def guard() -> None:
    """Refuse from now on, for as long as the process lives: an audit hook cannot be removed."""
    sys.addaudithook(_watch)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event in _CONNECTS:
        address = args[1]
        # A Unix socket's address is no tuple, and a datagram without one goes where its socket was connected.
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            _refuse(f"connect to {_text(address[0])} port {address[1]}")
    elif event in _LOOKUPS:
        host = args[0]
        # Without a host nothing is looked up, and an address is only read: the connect that follows is what counts.
        if host and not (_is_loopback(host) or _is_address(host)):
            _refuse(f"look up {_text(host)}")


def _refuse(what: str) -> None:
    refused.append(what)
    raise NetworkRefusedError(f"a test tried to {what}: tests may only reach this machine's loopback addresses")


def _text(host: str | bytes | bytearray) -> str:
    return host if isinstance(host, str) else bytes(host).decode("ascii", "replace")


def _is_loopback(host: str | bytes | bytearray) -> bool:
    name = _text(host)
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_address(host: str | bytes | bytearray) -> bool:
    """Whether the resolver would read it as an address in a form that it knows: 10.0.0.1, 0x0a.1, fe80::1%lo."""
    name = _text(host)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        try:
            socket.inet_aton(name)
        except OSError:
            return False
    return True
