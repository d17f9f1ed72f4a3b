"""The guarded transport: which addresses it never connects to, however they are written, and what it says of itself."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.files import Files, large, redirect, stall, whole
from tests.support.servers import Listener, listening_port
from workers import outbound


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening_port() as made:
        yield made


@pytest.fixture
async def guarded() -> AsyncIterator[httpx.AsyncClient]:
    """As in production."""
    async with outbound.client(allow_private_networks=False) as client:
        yield client


@pytest.fixture
async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    """As with `ALLOW_PRIVATE_NETWORKS`."""
    async with outbound.client(allow_private_networks=True) as client:
        yield client


# -- addresses ------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "this host": "0.0.0.0",  # noqa: S104  nothing is bound to it
    "this network": "0.1.2.3",
    "loopback": "127.0.0.1",
    "loopback, elsewhere": "127.255.255.254",
    "private, 10": "10.0.0.1",
    "private, 172.16": "172.16.0.1",
    "private, 172.31": "172.31.255.255",
    "private, 192.168": "192.168.1.1",
    "carrier-grade NAT": "100.64.0.1",
    "link-local, metadata": "169.254.169.254",
    "IETF protocols": "192.0.0.192",
    "documentation": "203.0.113.7",
    "documentation, 1": "192.0.2.1",
    "documentation, 2": "198.51.100.1",
    "6to4 relay": "192.88.99.1",
    "benchmarks": "198.18.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 unspecified": "::",
    "IPv6 loopback": "::1",
    "IPv4-compatible": "::127.0.0.1",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped loopback in hex": "::ffff:7f00:1",
    "mapped private": "::ffff:10.0.0.1",
    "translated loopback": "::ffff:0:127.0.0.1",
    "NAT64 loopback": "64:ff9b::127.0.0.1",
    "NAT64 metadata": "64:ff9b::a9fe:a9fe",
    "local NAT64": "64:ff9b:1::1",
    "6to4 loopback": "2002:7f00:1::",
    "6to4 private": "2002:c0a8:101::1",
    "Teredo": "2001:0:7f00:1::1",
    "ORCHID": "2001:10::1",
    "discard only": "100::1",
    "IPv6 documentation": "2001:db8::1",
    "IPv6 documentation, new": "3fff::1",
    "segment routing": "5f00::1",
    "unique local": "fd00::1",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local with a zone": "fe80::1%lo",
    "site-local": "fec0::1",
    "IPv6 multicast": "ff02::1",
}

ALLOWED = {
    "public": "8.8.8.8",
    "below 172.16": "172.15.255.255",
    "above 172.31": "172.32.0.0",
    "below carrier-grade NAT": "100.63.255.255",
    "IPv6 public": "2606:4700::1111",
    "mapped public": "::ffff:8.8.8.8",
    "NAT64 public": "64:ff9b::8.8.8.8",
    "6to4 public": "2002:808:808::1",
}


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN)
def test_an_address_where_no_vendor_can_be_is_forbidden(address: str) -> None:
    assert outbound.forbidden(address)


@pytest.mark.parametrize("address", ALLOWED.values(), ids=ALLOWED)
def test_a_public_address_is_not_forbidden(address: str) -> None:
    assert not outbound.forbidden(address)


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_nothing_connects_to_a_forbidden_address(
    guarded: httpx.AsyncClient, listener: Listener, address: str
) -> None:
    host = f"[{address.replace('%', '%25')}]" if ":" in address else address
    with pytest.raises(outbound.TransportError) as refused:
        await guarded.get(f"https://{host}:{listener.port}/")
    assert outbound.was_forbidden(refused.value)
    assert listener.connections == 0


SPELLINGS = {
    "decimal": "2130706433",
    "octal": "017700000001",
    "octal parts": "0177.0.0.1",
    "hexadecimal": "0x7f000001",
    "hexadecimal part": "0x7f.0.0.1",
    "two parts": "127.1",
    "three parts": "127.0.1",
    "zero": "0",
    "leading zeros": "127.000.000.001",
    "a dot at the end": "127.0.0.1.",
    "full-width digits": "\uff11\uff12\uff17.0.0.1",
    "circled digits": "①②⑦.⓪.⓪.①",
    "escaped digits": "%31%32%37.0.0.1",
    "localhost": "localhost",
    "LOCALHOST": "LOCALHOST",
    "mapped in brackets": "[::ffff:127.0.0.1]",
    "unspecified in brackets": "[::]",
    "with a user": "user@127.0.0.1",
    "with a user and a password": "user:secret@127.0.0.1",
    "with a public name as the user": "vendor.example:443@127.0.0.1",
}


@pytest.mark.parametrize("host", SPELLINGS.values(), ids=SPELLINGS)
async def test_no_spelling_of_this_machine_is_connected_to(
    guarded: httpx.AsyncClient, listener: Listener, host: str, refused_connections: list[str]
) -> None:
    with pytest.raises((*outbound.TransportError, RuntimeError)):
        await guarded.get(f"https://{host}:{listener.port}/")
    # What is no address is a name. Looking it up is refused here, and finds nothing elsewhere.
    assert all(refused.startswith("look up ") for refused in refused_connections)
    refused_connections.clear()
    assert listener.connections == 0


@pytest.mark.parametrize("scheme", ["http", "ftp", "file", "gopher", "ws", "unix", "data", ""])
@pytest.mark.parametrize("host", ["127.0.0.1", "8.8.8.8", "vendor.example"])
async def test_no_scheme_but_https_is_fetched(
    guarded: httpx.AsyncClient, listener: Listener, scheme: str, host: str
) -> None:
    with pytest.raises(outbound.TransportError) as refused:
        await guarded.get(f"{scheme}{scheme and ':'}//{host}:{listener.port}/")
    assert outbound.was_forbidden(refused.value)
    assert listener.connections == 0


RESOLVED = {
    "loopback": ["127.0.0.1"],
    "IPv6 loopback": ["::1"],
    "both": ["127.0.0.1", "::1"],
    "mapped": ["::ffff:127.0.0.1"],
    "private": ["10.0.0.1"],
    "metadata": ["169.254.169.254"],
    "many": ["10.0.0.1", "192.168.0.1", "fe80::1", "127.0.0.1"],
}


@pytest.mark.parametrize("addresses", RESOLVED.values(), ids=RESOLVED)
async def test_a_name_is_as_forbidden_as_the_addresses_behind_it(
    guarded: httpx.AsyncClient, listener: Listener, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(_host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(outbound.TransportError) as refused:
        await guarded.get(f"https://vendor.example:{listener.port}/")
    assert outbound.was_forbidden(refused.value)
    assert listener.connections == 0


async def test_a_name_that_cannot_be_a_name_is_an_error_of_the_transport(guarded: httpx.AsyncClient) -> None:
    """An empty label, and one of 64 characters: they come in links, and are no reason for anything to break."""
    for host in ("a..example", f"{'a' * 64}.example"):
        with pytest.raises(outbound.TransportError):
            await guarded.get(f"https://{host}/")


async def test_with_private_networks_allowed_loopback_is_reached_over_http(
    open_client: httpx.AsyncClient, files: Files
) -> None:
    answer = await open_client.get(files.serve("/a", whole(b"fine")))
    assert (answer.status_code, answer.content) == (200, b"fine")


async def test_with_private_networks_allowed_other_schemes_and_user_names_stay_forbidden(
    open_client: httpx.AsyncClient, listener: Listener
) -> None:
    for url in ("ftp://127.0.0.1:{}/", "file:///etc/passwd", "http://user@127.0.0.1:{}/", "//127.0.0.1:{}/"):
        with pytest.raises(outbound.TransportError) as refused:
            await open_client.get(url.format(listener.port))
        assert outbound.was_forbidden(refused.value)
    assert listener.connections == 0


async def test_a_certificate_is_asked_for_by_name_and_verified(
    open_client: httpx.AsyncClient, listener: Listener
) -> None:
    with pytest.raises(outbound.TransportError):
        await open_client.get(f"https://localhost:{listener.port}/")
    assert listener.first_bytes[:1] == b"\x16"  # a TLS handshake
    assert b"localhost" in listener.first_bytes  # SNI: the name, although the address was pinned
    transport = outbound.GuardedTransport(allow_private_networks=False, connections=1, reuse=True)
    assert transport.ssl_context.check_hostname
    assert transport.ssl_context.verify_mode is ssl.CERT_REQUIRED


# -- what goes out, and what comes back -------------------------------------------------------------------------


async def test_it_says_who_it_is_and_asks_for_bytes_as_they_are(open_client: httpx.AsyncClient, files: Files) -> None:
    await open_client.get(files.serve("/a", whole(b"")))
    headers = files.requests("/a")[0].headers
    assert headers["user-agent"] == outbound.USER_AGENT
    assert headers["accept-encoding"] == "identity"
    assert "python" not in str(headers).lower()
    assert "aiohttp" not in str(headers).lower()


async def test_cookies_are_not_kept(open_client: httpx.AsyncClient, files: Files) -> None:
    url = files.serve("/a", whole(b"", set_cookie="who=you; Path=/"))
    for _ in range(3):
        await open_client.get(url)
    assert [request.headers.get("cookie") for request in files.requests("/a")] == [None, None, None]


async def test_redirects_are_not_followed(open_client: httpx.AsyncClient, files: Files) -> None:
    files.serve("/there", whole(b"there"))
    answer = await open_client.get(files.serve("/a", redirect("/there")))
    assert answer.status_code == 302
    assert files.requests("/there") == []


async def test_nothing_is_decompressed(open_client: httpx.AsyncClient, files: Files) -> None:
    url = files.serve("/a", whole(b"\x1f\x8b not really gzip", content_encoding="gzip"))
    async with open_client.stream("GET", url) as answer:
        assert b"".join([chunk async for chunk in answer.aiter_raw()]) == b"\x1f\x8b not really gzip"


async def test_a_stream_takes_no_more_from_the_network_than_is_read(
    open_client: httpx.AsyncClient, files: Files
) -> None:
    """A reader that stops early has not taken the whole: there is a limit on what waits in between."""
    size = 64 * 2**20
    url = files.serve("/a", large(size))
    async with open_client.stream("GET", url) as answer:
        async for _ in answer.aiter_raw():
            break
    assert answer.num_bytes_downloaded < size / 8


async def test_the_environment_is_not_asked(
    files: Files, listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = f"http://127.0.0.1:{listener.port}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "not there"))
    async with outbound.client(allow_private_networks=True) as client:
        answer = await client.get(files.serve("/a", whole(b"straight")))
    assert answer.content == b"straight"
    assert "authorization" not in files.requests("/a")[0].headers
    assert listener.connections == 0


async def test_connections_are_limited_and_given_back(files: Files) -> None:
    """Answers that are left unread, broken off or refused leave no connection behind that others would wait for."""
    url = files.serve("/a", large(2**22))
    async with outbound.client(allow_private_networks=True, connections=2) as client:
        client.timeout = httpx.Timeout(5)
        for _ in range(5):
            async with client.stream("GET", url):
                pass
        with ExitStack() as stack:
            stack.enter_context(pytest.raises(ZeroDivisionError))
            async with client.stream("GET", url):
                _ = 1 / 0
        assert (await client.get(files.serve("/b", whole(b"fine")))).content == b"fine"


async def test_an_answer_that_is_given_up_gives_its_connection_back(files: Files) -> None:
    stalled, good = files.serve("/stalled", stall(b"film", 2)), files.serve("/good", whole(b"film"))
    async with outbound.client(allow_private_networks=True, connections=1) as client:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.get(stalled)
        assert (await client.get(good)).content == b"film"
