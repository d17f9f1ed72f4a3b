"""The guarded HTTP transport under every request that leaves this service: vendor calls, downloads, subscribers.

httpx is the face, aiohttp carries it. An address is checked where it counts, when the socket to it is made, so
redirects, literal addresses and names that change between look-up and connection are all covered; the certificate is
still checked against the name. Nothing is taken from the environment, nothing is decompressed.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

#: Some vendors' CDNs answer 403 to the name of a library.
USER_AGENT: Final = "Mozilla/5.0 (compatible; callsheet/0.1)"

#: Seconds without a byte after which a request is given up, unless its caller says otherwise.
READ_SECONDS: Final = 20.0

#: Bytes of an answer that are handed over at once, where so many have come. httpx-aiohttp has 16 KiB, and a GiB of
#: those costs more than its hash.
PIECE_BYTES: Final = 2**17

#: Wherever no vendor and no subscriber can be: this machine, private networks, and what only looks public.
_DENIED: Final = tuple(
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
        *("::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16"),
        *("::ffff:0:0:0/96", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)
#: A name as DNS has it, or an address; nothing that a resolver might read in ways of its own.
_HOST: Final = re.compile(rb"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")

_NAT64: Final = ip_network("64:ff9b::/96")


class ForbiddenTarget(httpx.UnsupportedProtocol):
    """A URL or an address that this service does not connect to."""


class _ForbiddenAddress(OSError):
    """What the socket factory raises; aiohttp wraps it as the connection error that it is."""


def forbidden(address: str) -> bool:
    """Whether an IP address is off limits, or wraps one that is (mapped, 6to4, NAT64)."""
    found = ip_address(address.partition("%")[0])
    return any(
        wrapped in network for wrapped in _unwrapped(found) for network in _DENIED if wrapped.version == network.version
    )


def _unwrapped(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    if isinstance(address, IPv4Address):
        return [address]
    inner = (
        address.ipv4_mapped
        or address.sixtofour
        or (IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None)
    )
    # A mapped address is an IPv4 address in another spelling; the other two are judged by both.
    return [inner] if address.ipv4_mapped and inner else [address, *([inner] if inner else [])]


class GuardedTransport(AiohttpTransport):
    """https to public addresses only, unless private networks are allowed."""

    def __init__(self, *, allow_private_networks: bool, connections: int, reuse: bool) -> None:
        self._allow_private = allow_private_networks
        self._connections = connections
        self._reuse = reuse
        super().__init__(trust_env=False, client=self._session)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme != "https" and not (self._allow_private and url.scheme == "http"):
            raise ForbiddenTarget(f"{url.scheme or 'no scheme'}: only https URLs are fetched", request=request)
        if not _HOST.fullmatch(url.raw_host):
            raise ForbiddenTarget("the URL's host is not a name of one", request=request)
        if url.userinfo:
            raise ForbiddenTarget("a URL with a user name in it is not fetched", request=request)
        response = await super().handle_async_request(request)
        vars(response.stream)["CHUNK_SIZE"] = PIECE_BYTES
        return response

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            ssl=self.ssl_context,
            socket_factory=self._socket,
            resolver=aiohttp.ThreadedResolver(),
            **({"keepalive_timeout": 30} if self._reuse else {"force_close": True}),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            auto_decompress=False,
            read_bufsize=PIECE_BYTES,
            trust_env=False,
        )

    def _socket(self, addr_info: Any) -> socket.socket:
        family, type_, proto, _, sockaddr = addr_info
        if not self._allow_private and forbidden(str(sockaddr[0])):
            raise _ForbiddenAddress("the address is not a public one")
        made = socket.socket(family, type_, proto)
        made.setblocking(False)
        return made


class _Client(httpx.AsyncClient):
    """httpx's client, straight onto its transport, past what would follow redirects and keep cookies."""

    def __init__(self, transport: GuardedTransport, **options: Any) -> None:
        super().__init__(transport=transport, **options)
        self._guarded = transport

    async def send(self, request: httpx.Request, *, stream: bool = False, **_: Any) -> httpx.Response:
        response = await self._guarded.handle_async_request(request)
        if not stream:
            try:
                await response.aread()
            except BaseException:  # a deadline too: or its connection would never come back
                await response.aclose()
                raise
        return response


def client(*, allow_private_networks: bool, connections: int = 100, reuse: bool = True) -> httpx.AsyncClient:
    """An httpx client over the guarded transport. It follows no redirects by itself.

    Without `reuse` each request has a connection of its own: one that the server is just closing would leave it
    unknown whether the request was read.
    """
    transport = GuardedTransport(allow_private_networks=allow_private_networks, connections=connections, reuse=reuse)
    return _Client(
        transport,
        timeout=httpx.Timeout(READ_SECONDS, connect=10, pool=60),
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        trust_env=False,
    )


def was_forbidden(error: BaseException | None) -> bool:
    """Whether a request failed because its target is off limits, however deep that lies."""
    while error is not None:
        if isinstance(error, ForbiddenTarget | _ForbiddenAddress):
            return True
        error = error.__cause__ or error.__context__
    return False


def never_sent(error: BaseException) -> bool:
    """Whether a request failed before a byte of it can have reached the other side."""
    # httpx-aiohttp calls every lost connection a ConnectTimeout; what aiohttp called it is its cause.
    before = aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL
    return was_forbidden(error) or isinstance(error, httpx.InvalidURL) or isinstance(error.__cause__, before)


#: What a request may raise that is not the other side's answer; a ValueError where a host is none.
TransportError: Final = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, TimeoutError, OSError, ValueError)
